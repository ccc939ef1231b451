"""The hash tree of RFC 9162 (section 2.1, as in RFC 6962): one hash for many leaves, and short proofs that one is among
them.

Leaves and inner nodes are hashed under different first bytes, so that no node can be passed off as a leaf.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()
"""The root of no leaves."""


def leaf_hash(data: bytes) -> bytes:
    """The hash of what one leaf holds."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees."""
    return sha256(b"\1" + left + right).digest()


class MerkleTree:
    """The root of leaves that come one after the other. It holds as many hashes as their number has bits."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self.size = 0
        # Roots of full subtrees, the largest first: one for each bit of the size.
        self._roots: list[bytes] = []
        for leaf in leaves:
            self.add(leaf)

    def add(self, leaf: bytes) -> None:
        """Add the hash of the next leaf."""
        self.size += 1
        bit = 1
        while not self.size & bit:
            leaf = node_hash(self._roots.pop(), leaf)
            bit <<= 1
        self._roots.append(leaf)

    def root(self) -> bytes:
        """The root of the leaves so far."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The hashes that lead from one leaf's hash to the root, from below. Raises `IndexError`."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"there is no leaf {index} of {len(leaves)}")
    path: list[bytes] = []
    start, end = 0, len(leaves)
    while end - start > 1:
        # The left subtree has the largest power of two below the number of leaves.
        middle = start + (1 << (end - start - 1).bit_length() - 1)
        if index < middle:
            path.append(MerkleTree(leaves[middle:end]).root())
            end = middle
        else:
            path.append(MerkleTree(leaves[start:middle]).root())
            start = middle
    path.reverse()
    return path


def root_of_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a path leads to from a leaf's hash (RFC 9162, 2.1.3.2). Raises `ValueError` for a path that cannot
    be one of a tree of that size."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has none at {index}")
    node, last, root = index, size - 1, leaf
    for beside in path:
        if last == 0:
            raise ValueError("the path is too long")
        if node & 1 or node == last:
            root = node_hash(beside, root)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            root = node_hash(root, beside)
        node >>= 1
        last >>= 1
    if last:
        raise ValueError("the path is too short")
    return root
