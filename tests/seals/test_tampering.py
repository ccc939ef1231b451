"""Whatever is changed in a sealed journal by somebody with every right on the database is found, and told where."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from backends.conformance.events import happened
from eventstore import EventStore
from eventstore.backend import StoredSeal
from eventstore.events import RecordedEvent
from eventstore.evidence.seal_findings import Finding, Found
from eventstore.evidence.seal_verification import SealVerification
from eventstore.evidence.sealing import Sealer
from eventstore.evidence.seals import parse_stored, sign

from .attacker import FIELDS, Attacker, RedisAttacker, attacker
from .sealed_journal import STREAMS, Sealed, build, everything, new_key

EVENT_EDITS = ("change", "change", "change", "delete", "cut", "insert", "swap", "move", "rename", "truncate")
SEAL_EDITS = ("seal removed", "seal changed", "seal forged", "removal changed", "removal deleted")
OF_EVENTS = {Found.CHANGED, Found.DELETED, Found.INSERTED, Found.MOVED, Found.UNREADABLE}


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sealed.db"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest_asyncio.fixture
async def sealed(url: str, tmp_path: Path) -> Sealed:
    return await build(url, tmp_path)


class Audit:
    """Reads and verifies as an auditor does: with a store that has not seen the journal as it was."""

    def __init__(self, sealed: Sealed, store: EventStore | None) -> None:
        self._sealed = sealed
        self._store = store

    async def findings(self) -> list[Finding]:
        return (await self.look())[0]

    async def each(self) -> AsyncGenerator[Finding, None]:
        async with self._opened() as store:
            async for finding in SealVerification(store, self._sealed.public, anchor=self._sealed.anchor).findings():
                yield finding

    async def look(self) -> tuple[list[Finding], dict[int, RecordedEvent | None]]:
        """What verification finds, and every event, by its position."""
        async with self._opened() as store:
            verification = SealVerification(store, self._sealed.public, anchor=self._sealed.anchor)
            found = [finding async for finding in verification.findings()]
            assert verification.verified.problems == sum(finding.is_problem for finding in found)
            return found, await everything(store)

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[EventStore, None]:
        if self._store is not None:
            yield self._store
        else:
            async with EventStore.open(self._sealed.url) as store:
                yield store


@pytest_asyncio.fixture
async def audit(sealed: Sealed) -> AsyncGenerator[Audit, None]:
    """On Redis a store that was open before refuses a log that has become shorter. SQL is slow to open."""
    if sealed.url.startswith("redis"):
        yield Audit(sealed, None)
    else:
        async with EventStore.open(sealed.url) as store:
            yield Audit(sealed, store)


@pytest_asyncio.fixture
async def mallory(sealed: Sealed, audit: Audit) -> AsyncGenerator[Attacker, None]:
    made = await attacker(sealed.url)
    yield made
    await made.close()


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.is_problem]


async def test_a_journal_that_nobody_has_touched_is_as_sealed(audit: Audit, mallory: Attacker) -> None:
    found = await audit.findings()
    assert problems(found) == []
    told = {(finding.stream_id, finding.text.partition("recorded")[0]) for finding in found}
    assert {stream_id for stream_id, _ in told} == {"Account-b", "x"}
    assert any("up to version 3" in text for _, text in told)
    assert all("in seal" in finding.text for finding in found)


async def edit_events(name: str, rng: random.Random, mallory: Attacker, positions: list[int], last: int) -> str:
    """Do one thing to sealed events. Returns what it was."""
    at = rng.choice(positions)
    others = [position for position in positions if position != at]
    holes = sorted(set(range(1, last)) - set(positions))
    match name:
        case "change":
            field, clever = rng.choice(FIELDS), rng.random() < 0.7
            await mallory.change(at, field, rng, clever=clever)
            return f"{field} of {at} changed{' and its checksum' if clever else ''}"
        case "delete":
            await mallory.delete(at)
            return f"{at} deleted"
        case "cut":
            await mallory.cut(at - 1)
            return f"cut from {at} on"
        case "insert":
            hole = rng.choice(holes)
            await mallory.insert(hole, at)
            return f"inserted at {hole}, like {at}"
        case "swap":
            other = rng.choice(others)
            await mallory.swap(at, other)
            return f"{at} and {other} swapped"
        case "move":
            one, other, third = at, *rng.sample(others, 2)
            await mallory.swap(one, other)
            await mallory.swap(other, third)
            return f"{one}, {other} and {third} in another order"
        case "rename":
            stream_id = rng.choice(STREAMS)
            await mallory.rename(stream_id)
            return f"{stream_id} renamed"
        case _:
            stream_id = rng.choice(("Account-a", "Order-1", "Order-é'2"))
            through = rng.randrange(2, 5)
            await mallory.truncate_without_record(stream_id, through)
            return f"{stream_id} truncated to {through} without a record"


async def edit_seals(name: str, rng: random.Random, mallory: Attacker, forger: Any) -> str:
    """Do one thing to the seals, or to the record of truncations."""
    seals = await mallory.seals()
    victim = rng.choice(seals)
    match name:
        case "seal removed":
            await mallory.replace_seal(victim.number, None)
            return f"seal {victim.number} removed"
        case "seal changed":
            part = rng.choice(
                [field for field in ("statement", "signature", "leaves", "removals") if getattr(victim, field)]
            )
            data = bytearray(getattr(victim, part))
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            await mallory.replace_seal(victim.number, victim._replace(**{part: bytes(data)}))
            return f"{part} of seal {victim.number} changed"
        case "seal forged":
            old = parse_stored(victim)
            seal = sign(old.statement.model_copy(update={"key": forger.public}), forger)
            forged = StoredSeal(victim.number, seal.statement.encoded(), seal.signature, victim.leaves, victim.removals)
            await mallory.replace_seal(victim.number, forged)
            return f"seal {victim.number} forged"
        case "removal changed":
            number = rng.randrange(1, 4)
            await mallory.change_removal(number)
            return f"truncation {number} changed"
        case _:
            number = rng.randrange(1, 4)
            await mallory.delete_removal(number)
            return f"truncation {number} deleted"


async def tamper_at_random(
    sealed: Sealed, mallory: Attacker, audit: Audit, folder: Path, *, edits: int, seed: int
) -> None:
    """So many edits, one after the other, each undone before the next. What an edit did to the events is found out by
    reading them all before and after."""
    rng = random.Random(seed)
    forger = new_key(folder, "forger.key")
    _, before = await audit.look()
    positions = [position for position in before if position <= sealed.last]
    done: Counter[str] = Counter()
    for number in range(edits):
        is_about_events = rng.random() < 0.75
        name = rng.choice(EVENT_EDITS if is_about_events else SEAL_EDITS)
        if is_about_events:
            what = await edit_events(name, rng, mallory, positions, sealed.last)
        else:
            what = await edit_seals(name, rng, mallory, forger)
        what = f"edit {number} (seed {seed}): {what}"
        findings, after = await audit.look()
        found = problems(findings)
        of_events = {finding.position for finding in found if finding.what in OF_EVENTS}
        if is_about_events:
            differing = {
                position
                for position in {*before, *after}
                if position <= sealed.last
                and (before.get(position) != after.get(position) or after.get(position, 0) is None)
            }
            assert differing, what
            assert of_events == differing, (what, found)
            others = [finding for finding in found if finding.what not in OF_EVENTS]
            assert len(found) - len(others) == len(differing), (what, found)
            # The record of a truncation names its stream.
            assert others == [] or (name == "rename" and {each.what for each in others} == {Found.REMOVAL}), found
        else:
            assert of_events == set(), (what, found)
            assert found, what
            named = " ".join(what.rpartition(": ")[2].split()[-3:-1])
            assert any(named in finding.text for finding in found), (what, found)
            kind = Found.SEAL if name.startswith("seal") else Found.REMOVAL
            assert {finding.what for finding in found} == {kind}, (what, found)
        done[name] += 1
        await mallory.restore()
    findings, after = await audit.look()
    assert problems(findings) == []
    assert after == before
    print(sealed.url.partition(":")[0], dict(done))


async def test_random_edits_are_all_found_where_they_are_and_nothing_else_is(
    sealed: Sealed, mallory: Attacker, audit: Audit, tmp_path: Path
) -> None:
    await tamper_at_random(sealed, mallory, audit, tmp_path, edits=200, seed=1)


@pytest.mark.soak
async def test_ten_thousand_random_edits_are_all_found(
    sealed: Sealed, mallory: Attacker, audit: Audit, tmp_path: Path
) -> None:
    seed = int(os.environ.get("TAMPER_SEED", "2"))
    edits = int(os.environ.get("TAMPER_EDITS", "10000"))
    await tamper_at_random(sealed, mallory, audit, tmp_path, edits=edits, seed=seed)


@pytest.mark.parametrize("field", FIELDS)
async def test_each_field_of_an_event_is_sealed(sealed: Sealed, mallory: Attacker, audit: Audit, field: str) -> None:
    at = sealed.last - 3
    await mallory.change(at, field, random.Random(3), clever=True)
    [finding] = problems(await audit.findings())
    assert (finding.what, finding.position) == (Found.CHANGED, at)


@pytest.mark.parametrize("url", ["redis"], indirect=True)
async def test_a_seal_put_between_two_numbers_is_found(sealed: Sealed, mallory: RedisAttacker, audit: Audit) -> None:
    """Redis keeps seals by a number that may be broken. Whoever reads on from it in whole ones must get further."""
    victim = (await mallory.seals())[1]
    await mallory.add_seal(victim.number - 0.5, victim._replace(signature=bytes(64)))
    async with asyncio.timeout(20):
        found = problems(await audit.findings())
    assert {finding.what for finding in found} == {Found.SEAL}


@pytest.mark.parametrize("url", ["redis"], indirect=True)
@pytest.mark.parametrize("score", [float("inf"), float("-inf"), -3.0])
async def test_what_stands_under_no_number_of_a_seal_is_in_nobodys_way(
    sealed: Sealed, mallory: RedisAttacker, audit: Audit, score: float
) -> None:
    victim = (await mallory.seals())[1]
    await mallory.add_seal(score, victim._replace(signature=bytes(64)))
    assert problems(await audit.findings()) == []
    async with EventStore.open(sealed.url) as store, asyncio.timeout(20):
        assert await Sealer(store, sealed.key).seal() is not None


@pytest.mark.parametrize("score", [float("inf"), float("-inf"), -3.0])
async def test_the_first_seal_is_made_beside_what_stands_under_no_number(
    redis_url: str, tmp_path: Path, score: float
) -> None:
    mallory = await attacker(redis_url)
    await mallory.add_seal(score, StoredSeal(1, b"", b"", b"", b""))  # type: ignore[attr-defined]
    async with EventStore.open(redis_url) as store, asyncio.timeout(20):
        await store.append("a", happened(1))
        assert await Sealer(store, new_key(tmp_path)).seal() is not None


@pytest.mark.parametrize("url", ["redis"], indirect=True)
@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64], ids=["first", "last"])
async def test_two_seals_under_one_number_are_found(
    sealed: Sealed, mallory: RedisAttacker, audit: Audit, signature: bytes
) -> None:
    """Whichever of them Redis has first: what is behind it would be passed over."""
    victim = (await mallory.seals())[1]
    await mallory.add_seal(victim.number, victim._replace(signature=signature))
    [finding, *_] = problems(await audit.findings())
    assert (finding.what, finding.text.partition(":")[0]) == (Found.SEAL, "seal 2 cannot be read")


@pytest.mark.parametrize("when", [Found.SEAL, Found.CHANGED])
@pytest.mark.parametrize("changed", [b"broken", None], ids=["changed", "removed"])
async def test_a_seal_that_is_changed_while_the_journal_is_verified_is_found(
    sealed: Sealed, mallory: Attacker, audit: Audit, when: Found, changed: bytes | None
) -> None:
    _, events = await audit.look()
    first, second, *_ = await mallory.seals()
    await mallory.replace_seal(1, first._replace(signature=bytes(64)))
    await mallory.change(min(events), "payload", random.Random(3), clever=True)
    found: list[Finding] = []
    async for finding in audit.each():
        if finding.what is when and when not in {one.what for one in found}:
            await mallory.replace_seal(2, None if changed is None else second._replace(statement=changed))
        found.append(finding)
    texts = [finding.text for finding in found if "seal 2" in finding.text]
    assert len(texts) == 1, found
    assert "while the journal was verified" in texts[0]
