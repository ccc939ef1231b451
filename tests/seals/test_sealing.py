"""Sealing: one at a time, whole or not at all; and truncation, which is told from tampering."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from backends.conformance.events import happened
from eventstore import EventStore, JournalCorrupt
from eventstore.errors import CapabilityError, ExtraMissing, KeyFileError
from eventstore.evidence.inclusion import prove
from eventstore.evidence.seal_findings import Finding, Found
from eventstore.evidence.seal_verification import SealVerification
from eventstore.evidence.sealing import Sealer
from eventstore.evidence.seals import parse_stored
from eventstore.evidence.signing import SigningKey, generate, private_key, public_file, public_key
from tests.backends.postgres_help import connected, execute

from .attacker import attacker
from .sealed_journal import fill, new_key, seal_all


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/own.db"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return new_key(tmp_path)


async def verified(store: EventStore, key: SigningKey) -> tuple[SealVerification, list[Finding]]:
    verification = SealVerification(store, key.public)
    return verification, [finding async for finding in verification.findings()]


async def covered(store: EventStore) -> list[int]:
    """How many events each seal covers, if each goes on where the one before ended."""
    counts: list[int] = []
    last = 0
    async for stored in store.seals():
        statement = parse_stored(stored).statement
        assert (statement.number, statement.first) == (len(counts) + 1, last + 1)
        last = statement.last
        counts.append(statement.count)
    return counts


async def test_of_many_sealers_each_event_is_sealed_by_one(url: str, key: SigningKey) -> None:
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        await fill(store)
        sealers = [Sealer(each, key, every=5) for each in (store, other) for _ in range(3)]
        await asyncio.gather(*(seal_all(sealer) for sealer in sealers))
        events = (await store.statistics()).events
        assert sum(await covered(store)) == events
        verification, found = await verified(store, key)
        assert found == []
        assert verification.verified.events == events


async def test_a_first_seal_that_is_made_while_the_journal_is_verified_is_not_looked_at(
    url: str, key: SigningKey
) -> None:
    async with EventStore.open(url) as store:
        await fill(store)
        await store.append("c", happened(1, 2))
        await store.truncate("c", 1, reason="test")
        verification = SealVerification(store, key.public)
        found: list[Finding] = []
        async for finding in verification.findings():
            found.append(finding)
            await seal_all(Sealer(store, key))
        assert [finding.text for finding in found] == ["there is no seal: nothing is proven"]
        assert (verification.verified.seals, verification.verified.sealed) == (0, 0)
        assert (await verified(store, key))[1] == []


async def test_the_streams_of_two_tenants_under_one_id_are_told_apart(url: str, key: SigningKey) -> None:
    async with (
        EventStore.open(url) as store,
        EventStore.open(url, tenant="acme") as acme,
        EventStore.open(url, tenant="bolt") as bolt,
    ):
        for one in (store, acme, bolt):
            await one.append("a", happened(1, 2, 3))
        await seal_all(Sealer(store, key))
        await acme.truncate("a", 3, reason="the user asked")
        _, found = await verified(store, key)
        assert [(one.what, one.tenant, one.stream_id, one.version) for one in found] == [
            (Found.TRUNCATED, "acme", "a", 3)
        ]
        assert [each.tenant async for each in store.removals()] == ["acme"]
        await seal_all(Sealer(store, key))
        with pytest.raises(CapabilityError, match="opened for a tenant"):
            await Sealer(acme, key).seal()
        with pytest.raises(CapabilityError, match="opened for a tenant"):
            await verified(acme, key)
        with pytest.raises(CapabilityError, match="opened for a tenant"):
            await prove(bolt, 9)
    mallory = await attacker(url)
    # The last of bolt's. That events of acme's were truncated is no excuse.
    await mallory.delete(9)
    await mallory.close()
    async with EventStore.open(url) as store:
        _, found = await verified(store, key)
    assert {(one.what, one.tenant, one.version) for one in found if one.what is not Found.UNREADABLE} == {
        (Found.TRUNCATED, "acme", 3),
        (Found.DELETED, "bolt", 3),
    }


async def test_a_sealer_that_is_killed_leaves_nothing_half(url: str, key: SigningKey, tmp_path: Path) -> None:
    async with EventStore.open(url) as store:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sealing_process.py")), url, str(tmp_path / "seal.key")],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
            # It seals what comes meanwhile, and is killed somewhere in that.
            number = 0
            while number < 20 or await store.newest_seal() is None:
                await store.append("Account-a", happened(number))
                number += 1
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        assert 0 < sum(await covered(store)) <= number
        assert (await verified(store, key))[1] == []
        await seal_all(Sealer(store, key, every=3))
        assert sum(await covered(store)) == (await store.statistics()).events
        assert (await verified(store, key))[1] == []


async def test_truncation_is_no_tampering_and_deletion_beyond_it_is(url: str, key: SigningKey) -> None:
    async with EventStore.open(url) as store:
        sealer = Sealer(store, key, every=4)
        for number in range(6):
            await store.append("Account-a", happened(number))
            await store.append("Account-b", happened(number))
        await seal_all(sealer)
        await store.truncate("Account-a", 4, reason="the user asked")
        verification, found = await verified(store, key)
        assert {(each.what, each.stream_id) for each in found} == {(Found.TRUNCATED, "Account-a")}
        assert all("up to version 4, recorded (truncation 1, not sealed yet)" in each.text for each in found)
        assert (verification.verified.truncated, verification.verified.events) == (4, 8)
        await seal_all(sealer)
        verification, found = await verified(store, key)
        assert all("in seal 4" in each.text for each in found)
        assert verification.verified.problems == 0
    mallory = await attacker(url)
    try:
        # Version 5 of the truncated stream, and version 2 of the other.
        await mallory.truncate_without_record("Account-a", 5)
        async with EventStore.open(url) if not url.startswith("sqlite") else store_past_triggers(mallory, url) as again:
            _, found = await verified(again, key)
    finally:
        await mallory.close()
    [problem] = [each for each in found if each.is_problem]
    assert (problem.what, problem.stream_id, problem.version, problem.position) == (
        Found.DELETED,
        "Account-a",
        5,
        9,
    )
    assert "only those up to version 4" in problem.text


def store_past_triggers(mallory: object, url: str) -> EventStore:
    """SQLite's triggers are put back before the file is opened, as somebody would who covers his tracks."""
    for _, statement in mallory._triggers:  # type: ignore[attr-defined]
        mallory._connection.execute(statement)  # type: ignore[attr-defined]
    mallory._triggers = []  # type: ignore[attr-defined]
    return EventStore.open(url)


