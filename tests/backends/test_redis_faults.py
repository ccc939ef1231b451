"""A Redis server, or the way to it, that fails: what the caller is told, and what is stored then."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from backends import redis_listener
from backends.conformance.events import collect, happened, numbers, write
from backends.redis_connection import RedisConnection
from backends.redis_url import parse_redis_url
from eventstore import BackendUnavailable, EventStore, OutcomeUnknown, StorageFull
from eventstore.backend import Appended, EventFilter, Load, Loaded
from eventstore.calls.appending import Appending
from eventstore.errors import ConnectionsBusy, StoreBusy
from eventstore.schema import upgrade
from eventstore.url import parse_store_url
from tests.backends.redis_help import KEY, admin, backend_of, journal_url, migrated, scripts_run
from tests.patience import opened_patiently, patiently
from tests.servers.proxy import FaultProxy
from tests.servers.redis import Redis


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    """One for all tests here: each empties it, and leaves it as it was."""
    with Redis(durable=True) as server:
        yield server


@pytest.fixture
def url(server: Redis) -> str:
    with admin(server) as client:
        client.flushall()
    return migrated(server)


@pytest.fixture
async def proxy(server: Redis) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port) as proxy:
        yield proxy


# Replies that do not come


async def test_an_append_whose_reply_is_lost_is_sent_once_and_its_outcome_is_unknown(
    server: Redis, url: str, proxy: FaultProxy
):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(1))  # Now the server knows the script.
        with admin(server) as client:
            before = scripts_run(client)
            proxy.lose_reply(to=b"EVALSHA")
            with pytest.raises(OutcomeUnknown):
                await backend_of(store).append([[write("a", b"2")]])
            assert proxy.lost_replies == 1
            assert scripts_run(client) == before + 1
        assert [record.payload for record in await collect(store.read("a"))][1:] == [b"2"]


async def test_an_append_whose_reply_is_lost_is_stored_once_and_acknowledged(
    server: Redis, url: str, proxy: FaultProxy
):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(1))
        proxy.lose_reply(to=b"EVALSHA")
        again = await store.append("a", happened(2), expected_version=1)
        assert proxy.lost_replies == 1
        assert again == Appended(2, (2,), is_duplicate=True)
        assert await numbers(store.read_all()) == [1, 2]


async def test_two_groups_whose_connection_is_lost_are_both_unknown_and_stored_once_each(
    server: Redis, url: str, proxy: FaultProxy
):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(1))
        backend = backend_of(store)
        groups = [[[write("a", b"2", expected=1)]], [[write("b", b"1", expected=0)]]]
        connections = proxy.accepted
        proxy.lose_reply(to=b"EVALSHA")
        first, second = (backend.append(group) for group in groups)
        assert isinstance(first, Appending)
        assert first.may_be_followed
        lost = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(error) for error in lost] == [OutcomeUnknown] * 2
        # On the same connection: the second was sent before the first had its reply.
        assert proxy.accepted == connections
        for group in groups:
            await patiently(lambda group=group: backend.append(group))
        assert [record.payload for record in await collect(store.read("a"))][1:] == [b"2"]
        assert [record.payload for record in await collect(store.read("b"))] == [b"1"]


async def test_two_groups_on_a_server_that_does_not_answer_are_unknown_in_time(
    server: Redis, url: str, proxy: FaultProxy
):
    async with opened_patiently(journal_url(server, port=proxy.port, command_timeout=0.3)) as store:
        await patiently(lambda: store.append("a", happened(1)))
        backend = backend_of(store)
        await patiently(lambda: backend.append([[write("c", b"1")]]))
        proxy.stall()
        started = time.monotonic()
        both = (backend.append([[write(stream_id, b"2")]]) for stream_id in ("a", "b"))
        lost = await asyncio.gather(*both, return_exceptions=True)
        assert [type(error) for error in lost] == [OutcomeUnknown] * 2
        assert time.monotonic() - started < 20
        proxy.resume()
        await patiently(lambda: store.append("d", happened(1)))


async def test_what_was_not_sent_yet_does_not_keep_a_connection_that_is_given_up(
    server: Redis, url: str, proxy: FaultProxy
):
    large = b'"' + b"x" * (16 * 1024 * 1024) + b'"'
    async with opened_patiently(journal_url(server, port=proxy.port, command_timeout=0.5)) as store:
        await patiently(lambda: store.append("a", happened(1)))
        proxy.stall()
        before = _sockets()
        with pytest.raises(OutcomeUnknown):
            await backend_of(store).append([[write("a", large)]])
        async with asyncio.timeout(20):
            while _sockets() >= before:
                await asyncio.sleep(0.01)


def _sockets() -> int:
    """How many this process has."""
    links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.lexists(link))


async def test_a_backend_that_is_closed_waits_for_the_groups_that_are_under_way(
    server: Redis, url: str, proxy: FaultProxy
):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(1))
        backend = backend_of(store)
        proxy.latency = 0.05
        appends = [asyncio.ensure_future(backend.append([[write(stream_id, b"1")]])) for stream_id in ("b", "c")]
        await backend.close()
        assert [append.result()[0] for append in appends] == [Appended(2, (1,)), Appended(3, (1,))]


async def test_a_claim_waits_for_the_groups_that_are_under_way(server: Redis, url: str, proxy: FaultProxy):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(1))
        proxy.latency = 0.05
        backend = backend_of(store)
        appends = [asyncio.ensure_future(backend.append([[write(stream_id, b"1")]])) for stream_id in ("b", "c")]
        claim = asyncio.create_task(store.claim("a"))
        await asyncio.wait([claim])
        assert all(append.done() for append in appends)


async def test_a_reply_that_is_cut_off_is_a_lost_reply(server: Redis, url: str, proxy: FaultProxy):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(*range(500)))
        proxy.cut_after = proxy.bytes_from_server + 4000
        with pytest.raises(BackendUnavailable):
            await collect(store.read("a"))
        assert proxy.resets
        proxy.cut_after = None
        assert await numbers(store.read("a")) == list(range(500))


async def test_a_reply_in_small_pieces_is_read_whole(server: Redis, url: str, proxy: FaultProxy):
    proxy.slice_bytes = 7
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(*range(50)))
        assert await numbers(store.read("a")) == list(range(50))


async def test_nothing_waits_longer_than_the_command_timeout_for_a_server_that_does_not_answer(
    server: Redis, url: str, proxy: FaultProxy
):
    url = journal_url(server, port=proxy.port, command_timeout=0.3, connect_timeout=0.3)
    async with opened_patiently(url) as store:
        await patiently(lambda: store.append("a", happened(1)))
        await patiently(lambda: store.version("a"))
        backend = backend_of(store)
        proxy.stall()
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown, match="within the time allowed"):
            await backend.append([[write("a", b"2")]])
        with pytest.raises(BackendUnavailable, match="did not answer"):
            await store.version("a")
        with pytest.raises(BackendUnavailable):
            await store.claim("a")  # The proxy takes the connection, and nobody answers on it.
        assert time.monotonic() - started < 20
        proxy.resume()
        assert await patiently(lambda: store.version("a")) in {1, 2}


async def test_whoever_finds_no_connection_free_is_told_so_in_time(server: Redis, url: str, proxy: FaultProxy):
    async with opened_patiently(journal_url(server, port=proxy.port, command_timeout=0.3, pool_size=1)) as store:
        await patiently(lambda: store.append("a", happened(1)))
        await patiently(lambda: store.version("a"))
        proxy.stall()
        reads = [store.version("a") for _ in range(5)]
        failed = await asyncio.gather(*reads, return_exceptions=True)
        assert all(isinstance(error, BackendUnavailable) for error in failed)
        assert any(isinstance(error, ConnectionsBusy) for error in failed)
        # The writer has a connection of its own.
        proxy.resume()
        await patiently(lambda: store.append("a", happened(2)))
        assert await patiently(lambda: store.version("a")) == 2


async def test_writes_that_wait_for_their_turn_are_told_in_time_that_nothing_was_stored(
    server: Redis, url: str, proxy: FaultProxy
):
    async with opened_patiently(journal_url(server, port=proxy.port, command_timeout=0.3)) as store:
        await patiently(lambda: store.claim("a"))
        proxy.stall()
        failed = await asyncio.gather(*(store.claim("a") for _ in range(5)), return_exceptions=True)
        assert isinstance(failed[0], OutcomeUnknown)
        assert any("earlier writes" in str(error) for error in failed[1:])
        proxy.resume()


# Callers that go away


async def test_a_cancelled_read_does_not_hand_its_reply_to_the_next(server: Redis, url: str, proxy: FaultProxy):
    async with EventStore.open(journal_url(server, port=proxy.port, pool_size=1)) as store:
        for n in range(10):
            await store.append(f"s-{n}", happened(n))
        await store.version("s-0")
        connections = proxy.accepted
        proxy.latency = 0.02
        for n in range(1, 10):
            cancelled = asyncio.create_task(collect(store.read("s-0")))
            await asyncio.sleep(0.03)
            cancelled.cancel()
            assert await numbers(store.read(f"s-{n}")) == [n]
            assert cancelled.cancelled()
        # The cancelled reads have come to their end, so that a crowd of them costs no new connections.
        assert proxy.accepted == connections


async def test_a_connection_whose_command_is_cancelled_is_closed(server: Redis, url: str, proxy: FaultProxy):
    target = parse_redis_url(parse_store_url(journal_url(server, port=proxy.port)))
    connection = RedisConnection(target)
    proxy.latency = 0.05
    with admin(server) as client:
        client.mset({"one": "1", "two": "2"})
    try:
        await connection.call(b"GET", b"one")
        cancelled = asyncio.create_task(connection.call(b"GET", b"one"))
        await asyncio.sleep(0.07)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert await connection.call(b"GET", b"two") == b"2"
        assert proxy.accepted == 2
    finally:
        await connection.close()


async def test_a_cancelled_append_is_stored_all_the_same_and_leaves_the_writer_in_order(
    server: Redis, url: str, proxy: FaultProxy
):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        await store.append("a", happened(1))
        proxy.latency = 0.05
        for n in range(2, 6):
            cancelled = asyncio.create_task(store.append("a", happened(n)))
            claim = asyncio.create_task(store.claim("b"))
            await asyncio.sleep(0.02)
            cancelled.cancel()
            claim.cancel()
            await asyncio.wait([cancelled, claim])
        proxy.latency = 0
        assert await store.claim("b") == 5
        assert (await store.append("a", happened(6), expected_version=5)).versions == (6,)
        assert await numbers(store.read("a")) == [1, 2, 3, 4, 5, 6]


# A server that will not


async def test_a_script_that_the_server_has_forgotten_is_sent_anew(server: Redis, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        with admin(server) as client:
            client.script_flush()
        await store.append("a", happened(2))
        with admin(server) as client:
            client.script_flush()
        assert await numbers(store.read("a")) == [1, 2]


async def test_a_server_without_memory_stores_nothing_and_works_again_with_more(server: Redis, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        with admin(server) as client:
            client.config_set("maxmemory", "100kb")
            try:
                with pytest.raises(StorageFull):
                    await store.append("a", happened(2, 3))
                assert await numbers(store.read_all()) == [1]
            finally:
                client.config_set("maxmemory", "0")
        assert (await store.append("a", happened(2), expected_version=1)).position == 2


async def test_a_server_that_cannot_save_stores_nothing_and_works_again_when_it_can():
    with Redis(durable=True, settings={"save": "3600 1000000", "rdb-key-save-delay": "10000000"}) as server:
        async with EventStore.open(migrated(server)) as store:
            await store.append("a", happened(1))
            with admin(server) as client:
                client.bgsave()
                # A save that is killed has failed, and from then on the server refuses to write.
                for pid in server.family()[1:]:
                    os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(20):
                    while client.info("persistence")["rdb_last_bgsave_status"] == "ok":
                        await asyncio.sleep(0.02)
                with pytest.raises(StorageFull, match="MISCONF"):
                    await store.append("a", happened(2))
                assert await numbers(store.read_all()) == [1]
                client.config_set("stop-writes-on-bgsave-error", "no")
                client.config_set("save", "")  # Or it would save, slowly, when it is stopped.
            assert (await store.append("a", happened(2))).position == 2


async def test_a_server_that_has_become_a_replica_stores_nothing(server: Redis, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        with admin(server) as client:
            client.replicaof("127.0.0.1", "9")
            try:
                with pytest.raises(BackendUnavailable, match="name the primary"):
                    await store.append("a", happened(2))
            finally:
                client.replicaof("NO", "ONE")
        await store.append("a", happened(3))
        assert await numbers(store.read("a")) == [1, 3]


async def test_a_server_that_is_busy_with_anothers_script_stores_nothing(server: Redis, url: str):
    async with EventStore.open(url) as store:
        await store.append("a", happened(1))
        with admin(server) as client, admin(server) as other:
            client.config_set("busy-reply-threshold", "20")
            endless = threading.Thread(target=_run_forever, args=(other,))
            endless.start()
            try:
                async with asyncio.timeout(20):
                    while not _is_busy(client):
                        await asyncio.sleep(0.01)
                with pytest.raises(StoreBusy):
                    await store.append("a", happened(2))
                with pytest.raises(StoreBusy):
                    await store.version("a")
                with pytest.raises(StoreBusy):
                    await EventStore.open(url).__aenter__()
            finally:
                client.script_kill()
                await asyncio.to_thread(endless.join)
                client.config_set("busy-reply-threshold", "5000")
        await store.append("a", happened(3))
        assert await numbers(store.read("a")) == [1, 3]


async def test_a_server_that_is_loading_stores_nothing_yet():
    with Redis(durable=True) as server:
        async with EventStore.open(migrated(server, command_timeout=5)) as store:
            # A server that loads looks at its clients every 1,024 commands.
            for _ in range(90):
                await backend_of(store).append([[write(f"s-{n}", b"1")] for n in range(100)])
            server.crash()
            server.settings["key-load-delay"] = "200"
            server._process = server._spawn()  # `start` would wait until it has loaded.
            refusals: list[str] = []
            for _ in range(6000):
                try:
                    await backend_of(store).append([[write("new", b"1", expected=0)]])
                    break
                except (BackendUnavailable, OutcomeUnknown) as error:
                    refusals.append(str(error))
                    await asyncio.sleep(0.01)
            assert any("loading" in text.lower() for text in refusals), refusals[-5:]
            assert (await store.statistics()).events == 9001


async def test_a_server_that_is_gone_has_stored_nothing_and_is_found_again_when_it_is_back():
    with Redis(durable=True) as server:
        async with EventStore.open(migrated(server)) as store:
            await store.append("a", happened(1))
            server.stop()
            await asyncio.sleep(0.05)  # The loop learns that the connection has ended.
            with pytest.raises(BackendUnavailable, match="cannot be reached"):
                await store.append("a", happened(2))
            with pytest.raises(BackendUnavailable):
                await store.version("a")
            server.start()
            await store.append("a", happened(3))
            assert await numbers(store.read("a")) == [1, 3]


async def test_a_server_with_too_many_clients_is_unavailable(server: Redis, url: str):
    with admin(server) as client:
        client.config_set("maxclients", "1")
        try:
            with pytest.raises(BackendUnavailable):
                await EventStore.open(url).__aenter__()
        finally:
            client.config_set("maxclients", "10000")


# News


async def test_an_append_by_another_store_wakes_a_waiter_without_polling(server: Redis, url: str):
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        ack = await store.append("a", happened(1))
        for n in range(2, 5):
            waiting = asyncio.create_task(backend_of(store).wait(ack.position, 3600))
            await _listened(server)
            ack = await other.append("a", happened(n))
            async with asyncio.timeout(20):
                await waiting


async def test_news_of_a_journal_in_another_database_of_the_server_wakes_nobody(server: Redis, url: str):
    elsewhere = server.dsn(database=1)
    upgrade(parse_store_url(elsewhere))
    async with EventStore.open(elsewhere) as store, EventStore.open(elsewhere) as other, EventStore.open(url) as busy:
        waiting = asyncio.create_task(backend_of(store).wait(0, 3600))
        await _listened(server)
        # One channel tells both, in this order.
        await busy.append("a", happened(*range(5)))
        await other.append("a", happened(1))
        async with asyncio.timeout(20):
            await waiting
        waiting = asyncio.create_task(backend_of(store).wait(1, 3600))
        await asyncio.sleep(0)
        assert not waiting.done()
        await other.append("a", happened(2))
        async with asyncio.timeout(20):
            await waiting


async def test_a_listener_that_is_killed_comes_back(server: Redis, url: str):
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        ack = await store.append("a", happened(1))
        waiting = asyncio.create_task(backend_of(store).wait(ack.position, 3600))
        await _listened(server)
        with admin(server) as client:
            assert client.execute_command("CLIENT KILL TYPE pubsub") == 1
        await _listened(server)
        await other.append("a", happened(2))
        async with asyncio.timeout(20):
            await waiting


async def test_who_is_asked_whether_he_is_there_loses_no_news_that_wait_to_be_read(server: Redis, url: str):
    connection = RedisConnection(parse_redis_url(parse_store_url(url)))
    try:
        await connection.send(b"SUBSCRIBE", b"news")
        assert (await connection.receive())[0] == b"subscribe"
        with admin(server) as client:
            assert client.publish("news", "first") == 1
        async with asyncio.timeout(20):
            while not (connection._replies and connection._replies.is_stale):
                await asyncio.sleep(0.005)
            await connection.send(b"PING")
            assert await connection.receive() == [b"message", b"news", b"first"]
            assert (await connection.receive())[0] == b"pong"
    finally:
        await connection.close()


async def test_a_listener_whose_network_swallows_everything_begins_anew(
    server: Redis, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(redis_listener, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(redis_listener, "_SILENT_SECONDS", 0.5)
    async with (
        FaultProxy(server.host, server.port) as proxy,
        EventStore.open(journal_url(server, port=proxy.port)) as store,
    ):
        waiting = asyncio.create_task(backend_of(store).wait(0, 3600))
        await _listened(server)
        # It is quiet for longer than silence may last, but the server answers when it is asked; unless the machine lets
        # one of them wait for as long, which it does not time after time.
        for _ in range(20):
            accepted = proxy.accepted
            await asyncio.sleep(1.0)
            if proxy.accepted == accepted:
                break
        else:
            pytest.fail("it begins anew though it is answered")
        proxy.stall()
        async with asyncio.timeout(20):
            while proxy.accepted == accepted:
                await asyncio.sleep(0.005)
        proxy.resume()
        await _listened(server)
        async with EventStore.open(url) as other:
            await other.append("a", happened(1))
        async with asyncio.timeout(20):
            await waiting


async def test_what_is_appended_while_nobody_listens_is_found_by_polling(server: Redis, url: str):
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        events = store.subscribe(poll_seconds=0.05)
        taken = asyncio.create_task(anext(events))
        await _listened(server)
        with admin(server) as client:
            assert client.execute_command("CLIENT KILL TYPE pubsub") == 1
            # Nothing is awaited, so the listener has not been able to come back.
            assert client.publish(f"{KEY}:news", 1) == 0
        await other.append("a", happened(1))
        async with asyncio.timeout(20):
            assert (await taken).json() == {"number": 1}
        await events.aclose()


async def _listened(server: Redis) -> None:
    with admin(server) as client:
        async with asyncio.timeout(20):
            while not client.pubsub_numsub(f"{KEY}:news")[0][1]:
                await asyncio.sleep(0.005)


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


def _run_forever(client: redis.Redis) -> None:
    try:
        client.eval("while true do end", 0)
    except redis.RedisError:
        pass  # It was killed.


# Round trips


async def test_a_thousand_streams_are_loaded_in_few_trips(server: Redis, url: str):
    async with EventStore.open(url) as store:
        for start in range(0, 1000, 100):
            await backend_of(store).append([[write(f"s-{start + n}", b"1", b"2", b"3")] for n in range(100)])
        with admin(server) as client:
            before = scripts_run(client)
            loaded = await asyncio.gather(*(store.load(Load(f"s-{n}")) for n in range(1000)))
            assert scripts_run(client) - before <= 20
        assert [[event[3] for event in each.events] for each in loaded] == [[b"1", b"2", b"3"]] * 1000


async def test_a_crowd_of_long_streams_is_loaded_in_as_many_trips_as_keep_each_short(server: Redis, url: str):
    async with EventStore.open(url) as store:
        for n in range(30):
            await store.append(f"s-{n}", happened(*range(1000)))
        with admin(server) as client:
            before = scripts_run(client)
            answers = await backend_of(store).load([Load(f"s-{n}") for n in range(30)])
            assert scripts_run(client) - before == 3
        assert [len(answer.events) for answer in answers if isinstance(answer, Loaded)] == [1000] * 30


@pytest.mark.parametrize("where", [EventFilter(), EventFilter(kinds=("s",)), EventFilter(tags=("none",))])
async def test_a_page_of_the_log_is_one_trip_however_many_streams_it_is_from(
    server: Redis, url: str, where: EventFilter
):
    async with EventStore.open(url) as store:
        await backend_of(store).append([[write(f"s-{n}", b"1")] for n in range(500)])
        await store.read_page(limit=1)
        with admin(server) as client:
            before = scripts_run(client)
            page = await store.read_page(limit=500, where=where)
            assert scripts_run(client) - before == 1
        assert (len(page.events), page.position) == (0 if where.tags else 500, 500)


async def test_a_page_too_large_for_one_reply_is_read_in_several(server: Redis, url: str):
    megabyte = b'"' + b"x" * (1024 * 1024 - 2) + b'"'
    async with EventStore.open(url) as store:
        for _ in range(10):
            await backend_of(store).append([[write("a", *[megabyte] * 4)]])
        for backwards in (False, True):
            versions = [record.version for record in await collect(store.read("a", backwards=backwards))]
            assert sorted(versions, reverse=backwards) == versions
            assert len(versions) == 40
        assert len(await collect(store.read_all())) == 40
        assert len(await collect(store.read_all(last=7))) == 7
