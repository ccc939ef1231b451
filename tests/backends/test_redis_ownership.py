"""Ownership on a Redis server: leases on connections of their own, and epochs that outlive the server's process."""

from __future__ import annotations

import asyncio
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator

import pytest
import redis

from backends.conformance.events import happened, numbers, outcome, write
from backends.conformance.leases import Leases
from backends.redis_journal import RedisJournal
from backends.redis_ownership import RedisLease
from eventstore import BackendUnavailable, EventStore, FencedError, JournalCorrupt, JournalLost, OutcomeUnknown
from eventstore.backend import Claim, CommandLookup, Holder, Owner
from eventstore.codec import new_event_id
from eventstore.errors import LeaseLost, StoreClosed
from eventstore.snapshots import new_snapshot
from tests.backends.redis_help import KEY, admin, backend_of, journal_url, migrated
from tests.patience import opened_patiently, patiently
from tests.servers.proxy import FaultProxy
from tests.servers.redis import Redis

DAY = 24 * 3600


@pytest.fixture
def url(server: Redis, client: redis.Redis) -> str:
    return migrated(server)


@pytest.fixture
async def leases() -> AsyncIterator[Leases]:
    leases = Leases()
    try:
        yield leases
    finally:
        await leases.close()


def shift(client: redis.Redis, owner: bytes, seconds: float) -> None:
    """Let a lease run out later, or earlier, as if the server's clock had been set."""
    lease = struct.Struct(">7s7sq")
    packed = client.hget(f"{KEY}:owners", owner)
    assert isinstance(packed, bytes)
    renewals, duration, ends_at = lease.unpack_from(packed)
    moved = lease.pack(renewals, duration, ends_at + round(seconds * 1_000_000))
    client.hset(f"{KEY}:owners", owner, moved + packed[lease.size :])


def clients_of(client: redis.Redis) -> int:
    return len(client.client_list())


# Leases


async def test_a_lease_has_a_connection_of_its_own_and_lets_go_of_it(url: str, client: redis.Redis, leases: Leases):
    async with EventStore.open(url) as store:
        before = clients_of(client)
        lease = await leases.begin(backend_of(store))
        assert clients_of(client) == before + 1
        await lease.renew()
        assert clients_of(client) == before + 1
        await lease.end()
        async with asyncio.timeout(20):
            while clients_of(client) > before:
                await asyncio.sleep(0.01)


async def test_a_lease_that_was_not_renewed_connects_to_nothing(url: str, client: redis.Redis, leases: Leases):
    async with EventStore.open(url) as store:
        before = client.info("stats")["total_connections_received"]
        lease = await leases.make(backend_of(store), Owner(new_event_id(), "alice", 30.0))
        await lease.end()
        assert client.info("stats")["total_connections_received"] == before


async def test_a_lease_whose_connection_was_killed_is_renewed_on_a_new_one(
    url: str, client: redis.Redis, leases: Leases
):
    async with EventStore.open(url) as store:
        lease = await leases.begin(backend_of(store))
        client.execute_command("CLIENT KILL TYPE normal SKIPME yes")
        await asyncio.sleep(0.05)  # The other thread's loop learns of it.
        await lease.renew()
        (owner,) = await backend_of(store).owners()
        assert owner.renewals == 2


async def test_a_lease_outlives_the_store_that_made_it(url: str, leases: Leases):
    # Whoever shuts down releases its streams when its last appends are done, and its lease last.
    async with EventStore.open(url) as store:
        lease = await leases.begin(backend_of(store))
    await lease.renew()
    await lease.end()
    async with EventStore.open(url) as store:
        assert await backend_of(store).owners() == []


async def test_a_renewal_whose_reply_is_lost_raises_and_the_lease_can_be_ended(server: Redis, url: str):
    proxied = FaultProxy(server.host, server.port)
    async with proxied as proxy, EventStore.open(journal_url(server, port=proxy.port)) as store:
        # In this loop, which is the proxy's.
        lease, other = (backend_of(store).lease(Owner(new_event_id(), name, 30.0)) for name in ("alice", "bob"))
        # Now the server knows the scripts: else what is lost is that it does not.
        await other.renew(b"{}")
        await other.end()
        proxy.lose_reply(to=b"EVAL")
        with pytest.raises(OutcomeUnknown):
            await lease.renew(b"{}")
        assert len(await backend_of(store).owners()) == 1
        await lease.end()
        assert await backend_of(store).owners() == []


async def test_a_renewal_that_is_cancelled_closes_its_connection(server: Redis, url: str, client: redis.Redis):
    proxied = FaultProxy(server.host, server.port)
    async with proxied as proxy, EventStore.open(journal_url(server, port=proxy.port)) as store:
        lease = backend_of(store).lease(Owner(new_event_id(), "alice", 30.0))
        await lease.renew(b"{}")
        proxy.stall()
        before = proxy.accepted
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await lease.renew(b"{}")
        proxy.resume()
        await lease.renew(b"{}")
        assert proxy.accepted == before + 1
        await lease.end()


