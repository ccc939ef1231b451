"""Seals vouch for each other: what is missing, made anew or made with another key is told; keys can be handed over."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from backends.conformance.events import happened
from eventstore import EventStore, ProofInvalid, SealRefused
from eventstore.backend import StoredSeal
from eventstore.evidence.inclusion import prove
from eventstore.evidence.leaves import leaf_of, pack_leaves, unpack_leaves
from eventstore.evidence.merkle import MerkleTree
from eventstore.evidence.seal_findings import Finding, Found
from eventstore.evidence.seal_verification import SealVerification
from eventstore.evidence.sealing import Sealer
from eventstore.evidence.seals import Seal, Statement, pack_removals, parse_stored, sign, unpack_removals
from eventstore.evidence.signing import SigningKey

from .attacker import SQLiteAttacker
from .sealed_journal import fill, new_key, seal_all


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/own.db"


@pytest_asyncio.fixture
async def store(url: str) -> AsyncGenerator[EventStore, None]:
    async with EventStore.open(url) as store:
        yield store


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return new_key(tmp_path)


@pytest.fixture
def other_key(tmp_path: Path) -> SigningKey:
    return new_key(tmp_path, "other.key")


@pytest_asyncio.fixture
async def mallory(url: str, store: EventStore) -> AsyncGenerator[SQLiteAttacker, None]:
    made = SQLiteAttacker(url)
    yield made
    await made.close()


async def problems(store: EventStore, key: SigningKey, anchor: Seal | None = None) -> list[Finding]:
    verification = SealVerification(store, key.public, anchor=anchor)
    return [finding async for finding in verification.findings() if finding.is_problem]


def resealed(old: StoredSeal, key: SigningKey, **changes: object) -> StoredSeal:
    """A seal with another statement, signed as whoever holds a key can."""
    statement = Statement.model_validate({**parse_stored(old).statement.model_dump(), "key": key.public, **changes})
    return StoredSeal(old.number, statement.encoded(), sign(statement, key).signature, old.leaves, old.removals)


async def forge_from(mallory: SQLiteAttacker, key: SigningKey, number: int) -> None:
    """Sign every seal from one on again, each naming the one before it as it is now."""
    previous: str | None = None
    for seal in await mallory.seals():
        if seal.number >= number:
            changes = {} if previous is None else {"previous": previous}
            seal = resealed(seal, key, **changes)
            await mallory.replace_seal(seal.number, seal)
        previous = parse_stored(seal).hash


async def test_seals_go_on_from_each_other(store: EventStore, key: SigningKey) -> None:
    await fill(store)
    await seal_all(Sealer(store, key, every=10))
    seals = [parse_stored(stored) async for stored in store.seals()]
    assert [seal.statement.number for seal in seals] == list(range(1, len(seals) + 1))
    assert [seal.statement.count for seal in seals[:-1]] == [10] * (len(seals) - 1)
    for earlier, later in pairwise(seals):
        assert later.statement.previous == earlier.hash
        assert later.statement.first == earlier.statement.last + 1
    assert await Sealer(store, key).seal() is None


async def test_without_an_anchor_a_cut_tail_of_seals_and_events_does_not_show(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    """What the anchor is for."""
    await fill(store)
    anchor = await seal_all(Sealer(store, key, every=10))
    last = await store.newest_seal()
    assert last is not None
    await mallory.replace_seal(last.number, None)
    await mallory.cut(parse_stored(last).statement.first - 1)
    assert await problems(store, key) == []
    [finding] = await problems(store, key, anchor)
    assert finding.what is Found.SEAL
    assert f"names seal {last.number}" in finding.text
    assert f"newest is seal {last.number - 1}" in finding.text


async def test_all_seals_gone_is_nothing_proven(store: EventStore, key: SigningKey, mallory: SQLiteAttacker) -> None:
    assert "there is no seal" in (await problems(store, key))[0].text
    await fill(store)
    anchor = await seal_all(Sealer(store, key))
    await mallory.run("DELETE FROM journal_seals")
    [finding] = await problems(store, key, anchor)
    assert "there is no seal: nothing is proven, and the anchor names seal 1" in finding.text


async def test_seals_made_anew_with_the_stolen_key_differ_from_the_anchor(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    await fill(store, count=5)
    anchor = await seal_all(Sealer(store, key))
    await mallory.run("DELETE FROM journal_seals")
    await mallory.delete(1)
    await seal_all(Sealer(store, key))
    assert await problems(store, key) == []
    [finding] = await problems(store, key, anchor)
    assert "seal 1 is not the one that the anchor names" in finding.text


async def test_a_seal_made_to_suit_the_change_without_a_key_is_not_trusted(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    """The newest one, so that no other seal names it: nothing but its signature stands in the way."""
    await fill(store, count=5)
    await seal_all(Sealer(store, key))
    await mallory.run("UPDATE journal_events SET epoch = epoch + 1 WHERE position = 3")
    leaves = [leaf_of(recorded) async for recorded in store.read_all()]
    [stored] = await mallory.seals()
    root = MerkleTree(leaf.hash for leaf in leaves).root().hex()
    statement = parse_stored(stored).statement.model_copy(update={"root": root})
    await mallory.replace_seal(1, stored._replace(statement=statement.encoded(), leaves=pack_leaves(leaves)))
    [finding] = await problems(store, key)
    assert "none of the 1 seals is signed with the key given" in finding.text
    # And where others are trusted:
    await mallory.replace_seal(1, stored)
    await mallory.run("UPDATE journal_events SET epoch = epoch - 1 WHERE position = 3")
    await fill(store, first=5, count=1)
    await seal_all(Sealer(store, key))
    newest = (await mallory.seals())[-1]
    statement = parse_stored(newest).statement.model_copy(update={"root": root})
    await mallory.replace_seal(2, newest._replace(statement=statement.encoded()))
    [finding] = await problems(store, key)
    assert "seal 2 was changed after it was signed" in finding.text


async def test_a_sealed_truncation_cannot_be_stretched(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    """Not by changing both its record and the seal's list of it: the list's hash is signed."""
    await store.append("Account-a", happened(1, 2, 3, 4))
    await seal_all(Sealer(store, key))
    await store.truncate("Account-a", 2, reason="test")
    await seal_all(Sealer(store, key))
    assert await problems(store, key) == []
    newest = (await mallory.seals())[-1]
    await mallory.truncate_without_record("Account-a", 3)
    await mallory.run("UPDATE journal_removals SET through = 3")
    [removal] = unpack_removals(newest.removals)
    await mallory.replace_seal(2, newest._replace(removals=pack_removals([removal._replace(through=3)])))
    [finding] = await problems(store, key)
    assert (finding.what, finding.text) == (
        Found.SEAL,
        "the list of truncations of seal 2 was changed: it is not the list that was sealed",
    )


async def test_one_seal_made_anew_with_the_stolen_key_contradicts_the_next(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    await fill(store)
    await seal_all(Sealer(store, key, every=10))
    seals = await mallory.seals()
    await mallory.delete(13)
    leaves = [leaf for leaf in unpack_leaves(seals[1].leaves) if leaf.position != 13]
    root = MerkleTree(leaf.hash for leaf in leaves).root().hex()
    forged = resealed(seals[1]._replace(leaves=pack_leaves(leaves)), key, count=len(leaves), root=root)
    await mallory.replace_seal(2, forged)
    [finding] = await problems(store, key)
    assert "seal 2 is not the one that seal 3 was made after" in finding.text


@pytest.mark.parametrize("first", [1, 2])
async def test_seals_of_another_key_are_forged(
    store: EventStore, key: SigningKey, other_key: SigningKey, mallory: SQLiteAttacker, first: int
) -> None:
    await fill(store)
    newest = await seal_all(Sealer(store, key, every=10))
    await forge_from(mallory, other_key, first)
    found = await problems(store, key)
    if first == 1:
        assert "none of the" in found[0].text
        assert len(found) == 1
    else:
        assert len(found) == newest.statement.number - first + 1
        assert all("it is forged" in finding.text for finding in found)


async def test_a_key_is_handed_over_and_either_verifies(
    store: EventStore, key: SigningKey, other_key: SigningKey
) -> None:
    await fill(store, count=5)
    first = Sealer(store, key, every=4)
    await seal_all(first)
    await first.seal(next_key=other_key.public)
    await fill(store, first=5, count=5)
    with pytest.raises(SealRefused, match="handed over"):
        await first.seal()
    anchor = await seal_all(Sealer(store, other_key, every=4))
    assert anchor.statement.key == other_key.public
    for each in (key, other_key):
        assert await problems(store, each) == []
        assert await problems(store, each, anchor) == []


async def test_a_key_that_was_handed_over_seals_no_more(
    store: EventStore, key: SigningKey, other_key: SigningKey, mallory: SQLiteAttacker
) -> None:
    """Whoever has found the old key cannot go on with it."""
    await fill(store, count=5)
    first = Sealer(store, key, every=4)
    await seal_all(first)
    handed = await first.seal(next_key=other_key.public)
    assert handed is not None
    await fill(store, first=5, count=3)
    newest = await seal_all(Sealer(store, other_key, every=100))
    stored = (await mallory.seals())[-1]
    await mallory.replace_seal(stored.number, resealed(stored, key))
    for each in (key, other_key):
        found = await problems(store, each)
        assert len(found) == 1, found
    assert f"seal {newest.statement.number} is signed with a key that was handed over" in found[0].text or (
        "none of the" in found[0].text
    )


async def test_a_sealer_goes_on_from_nobody_elses_seals(
    store: EventStore, key: SigningKey, other_key: SigningKey, mallory: SQLiteAttacker
) -> None:
    await fill(store, count=3)
    await seal_all(Sealer(store, key))
    await fill(store, first=3, count=1)
    with pytest.raises(SealRefused, match="is to be followed by one of key"):
        await Sealer(store, other_key).seal()
    [stored] = await mallory.seals()
    await mallory.replace_seal(1, stored._replace(signature=bytes(64)))
    with pytest.raises(SealRefused, match="was changed after it was signed"):
        await Sealer(store, key).seal()
    await mallory.replace_seal(1, stored._replace(statement=b"{}"))
    with pytest.raises(SealRefused, match="cannot be read"):
        await Sealer(store, key).seal()
    assert len(await mallory.seals()) == 1


async def test_the_list_of_leaves_is_no_more_trusted_than_the_events(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    """A list that suits the changed event does not suit the root."""
    await fill(store, count=5)
    await seal_all(Sealer(store, key))
    await mallory.run("UPDATE journal_events SET epoch = epoch + 1 WHERE position = 3")
    leaves = [leaf_of(recorded) async for recorded in store.read_all()]
    [stored] = await mallory.seals()
    await mallory.replace_seal(1, stored._replace(leaves=pack_leaves(leaves)))
    found = await problems(store, key)
    assert [finding.what for finding in found] == [Found.SEAL, Found.CHANGED]
    assert "list of leaves of seal 1 was changed" in found[0].text
    assert "cannot be told where they differ" in found[1].text


async def test_what_is_not_sealed_yet_is_not_protected(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    """A limit, and a documented one: seal often."""
    await fill(store, count=5)
    await seal_all(Sealer(store, key))
    await fill(store, first=5, count=2)
    await mallory.run("DELETE FROM journal_events WHERE position > (SELECT max(position) - 1 FROM journal_events)")
    assert await problems(store, key) == []


async def test_a_changed_event_is_proven_by_no_list_that_was_changed_with_it(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    await fill(store, count=3)
    await seal_all(Sealer(store, key))
    assert parse_stored((await mallory.seals())[0]).statement.count > 2
    await prove(store, 2)

    await mallory.change(2, "payload", random.Random(1), clever=True)
    (seal,) = await mallory.seals()
    changed = [recorded async for recorded in store.read_all(after=1, limit=1)]
    leaves = list(unpack_leaves(seal.leaves))
    leaves[1] = leaf_of(changed[0])
    await mallory.replace_seal(1, seal._replace(leaves=pack_leaves(leaves)))
    with pytest.raises(ProofInvalid, match="the list of leaves of seal 1 was changed"):
        await prove(store, 2)


async def test_a_record_of_a_truncation_does_not_cover_what_was_sealed_after_it(
    store: EventStore, key: SigningKey, mallory: SQLiteAttacker
) -> None:
    """Its reach may have been made anything before it was sealed. What stood there later was not removed by it."""
    await fill(store)
    await store.truncate("Account-b", 1, reason="made to reach further than the stream")
    await mallory.run("UPDATE journal_removals SET through = 1000000")
    await seal_all(Sealer(store, key))
    await fill(store, first=25)
    await seal_all(Sealer(store, key))
    assert await problems(store, key) == []
    [last] = [each async for each in store.read("Account-b", limit=1, backwards=True)]
    await mallory.delete(last.position)
    [finding] = await problems(store, key)
    assert (finding.what, finding.position, finding.version) == (Found.DELETED, last.position, last.version)


async def test_truncations_of_one_stream_between_seals_cover_what_each_has_removed(
    store: EventStore, key: SigningKey
) -> None:
    for number in range(3):
        await fill(store, first=25 * number)
        await seal_all(Sealer(store, key, every=7))
        await store.truncate("Account-b", 4 * (number + 1), reason="again")
    await seal_all(Sealer(store, key))
    assert await problems(store, key) == []
