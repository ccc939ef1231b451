"""A Redis server that dies: nothing acknowledged is lost or doubled, and one that comes back with less is refused."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backends.conformance.events import Happened, collect, happened, numbers, outcome, write
from eventstore import BackendUnavailable, EventStore, JournalLost, OutcomeUnknown
from eventstore.backend import CommandLookup, Load, Owner
from eventstore.codec import new_event_id
from eventstore.schema import upgrade
from eventstore.url import parse_store_url
from tests.backends.redis_help import KEY, admin, backend_of, journal_url, migrated
from tests.servers.proxy import FaultProxy
from tests.servers.redis import Redis


@pytest.fixture
def server() -> Iterator[Redis]:
    with Redis(durable=True) as server:
        yield server


class Crash:
    """Writers that append numbers while the server is killed, and what each was told about every number."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.refused: list[int] = []
        self._next = 0
        self._is_over = False

    async def write(self, stream_id: str) -> None:
        while not self._is_over:
            self._next += 1
            number = self._next
            try:
                await self.store.append(stream_id, [Happened(number=number)])
                self.acknowledged.append(number)
            except OutcomeUnknown:
                self.unknown.append(number)
            except BackendUnavailable:
                self.refused.append(number)
                await asyncio.sleep(0.01)

    async def during(self, server: Redis, crashes: int) -> None:
        async with asyncio.TaskGroup() as writers:
            for n in range(16):
                writers.create_task(self.write(f"s-{n}"))
            for _ in range(crashes):
                before = len(self.acknowledged)
                async with asyncio.timeout(60):
                    while len(self.acknowledged) < before + 50:
                        await asyncio.sleep(0.005)
                server.crash()
                await asyncio.sleep(0.02)
                server.start()
            async with asyncio.timeout(60):
                await self.store.append("end", happened(0))
            self._is_over = True


async def _survives(server: Redis, *, crashes: int) -> None:
    async with EventStore.open(migrated(server, command_timeout=5)) as store:
        crash = Crash(store)
        await crash.during(server, crashes)
    async with EventStore.open(journal_url(server)) as again:
        recorded = [record for record in await collect(again.read_all()) if record.stream_id != "end"]
        stored = Counter(record.json()["number"] for record in recorded)
        assert crash.acknowledged
        assert set(crash.acknowledged) <= stored.keys()
        assert stored.keys() <= {*crash.acknowledged, *crash.unknown}
        assert max(stored.values()) == 1
        positions = [record.position for record in recorded]
        assert positions == sorted(set(positions))
        for n in range(16):
            versions = [record.version for record in await collect(again.read(f"s-{n}"))]
            assert versions == list(range(1, len(versions) + 1))


async def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing_acknowledged(server: Redis):
    await _survives(server, crashes=4)


@pytest.mark.soak
async def test_a_server_that_is_killed_a_hundred_times_loses_and_doubles_nothing_acknowledged(server: Redis):
    await _survives(server, crashes=100)


# Less than was there


class Copy:
    """The server's append-only files as they were."""

    def __init__(self, server: Redis, folder: Path) -> None:
        self._files = server.home / "appendonlydir"
        self._copy = folder / "copy"
        shutil.copytree(self._files, self._copy)

    def restore(self) -> None:
        shutil.rmtree(self._files)
        shutil.copytree(self._copy, self._files)


async def _refuses_everything(store: EventStore, *, reason: str) -> None:
    attempts = (
        lambda: store.append("a", happened(9)),
        lambda: store.append("b", happened(9), expected_version=0),
        lambda: store.claim("a"),
        lambda: backend_of(store).append([[write("a", commands=[outcome("c")])]]),
        lambda: backend_of(store).find_commands([CommandLookup("a", "c")]),
        lambda: _begin_lease(store),
        lambda: store.truncate("a", 1, reason="test"),
        lambda: store.delete_snapshots("a"),
        lambda: store.version("a"),
        lambda: store.load(Load("a")),
        store.read_page,
        lambda: collect(store.read_all(last=1)),
        lambda: collect(store.streams()),
        lambda: store.snapshots("a"),
        store.statistics,
    )
    await asyncio.sleep(0.05)  # The loop learns that its connections have ended.
    for attempt in attempts:
        with pytest.raises(JournalLost, match=reason):
            await attempt()