async def test_what_is_truncated_before_it_is_sealed_is_a_hole(url: str, key: SigningKey) -> None:
    async with EventStore.open(url) as store:
        await store.append("Account-a", happened(1, 2, 3))
        await store.append("Account-b", happened(1))
        await store.truncate("Account-a", 3, reason="test")
        seal = await seal_all(Sealer(store, key))
        assert (seal.statement.count, seal.statement.first) == (1, 1)
        assert seal.statement.removals.count == 1
        verification, found = await verified(store, key)
        assert found == []
        assert (verification.verified.events, verification.verified.truncated) == (1, 0)


async def test_a_damaged_event_is_not_sealed(key: SigningKey, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/own.db"
    async with EventStore.open(url) as store:
        await fill(store, count=5)
        mallory = await attacker(url)
        await mallory.run("UPDATE journal_events SET payload = '{}' WHERE position = 3")
        with pytest.raises(JournalCorrupt, match="damaged"):
            await Sealer(store, key).seal()
        assert await store.newest_seal() is None
        await mallory.close()


async def test_seals_are_never_changed_or_removed_by_mistake(
    key: SigningKey, tmp_path: Path, postgres_url: str
) -> None:
    for url in (f"sqlite:///{tmp_path}/own.db", postgres_url):
        async with EventStore.open(url) as store:
            await fill(store, count=3)
            await seal_all(Sealer(store, key))
    for statement in ("UPDATE journal_seals SET number = 2", "DELETE FROM journal_seals"):
        connection = sqlite3.connect(tmp_path / "own.db")
        with pytest.raises(sqlite3.IntegrityError, match="journal seals are never"):
            connection.execute(statement)
        connection.close()
    for statement in ("UPDATE journal_seals SET number = 2", "DELETE FROM journal_seals", "TRUNCATE journal_seals"):
        with pytest.raises(asyncpg.RestrictViolationError, match="journal seals are never"):
            await execute(postgres_url, statement)


def test_a_private_key_is_its_owners_alone_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    public = generate(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_key(public_file(path)) == public == private_key(path).public
    assert path.read_text() not in repr(private_key(path))
    with pytest.raises(KeyFileError, match="exists"):
        generate(path)
    with pytest.raises(KeyFileError, match="holds a private key"):
        public_key(path)
    with pytest.raises(KeyFileError, match="no private key"):
        public_file(path).chmod(0o600)
        private_key(public_file(path))
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        private_key(path)
    with pytest.raises(KeyFileError, match="cannot be read"):
        private_key(tmp_path / "none.key")


def test_without_the_extra_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'eventstore-actors\[seal\]'") as missing:
        generate(tmp_path / "seal.key")
    assert missing.value.extra == "seal"
    assert not (tmp_path / "seal.key").exists()


async def test_no_truncation_appears_below_one_that_was_seen(postgres_url: str) -> None:
    """Else a seal would go past it, and no seal would ever hold its record."""
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(1))
        await store.append("b", happened(1))
        async with connected(postgres_url) as session, connected(postgres_url) as watcher:
            held = session.transaction()
            await held.start()
            # The first truncation has its number, and cannot remove its event yet.
            await session.execute("SELECT FROM journal_events WHERE position = 1 FOR UPDATE")
            first = asyncio.ensure_future(store.truncate("a", 1, reason="first"))
            await until(lambda: waits(watcher, "locktype <> 'advisory'"))
            second = asyncio.ensure_future(other.truncate("b", 1, reason="second"))

            async def second_is_done_or_waits() -> bool:
                return second.done() or await waits(watcher, "locktype = 'advisory'")

            await until(second_is_done_or_waits)
            assert [removal async for removal in store.removals()] == []
            await held.rollback()
        assert await asyncio.gather(first, second) == [1, 1]
        assert [removal.reason async for removal in store.removals()] == ["first", "second"]


async def waits(watcher: Any, where: str) -> bool:
    return bool(await watcher.fetchval(f"SELECT count(*) FROM pg_locks WHERE NOT granted AND {where}"))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await holds():
            await asyncio.sleep(0.01)
