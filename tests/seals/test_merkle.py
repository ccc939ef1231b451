"""The hash tree is that of RFC 9162, by its definition and by the vectors that are known for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.evidence.merkle import EMPTY_ROOT, MerkleTree, inclusion_path, leaf_hash, node_hash, root_of_path

# Those of Certificate Transparency's reference implementation.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

LEAVES = st.lists(st.binary(max_size=8).map(leaf_hash), max_size=70)


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word by word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return node_hash(naive_root(leaves[:k]), naive_root(leaves[k:]))


def naive_path(leaves: list[bytes], index: int) -> list[bytes]:
    """RFC 9162, 2.1.3.1, word by word."""
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if index < k:
        return [*naive_path(leaves[:k], index), naive_root(leaves[k:])]
    return [*naive_path(leaves[k:], index - k), naive_root(leaves[:k])]


def test_roots_are_those_that_others_compute() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    tree = MerkleTree()
    for data, root in zip(INPUTS, ROOTS, strict=True):
        tree.add(leaf_hash(data))
        assert tree.root().hex() == root


@given(LEAVES)
def test_the_root_is_that_of_the_definition(leaves: list[bytes]) -> None:
    tree = MerkleTree(leaves)
    assert (tree.size, tree.root()) == (len(leaves), naive_root(leaves))


@given(LEAVES.filter(bool), st.data())
def test_a_path_is_that_of_the_definition_and_leads_to_the_root(leaves: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    path = inclusion_path(leaves, index)
    assert path == naive_path(leaves, index)
    assert root_of_path(leaves[index], index, len(leaves), path) == naive_root(leaves)


@given(LEAVES.filter(lambda leaves: len(leaves) > 1), st.data())
def test_no_other_leaf_place_size_or_path_leads_there(leaves: list[bytes], data: st.DataObject) -> None:
    distinct = [leaf_hash(b"%d" % place + leaf) for place, leaf in enumerate(leaves)]
    index = data.draw(st.integers(0, len(distinct) - 1))
    path = inclusion_path(distinct, index)
    root = MerkleTree(distinct).root()

    def leads(leaf: bytes, index: int, size: int, path: list[bytes]) -> bool:
        try:
            return root_of_path(leaf, index, size, path) == root
        except ValueError:
            return False

    other = data.draw(st.integers(0, len(distinct) - 1).filter(lambda place: place != index))
    changed = data.draw(st.integers(0, len(path) - 1))
    assert not leads(distinct[other], index, len(distinct), path)
    assert not leads(distinct[index], other, len(distinct), path)
    assert not leads(distinct[index], index, len(distinct), path[:-1])
    assert not leads(distinct[index], index, len(distinct), [*path, root])
    assert not leads(distinct[index], index, len(distinct), [*path[:changed], bytes(32), *path[changed + 1 :]])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_a_place_outside_of_the_tree_is_an_error(index: int, size: int) -> None:
    with pytest.raises(IndexError):
        inclusion_path([leaf_hash(b"")] * size, index)
    with pytest.raises(ValueError, match="has none at"):
        root_of_path(leaf_hash(b""), index, size, [])