async def _begin_lease(store: EventStore) -> None:
    lease = backend_of(store).lease(Owner(new_event_id(), "alice", 30.0))
    try:
        await lease.renew(b"{}")
    finally:
        with suppress(JournalLost):
            await lease.end()


async def test_a_server_that_came_back_empty_is_refused():
    with Redis(durable=True, settings={"appendonly": "no"}) as server:
        async with EventStore.open(migrated(server, durability="best-effort")) as store:
            await store.append("a", happened(1))
            server.crash()
            server.start()
            await _refuses_everything(store, reason="no longer holds the journal")
            with admin(server) as client:
                assert client.dbsize() == 0


async def test_a_server_that_came_back_with_another_journal_is_refused():
    with Redis(durable=True, settings={"appendonly": "no"}) as server:
        url = migrated(server, durability="best-effort")
        async with EventStore.open(url) as store:
            await store.append("a", happened(1))
            server.crash()
            server.start()
            await asyncio.to_thread(upgrade, parse_store_url(url))
            async with EventStore.open(url) as other:
                await other.append("a", happened(2, 3))
            await _refuses_everything(store, reason="no longer holds the journal")


async def test_a_server_that_came_back_with_an_older_copy_is_refused(server: Redis, tmp_path: Path):
    async with EventStore.open(migrated(server)) as store:
        await store.append("a", happened(1))
        older = Copy(server, tmp_path)
        await store.append("a", happened(2))
        server.crash()
        older.restore()
        server.start()
        await _refuses_everything(store, reason="the log ends at 1, 2 was seen")
    # A new store takes the journal as it is.
    async with EventStore.open(journal_url(server)) as store:
        assert await numbers(store.read("a")) == [1]


async def test_an_older_copy_is_refused_when_others_have_appended_to_it_meanwhile(server: Redis, tmp_path: Path):
    async with EventStore.open(migrated(server)) as store:
        await store.append("a", happened(1))
        older = Copy(server, tmp_path)
        await store.append("a", happened(2))
        server.crash()
        older.restore()
        server.start()
        async with EventStore.open(journal_url(server)) as other:
            await other.append("a", happened(3, 4, 5))
        await _refuses_everything(store, reason="another event stands at position 2")


async def test_a_store_that_only_read_what_was_lost_refuses_too(server: Redis, tmp_path: Path):
    url = migrated(server)
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        await other.append("a", happened(1))
        older = Copy(server, tmp_path)
        await other.append("a", happened(2))
        assert await numbers(store.read_all()) == [1, 2]
        server.crash()
        older.restore()
        server.start()
        await _refuses_everything(store, reason="has lost events")


async def test_an_append_only_file_that_was_cut_off_is_refused(server: Redis):
    async with EventStore.open(migrated(server)) as store:
        await store.append("a", happened(1))
        files = server.home / "appendonlydir"
        [increment] = files.glob("*.incr.aof")
        size = increment.stat().st_size
        await store.append("a", happened(2))
        server.crash()
        # In the middle of the second append: the server drops it whole.
        with increment.open("r+b") as file:
            file.truncate(size + 100)
        server.start()
        await _refuses_everything(store, reason="has lost events")
    async with EventStore.open(journal_url(server)) as store:
        assert await numbers(store.read_all()) == [1]
        assert await store.version("a") == 1


async def test_a_replica_that_lagged_and_took_over_is_refused(server: Redis):
    with Redis(durable=True) as replica:
        async with EventStore.open(migrated(server)) as store, FaultProxy(server.host, server.port) as proxy:
            await store.append("a", happened(1))
            with admin(server) as client:
                client.config_set("repl-diskless-sync-delay", "0")
            with admin(replica) as client:
                client.replicaof(proxy.host, str(proxy.port))
                async with asyncio.timeout(20):
                    while client.hget(KEY, "position") != b"1":
                        await asyncio.sleep(0.05)
            proxy.stall()
            await store.append("a", happened(2))
            server.crash()
            with admin(replica) as client:
                client.replicaof("NO", "ONE")
            # What stands before a set of servers would lead the store to the new primary.
            object.__setattr__(backend_of(store)._target, "port", replica.port)
            await _refuses_everything(store, reason="has lost events")


async def test_a_store_whose_last_event_was_truncated_goes_on(server: Redis):
    url = migrated(server)
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        await store.append("a", happened(1, 2))
        await other.truncate("a", 2, reason="test")
        assert await store.version("a") == 2
        await store.append("a", happened(3), expected_version=2)
        assert await numbers(store.read_all()) == [3]
