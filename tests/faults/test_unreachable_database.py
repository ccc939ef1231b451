"""A store whose database goes away and comes back: quick refusals meanwhile, and service again without a restart."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from actors import ActorSystem
from backends.conformance.events import Noted, collect, happened, numbers
from eventstore import (
    BackendUnavailable,
    CircuitOpen,
    EventStore,
    Snapshot,
    StorageFull,
    StoreBusy,
    schema,
)
from eventstore.backend import Claim, CommandLookup, Load
from eventstore.contract.audit_query import AuditQuery
from eventstore.url import parse_store_url
from tests.backends.postgres_help import connected, fetch, proxy_to, until, via
from tests.backends.redis_help import admin, migrated
from tests.faults.vault import Deposit, Deposited, GetTotal, Record, Vault, deposit, keep_depositing
from tests.faults.verdict import verdict
from tests.servers.proxy import FaultProxy
from tests.servers.redis import Redis

A_MOMENT = 0.05
# It is tried again at least every second. Whoever waits longer than this waits for something else.
BACK_WITHIN = 20.0


@pytest_asyncio.fixture
async def store(proxy: FaultProxy, url: str) -> AsyncIterator[EventStore]:
    async with EventStore.open(via(proxy, url, command_timeout=20, connect_timeout=20)) as store:
        await store.append("a", happened(1))
        await collect(store.read("a"))
        yield store


def go_down(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset()


async def come_back(proxy: FaultProxy) -> None:
    await proxy.accept()


async def opened(store: EventStore) -> CircuitOpen:
    """Call until calls are refused without being tried."""
    async with asyncio.timeout(20):
        while True:
            try:
                await store.version("a")
            except CircuitOpen as refused:
                return refused
            except BackendUnavailable:
                pass


def snapshot() -> Snapshot:
    return Snapshot(stream_id="a", version=1, fingerprint="f", data=b"{}", recorded_at=datetime.now(UTC))


CALLS: dict[str, Callable[[EventStore], Awaitable[object]]] = {
    "append": lambda store: store.append("b", happened(1)),
    "read": lambda store: collect(store.read("a")),
    "version": lambda store: store.version("a"),
    "read_all": lambda store: collect(store.read_all()),
    "read_all, the last": lambda store: collect(store.read_all(last=3)),
    "read_page": lambda store: store.read_page(),
    "streams": lambda store: collect(store.streams()),
    "load": lambda store: store.load(Load("a")),
    "audit_page": lambda store: store.audit_page(AuditQuery()),
    "audit_totals": lambda store: store.audit_totals(AuditQuery(), top=1),
    "moved": lambda store: store.moved(after=0),
    "find_command": lambda store: store.find_command(CommandLookup("a", "1")),
    "forget_commands": lambda store: store.forget_commands("a", keep=1),
    "claim": lambda store: store.claim("a"),
    "claim_as": lambda store: store.claim_as(Claim("a", bytes(16))),
    "release": lambda store: store.release(bytes(16), {"a": 1}),
    "owners": lambda store: store.owners(),
    "holdings": lambda store: collect(store.holdings()),
    "save_snapshot": lambda store: store.save_snapshot(snapshot()),
    "snapshots": lambda store: store.snapshots("a"),
    "delete_snapshots": lambda store: store.delete_snapshots("a"),
    "truncate": lambda store: store.truncate("a", 1, reason="test"),
    "statistics": lambda store: store.statistics(),
}


async def test_while_it_is_down_every_call_is_refused_at_once(store: EventStore, proxy: FaultProxy) -> None:
    go_down(proxy)
    await opened(store)
    for name, call in CALLS.items():
        # Until one is refused without being tried: now and then it is the probe.
        for _ in range(20):
            with pytest.raises(BackendUnavailable) as refused:
                await call(store)
            if isinstance(refused.value, CircuitOpen):
                break
        else:
            pytest.fail(f"{name} does not go through the breaker")


async def test_a_call_of_every_kind_closes_it_again(store: EventStore, proxy: FaultProxy) -> None:
    for name in ("append", "version", "load", "find_command"):
        go_down(proxy)
        await opened(store)
        await proxy.accept()
        await until(lambda: store.commits.refusal() is None)
        await CALLS[name](store)
        # Nothing is refused from here on.
        await asyncio.gather(*(store.version("a") for _ in range(20)), store.append("b", happened(1)))


async def half_open(store: EventStore, proxy: FaultProxy) -> int:
    """The next call is the probe, and hangs until the proxy resumes. Returns how many connections there were before."""
    go_down(proxy)
    await opened(store)
    proxy.stall()
    await proxy.accept()
    await until(lambda: store.commits.refusal() is None)
    before = proxy.accepted
    # A probe that hangs lets another one through after a pause, which a busy machine may take to do anything.
    now = time.monotonic()
    store.commits.breaker._clock = lambda: now
    return before


async def test_half_open_it_lets_exactly_one_call_through(store: EventStore, proxy: FaultProxy) -> None:
    before = await half_open(store, proxy)
    calls = [asyncio.create_task(store.version("a")) for _ in range(50)]
    await until(lambda: proxy.accepted > before)
    done, waiting = await asyncio.wait(calls, timeout=A_MOMENT)
    assert {type(call.exception()) for call in done} == {CircuitOpen}
    assert len(waiting) == 1
    assert proxy.accepted - before == 1
    proxy.resume()
    assert await asyncio.gather(*waiting) == [1]
    assert await asyncio.gather(*(store.version("a") for _ in range(50))) == [1] * 50


async def test_half_open_it_lets_exactly_one_group_of_recoveries_through(store: EventStore, proxy: FaultProxy) -> None:
    before = await half_open(store, proxy)
    crowd = [asyncio.create_task(store.load(Load("a"))) for _ in range(50)]
    await until(lambda: proxy.accepted > before)
    late = [asyncio.create_task(store.load(Load("a"))) for _ in range(50)]
    await asyncio.wait(late)
    assert {type(load.exception()) for load in late} == {CircuitOpen}
    assert proxy.accepted - before == 1
    proxy.resume()
    assert [loaded.version for loaded in await asyncio.gather(*crowd)] == [1] * 50


async def test_thousands_of_appends_to_a_database_that_is_down_leave_nothing_in_memory(
    store: EventStore, proxy: FaultProxy
) -> None:
    async def append_many(rounds: int) -> None:
        for _ in range(rounds):
            outcomes = await asyncio.gather(
                *(store.append(f"s-{n}", [Noted(text="x" * 1000)]) for n in range(200)),
                return_exceptions=True,
            )
            assert all(isinstance(outcome, BackendUnavailable) for outcome in outcomes)

    go_down(proxy)
    await opened(store)
    await append_many(2)
    tracemalloc.start()
    try:
        await append_many(1)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        await append_many(30)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The events would be six megabytes.
    assert after - before < 500_000
    assert peak - before < 3_000_000
    assert not store.commits.is_full
    async with asyncio.timeout(20):
        await store.commits.drained()


async def test_a_store_over_a_database_that_is_down_closes_at_once(store: EventStore, proxy: FaultProxy) -> None:
    go_down(proxy)
    await opened(store)
    async with asyncio.timeout(10):
        await store.close()


async def test_a_subscription_goes_on_when_the_database_is_back(store: EventStore, proxy: FaultProxy) -> None:
    found: set[int] = set()

    async def subscribe() -> None:
        async for recorded in store.subscribe(poll_seconds=0.1):
            found.add(recorded.version)

    subscribing = asyncio.create_task(subscribe())
    await until(lambda: found == {1})
    go_down(proxy)
    await opened(store)
    await asyncio.sleep(0.5)
    await proxy.accept()
    await until(lambda: store.commits.refusal() is None)
    await store.append("a", happened(2))
    await until(lambda: found == {1, 2})
    subscribing.cancel()
    await asyncio.wait([subscribing])


# Actors


async def keep_asking(system: ActorSystem, name: str, served_at: dict[str, float]) -> None:
    while True:
        try:
            await system.ref(Vault, name).ask(Deposit(id=name))
        except BackendUnavailable:
            await asyncio.sleep(0.02)
        else:
            served_at[name] = time.monotonic()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("down_seconds", [0.5, 3.0])
async def test_actors_serve_again_by_themselves_without_a_restart(
    store: EventStore, proxy: FaultProxy, down_seconds: float
) -> None:
    served_at: dict[str, float] = {}
    names = [str(number) for number in range(60)]
    async with ActorSystem(store) as system:
        asking = [asyncio.create_task(keep_asking(system, name, served_at)) for name in names]
        await until(lambda: len(served_at) == len(names))
        go_down(proxy)
        await asyncio.sleep(down_seconds)
        served_at.clear()
        back = time.monotonic()
        await proxy.accept()
        await until(lambda: len(served_at) == len(names))
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        assert max(served_at.values()) - back < BACK_WITHIN


@pytest.mark.parametrize("kind", ["postgres", "redis"])
async def test_actors_serve_again_by_themselves_after_their_server_was_killed(
    request: pytest.FixtureRequest, kind: str
) -> None:
    server = request.getfixturevalue(f"own_{kind}")
    schema.upgrade(parse_store_url(server.url()))
    served_at: dict[str, float] = {}
    names = [str(number) for number in range(60)]
    async with EventStore.open(server.url()) as store, ActorSystem(store) as system:
        asking = [asyncio.create_task(keep_asking(system, name, served_at)) for name in names]
        await until(lambda: len(served_at) == len(names))
        server.crash()
        await asyncio.sleep(1)
        served_at.clear()
        server.start()
        back = time.monotonic()
        await until(lambda: len(served_at) == len(names))
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    assert max(served_at.values()) - back < BACK_WITHIN


# A database that serves, though not everything


async def test_a_server_without_room_is_asked_every_time_and_reads_go_on(own_redis: Redis) -> None:
    async with EventStore.open(migrated(own_redis)) as store:
        await store.append("a", happened(1))
        with admin(own_redis) as client:
            client.config_set("maxmemory", "100kb")
            for number in range(20):
                with pytest.raises(StorageFull):
                    await store.append("a", happened(number))
            assert await numbers(store.read("a")) == [1]
            client.config_set("maxmemory", "0")
        assert (await store.append("a", happened(2))).versions == (2,)


async def test_a_file_that_another_process_keeps_locked_is_tried_every_time_and_reads_go_on(tmp_path: Path) -> None:
    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db?busy_timeout=0.01") as store:
        await store.append("a", happened(1))
        with closing(sqlite3.connect(tmp_path / "journal.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for number in range(20):
                with pytest.raises(StoreBusy):
                    await store.append("a", happened(number))
            assert await numbers(store.read("a")) == [1]
            other.execute("ROLLBACK")
        assert (await store.append("a", happened(2))).versions == (2,)


# An append whose outcome is unknown


WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"


async def test_a_zombie_commit_is_found_out_and_meanwhile_only_those_behind_it_wait(postgres_url: str) -> None:
    async with (
        proxy_to(postgres_url) as proxy,
        EventStore.open(via(proxy, postgres_url, command_timeout=20)) as store,
        ActorSystem(store) as system,
    ):
        vault, other = system.ref(Vault, "a"), system.ref(Vault, "b")
        await vault.ask(Deposit(id="0"))
        await other.ask(Deposit(id="other 0"))

        async def waiting_sessions(count: int) -> None:
            async with asyncio.timeout(20):
                while len(await fetch(postgres_url, WAITING)) < count:
                    await asyncio.sleep(0.02)

        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams WHERE stream_id = 'vault-a' FOR UPDATE")
            first = asyncio.create_task(vault.ask(Deposit(id="1")))
            await waiting_sessions(1)
            second = asyncio.create_task(vault.ask(Deposit(id="2")))
            alone = asyncio.create_task(store.append("alone", happened(1)))
            await asyncio.sleep(0)
            # The server does not notice, and goes on with the append whose client is gone.
            proxy.reset()
            await waiting_sessions(2)
            with pytest.raises(CircuitOpen):
                await alone
            with pytest.raises(CircuitOpen):
                await other.ask(Deposit(id="other 1"))
            with pytest.raises(CircuitOpen):
                await store.append("alone", happened(2))
            # Who only looks is answered from memory.
            assert await other.ask(GetTotal()) == (1, 1)
            assert not first.done()
            assert not second.done()
            await holder.execute("ROLLBACK")
            async with asyncio.timeout(BACK_WITHIN):
                assert await first == (2, 2)
                assert await second == (3, 3)
                assert await other.ask(Deposit(id="other 2")) == (2, 2)
        stored = [store.decode(recorded) async for recorded in store.read("vault-a")]
        assert [event.id for event in stored if isinstance(event, Deposited)] == ["0", "1", "2"]
        assert await store.version("alone") == 0


async def test_an_append_that_a_zombie_has_stored_is_told_so(postgres_url: str) -> None:
    async with (
        proxy_to(postgres_url) as proxy,
        EventStore.open(via(proxy, postgres_url, command_timeout=20)) as store,
    ):
        await store.append("a", happened(1))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams FOR UPDATE")
            appending = asyncio.create_task(store.append("a", happened(2), expected_version=1))
            async with asyncio.timeout(20):
                while not await fetch(postgres_url, WAITING):
                    await asyncio.sleep(0.02)
            proxy.reset()
            async with asyncio.timeout(20):
                while len(await fetch(postgres_url, WAITING)) < 2:
                    await asyncio.sleep(0.02)
            await holder.execute("ROLLBACK")
        appended = await appending
        assert (appended.versions, appended.is_duplicate) == ((2,), True)
        assert await numbers(store.read("a")) == [1, 2]


async def test_appends_in_every_phase_of_an_outage_are_stored_once_or_not_at_all(proxy: FaultProxy, url: str) -> None:
    # Black holes and refusals in turn: what is refused is not stored, what is acknowledged is, and all in order.
    # Those whose append is in flight wait for its outcome, so one who asks later, of an actor in memory, is refused.
    lines: list[str] = []
    distant = via(proxy, url, command_timeout=1, connect_timeout=1)
    async with EventStore.open(distant) as store, ActorSystem(store, ask_timeout=60) as system:
        late = system.ref(Vault, "late")
        await deposit(late, Deposit(id="late"), lines.append)
        depositing = asyncio.create_task(keep_depositing(system, ("a", "b", "c"), "n", lines.append))
        for turn in range(2):
            for down, up in ((go_down, come_back), (FaultProxy.stall, _resume)):
                await asyncio.sleep(0.3)
                down(proxy)
                await until(lambda: store.commits.refusal() is not None)
                await deposit(late, Deposit(id=f"late/{down.__name__}/{turn}"), lines.append)
                acknowledged = sum(line.startswith("ack") for line in lines)
                await up(proxy)
                await until(lambda: sum(line.startswith("ack") for line in lines) >= acknowledged + 20)  # noqa: B023
        depositing.cancel()
        await asyncio.wait([depositing])
    record = Record()
    record.read("\n".join(lines))
    assert "CircuitOpen" in record.refused.values()
    assert await asyncio.to_thread(verdict, url, record) == []


async def _resume(proxy: FaultProxy) -> None:
    proxy.resume()


async def test_a_refusal_shows_no_password(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    parts = urlsplit(postgres_url)
    async with proxy_to(postgres_url) as proxy:
        distant = urlsplit(via(proxy, postgres_url))
        url = distant._replace(netloc=f"{parts.username}:s3cr3t@{proxy.host}:{proxy.port}").geturl()
        async with EventStore.open(url) as store:
            go_down(proxy)
            refused = await opened(store)
            with pytest.raises(CircuitOpen) as append_refused:
                await store.append("a", happened(1))
    for text in (str(refused), repr(refused), str(append_refused.value), caplog.text):
        assert "s3cr3t" not in text