async def test_a_lease_that_cannot_be_ended_lets_go_of_its_connection(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        lease = backend_of(store).lease(Owner(new_event_id(), "alice", 30.0))
        await lease.renew(b"{}")
        before = clients_of(client)
        client.hset(KEY, "revision", "9999")
        with pytest.raises(Exception, match="migrated"):
            await lease.end()
        client.hset(KEY, "revision", "0001")
        async with asyncio.timeout(20):
            while clients_of(client) == before:
                await asyncio.sleep(0.01)


def test_what_a_store_has_seen_is_one_event_for_whoever_asks_from_another_thread():
    # A lease does, and a position with the id of another event would look like a journal that was lost.
    journal = RedisJournal(b"{journal}", b"identity")
    mixed: list[tuple[object, object]] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            _, _, position, event_id = journal.arguments
            if event_id != (b"%d" % position if position else b""):
                mixed.append((position, event_id))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for position in range(1, 50_000):
            journal.saw(position, b"%d" % position)
    finally:
        is_over.set()
        asking.join()
        sys.setswitchinterval(interval)
    assert mixed == []


async def test_a_lease_of_a_store_that_is_closed_or_forked_is_refused(url: str):
    store = EventStore.open(url)
    owner = Owner(new_event_id(), "alice", 30.0)
    async with store:
        backend = backend_of(store)
        backend._pid -= 1  # What the child of a fork would see.
        with pytest.raises(StoreClosed, match="fork"):
            backend.lease(owner)
        backend._pid += 1
        assert isinstance(backend.lease(owner), RedisLease)
    with pytest.raises(StoreClosed, match="not open"):
        backend.lease(owner)


async def test_owners_whose_lease_ran_out_more_than_a_day_ago_are_removed_when_a_lease_begins(
    url: str, client: redis.Redis, leases: Leases
):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        yesterday = await leases.begin(backend, "yesterday")
        today = await leases.begin(backend, "today")
        await yesterday.granted(backend, "a")
        shift(client, yesterday.id, -DAY - 100)
        shift(client, today.id, -DAY + 100)
        await today.renew()  # It goes on, it does not begin.
        shift(client, today.id, -DAY + 100)
        assert [owner.name for owner in await backend.owners()] == ["today", "yesterday"]
        await leases.begin(backend, "new")
        assert [owner.name for owner in await backend.owners()] == ["new", "today"]
        # What it held can be claimed, and shows until then.
        assert [held.stream_id for held in await backend.holdings(after="", limit=10)] == ["a"]


async def test_a_lease_that_a_clock_set_back_keeps_running_is_over_for_who_has_watched_it(
    url: str, client: redis.Redis, leases: Leases
):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        stopped, waiting = await leases.begin(backend, "stopped"), await leases.begin(backend, "waiting")
        epoch = await stopped.granted(backend, "a")
        shift(client, stopped.id, 3600)
        held = await waiting.claim(backend, "a")
        assert isinstance(held, Holder)
        assert held.remaining > 3000
        assert isinstance(await waiting.claim(backend, "a", lapsed=held.renewals - 1), Holder)
        assert await waiting.granted(backend, "a", lapsed=held.renewals) == epoch + 1


# Claims


async def test_thousands_of_streams_are_claimed_listed_and_released_in_one_call_each(
    url: str, client: redis.Redis, leases: Leases
):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        lease = await leases.begin(backend)
        claims = [Claim(f"s-{n:04}", lease.id) for n in range(5000)]
        assert await backend.claim(claims) == [1] * 5000
        holdings = await backend.holdings(after="", limit=6000)
        assert [held.stream_id for held in holdings] == [claim.stream_id for claim in claims]
        await backend.release(lease.id, {held.stream_id: held.epoch for held in holdings})
        assert await backend.holdings(after="", limit=1) == []
        assert client.exists(f"{KEY}:holders", f"{KEY}:held") == 0
        assert await backend.claim([Claim(claim.stream_id) for claim in claims]) == [2] * 5000


async def test_claims_of_one_stream_in_one_call_follow_each_other(url: str, leases: Leases):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        one, other = await leases.begin(backend, "one"), await leases.begin(backend, "other")
        claims = [Claim("a", one.id), Claim("a", other.id), Claim("a", one.id), Claim("a"), Claim("a", other.id)]
        first, held, second, third, fourth = await backend.claim(claims)
        assert (first, second, third, fourth) == (1, 2, 3, 4)
        assert isinstance(held, Holder)
        assert held.name == "one"
        assert [each.owner for each in await backend.holdings(after="", limit=9)] == [other.id]


async def test_streams_that_begin_with_a_claim_are_kept_apart_from_those_that_begin_otherwise(url: str):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await store.append("first", happened(0))
        await backend.claim([Claim("claimed"), Claim("claimed too")])
        await store.append("appended", happened(1))
        await backend.append([[write("commanded", commands=[outcome("c")])]])
        await store.save_snapshot(new_snapshot("kept", 1, "f", b"{}"))
        for n, stream_id in enumerate(("claimed", "claimed too", "appended", "commanded", "kept")):
            await store.append(stream_id, happened(10 + n))
        assert await numbers(store.read_all()) == [0, 1, 10, 11, 12, 13, 14]
        assert await numbers(store.read("appended")) == [1, 12]
        assert await numbers(store.read("claimed too")) == [11]


async def test_of_many_claims_none_is_granted_if_one_owners_lease_does_not_run(url: str, leases: Leases):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        lease = await leases.begin(backend)
        with pytest.raises(LeaseLost):
            await backend.claim([Claim("a"), Claim("b", lease.id), Claim("c", new_event_id())])
        assert await backend.claim([Claim("a"), Claim("b", lease.id), Claim("c")]) == [1, 1, 1]


async def test_epochs_stay_when_everything_of_the_stream_was_removed(url: str):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        epochs = [await store.claim("a") for _ in range(3)]
        await store.append("a", happened(1, 2))
        await store.save_snapshot(new_snapshot("a", 2, "f", b"{}"))
        await store.truncate("a", 2, reason="test")
        await store.delete_snapshots("a")
        assert await store.claim("a") == epochs[-1] + 1
        [refused] = await backend.append([[write("a", b"3", epoch=epochs[-1])]])
        assert isinstance(refused, FencedError)


async def test_a_stream_that_is_held_without_an_owner_is_noticed(url: str, client: redis.Redis, leases: Leases):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await (await leases.begin(backend)).granted(backend, "a")
        client.delete(f"{KEY}:holders")
        with pytest.raises(JournalCorrupt, match="no owner"):
            await backend.holdings(after="", limit=10)


# A server that fails


async def test_a_server_that_was_started_again_knows_epochs_owners_and_holdings(own_redis: Redis, leases: Leases):
    async with EventStore.open(migrated(own_redis)) as store:
        backend = backend_of(store)
        lease, other = await leases.begin(backend, report=b'{"n":1}'), await leases.begin(backend, "bob")
        epoch = await lease.granted(backend, "a")
        own_redis.crash()
        own_redis.start()
        await asyncio.sleep(0.05)  # The loops learn that their connections have ended.
        found = [(owner.name, owner.report) for owner in await backend.owners()]
        assert found == [("alice", b'{"n":1}'), ("bob", b"{}")]
        assert isinstance(await other.claim(backend, "a"), Holder)
        [held] = await backend.holdings(after="", limit=10)
        assert held == ("a", epoch, lease.id)
        await lease.renew()
        assert await lease.granted(backend, "a") == epoch + 1


async def test_a_server_that_came_back_empty_renews_claims_and_finds_nothing():
    with Redis(durable=True, settings={"appendonly": "no"}) as server:
        async with EventStore.open(migrated(server, durability="best-effort")) as store:
            backend = backend_of(store)
            owner = Owner(new_event_id(), "alice", 30.0)
            lease = backend.lease(owner)
            await lease.renew(b"{}")
            server.crash()
            server.start()
            await asyncio.sleep(0.05)  # The loop learns that its connections have ended.
            attempts = (
                lambda: lease.renew(b"{}"),
                lambda: backend.claim([Claim("a", owner.id)]),
                lambda: backend.release(owner.id, {"a": 1}),
                lambda: backend.find_commands([CommandLookup("a", "c")]),
                lambda: backend.forget_commands("a", keep=0, before=None),
                backend.owners,
                lambda: backend.holdings(after="", limit=10),
                lease.end,
            )
            for attempt in attempts:
                with pytest.raises(JournalLost, match="no longer holds the journal"):
                    await attempt()
            with admin(server) as client:
                assert client.dbsize() == 0


async def test_a_server_that_does_not_answer_holds_up_a_renewal_no_longer_than_the_command_timeout(
    server: Redis, url: str
):
    async with FaultProxy(server.host, server.port) as proxy:
        slow = journal_url(server, port=proxy.port, command_timeout=0.3, connect_timeout=0.3)
        async with opened_patiently(slow) as store:
            lease = backend_of(store).lease(Owner(new_event_id(), "alice", 30.0))
            await patiently(lambda: lease.renew(b"{}"))
            proxy.stall()
            started = time.monotonic()
            with pytest.raises((OutcomeUnknown, BackendUnavailable)):
                await lease.renew(b"{}")
            assert time.monotonic() - started < 20
            proxy.resume()
            await patiently(lease.end)
