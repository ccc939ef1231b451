"""Remembered commands on a Redis server: what stands there, what is sent, and what a failing server leaves of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import redis

from backends.conformance.commands import append_alone, found_command, remembered
from backends.conformance.events import collect, happened, outcome, versions, write
from eventstore import BackendUnavailable, EventStore, JournalCorrupt, OutcomeUnknown
from eventstore.backend import Appended, CommandLookup, StreamWrite
from eventstore.errors import PayloadTooLarge
from tests.backends.redis_help import KEY, backend_of, commands_run, journal_url, migrated, scripts_run
from tests.servers.proxy import FaultProxy
from tests.servers.redis import Redis


@pytest.fixture
def url(server: Redis, client: redis.Redis) -> str:
    return migrated(server)


@pytest.fixture
async def proxy(server: Redis) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port) as proxy:
        yield proxy


# What is sent


async def test_a_group_without_commands_costs_what_it_did_before_there_were_any(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        groups = [[[write(f"s-{n}", b"1")] for n in range(64)] for _ in range(2)]
        await backend_of(store).append(groups[0])
        client.config_resetstat()
        await backend_of(store).append(groups[1])
        read = {"evalsha": 1, "hmget": 3, "hget": 1, "time": 1}
        assert commands_run(client) == read | {"rpush": 64, "hset": 3, "append": 1, "publish": 1}


async def test_outcomes_are_stored_by_the_script_that_stores_the_events(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        groups = [[[write(f"s-{n}", b"1", commands=[outcome(f"c-{k}")])] for n in range(64)] for k in range(2)]
        await backend_of(store).append(groups[0])
        client.config_resetstat()
        await backend_of(store).append(groups[1])
        run = commands_run(client)
        # All outcomes are looked for by one command, and written by one.
        assert (run["evalsha"], run["hmget"], run["zadd"], run["hset"]) == (1, 4, 64, 5)


async def test_many_commands_are_looked_up_in_one_trip(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await backend.append([[write(f"s-{n}", commands=[outcome("c")])] for n in range(500)])
        await found_command(backend, "a", "c")
        before = scripts_run(client)
        found = await backend.find_commands([CommandLookup(f"s-{n}", "c", recent=10) for n in range(500)])
        assert scripts_run(client) == before + 1
        assert all(answer.outcome and answer.recent == ["c"] for answer in found)


async def test_outcomes_too_large_for_one_reply_are_read_in_several(url: str, client: redis.Redis):
    large = b'"' + b"x" * (4 * 1024 * 1024 - 2) + b'"'
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        for n in range(10):
            await append_alone(backend, write("a", commands=[outcome(str(n), payload=large)]))
        before = scripts_run(client)
        found = await backend.find_commands([CommandLookup("a", str(n)) for n in range(10)])
        assert scripts_run(client) == before + 3
        assert [answer.outcome and answer.outcome.command_id for answer in found] == [str(n) for n in range(10)]
        assert all(answer.outcome and answer.outcome.payload == large for answer in found)
        # Nor does the server take all of them into one script's memory to forget them.
        before = scripts_run(client)
        assert await backend.forget_commands("a", keep=0, before=None) == 10
        assert scripts_run(client) == before + 2


async def test_more_than_one_command_can_carry_is_refused_before_it_is_sent(url: str):
    large = b'"' + b"x" * (4 * 1024 * 1024 - 2) + b'"'
    async with EventStore.open(url) as store:
        commands = [outcome(str(n), payload=large) for n in range(65)]
        with pytest.raises(PayloadTooLarge):
            await append_alone(backend_of(store), write("a", commands=commands))
        assert await remembered(backend_of(store)) == set()


# What stands on the server


async def test_no_id_reaches_another_streams_commands(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        # The streams are numbered in this order.
        await backend.append([[write(f"s-{n}", commands=[outcome("c", payload=b"%d" % n)])] for n in range(1, 13)])
        for stream_id, command_id in (("s-1", "1:c"), ("s-1", "2:c"), ("s-1", ":c"), ("s-2", "1:c"), ("s-12", "12:c")):
            assert await found_command(backend, stream_id, command_id) is None
            result = await append_alone(backend, write(stream_id, commands=[outcome(command_id)]))
            assert isinstance(result, Appended)
        assert await backend.forget_commands("s-1", keep=0, before=None) == 4
        assert await remembered(backend, "s-12") == {"c", "12:c"}


async def test_what_is_forgotten_gives_its_bytes_and_keys_back(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        before = set(client.scan_iter(count=1000))
        await append_alone(backend, write("a", b"1", commands=[outcome("one", payload=b"x" * 500)]))
        await append_alone(backend, write("a", commands=[outcome("two", payload=b"x" * 500)]))
        size = (await store.statistics()).size_bytes
        assert size > 1000
        assert await backend.forget_commands("a", keep=1, before=None) == 1
        assert 500 < size - (await store.statistics()).size_bytes < 600
        await store.truncate("a", 1, reason="test")
        assert (await store.statistics()).size_bytes == 0
        left = {key.decode().removeprefix(KEY) for key in set(client.scan_iter(count=1000)) - before}
        assert left == {":heads", ":names", ":numbers", ":log:0", ":removals"}


async def test_times_of_outcomes_never_fall_when_the_servers_clock_is_set_back(url: str, client: redis.Redis):
    ahead = datetime.now(UTC).replace(microsecond=123_456) + timedelta(days=1)
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        client.hset(KEY, "clock", int(ahead.timestamp()) * 1_000_000 + ahead.microsecond)
        await append_alone(backend, write("a", commands=[outcome("one")]))
        found = await found_command(backend, "a", "one")
        assert found is not None
        assert found.recorded_at == ahead


async def test_outcomes_without_events_advance_the_clock_of_the_journal(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await append_alone(backend, write("a", commands=[outcome("one")]))
        found = await found_command(backend, "a", "one")
        assert found is not None
        assert int(client.hget(KEY, "clock") or 0) == int(found.recorded_at.timestamp() * 1_000_000)


@pytest.mark.parametrize("change", ["gone", "cut off"])
async def test_an_outcome_that_was_changed_by_hand_is_noticed(url: str, client: redis.Redis, change: str):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await append_alone(backend, write("a", b"1", commands=[outcome("one"), outcome("two")]))
        if change == "gone":
            client.hdel(f"{KEY}:commands", "1:one")
            with pytest.raises(JournalCorrupt, match="outcome of a command is missing"):
                await backend.forget_commands("a", keep=0, before=None)
            with pytest.raises(JournalCorrupt, match="outcome of a command is missing"):
                await store.truncate("a", 1, reason="test")
        else:
            client.hset(f"{KEY}:commands", "1:one", (client.hget(f"{KEY}:commands", "1:one") or b"")[:50])
            (damaged,) = await backend.find_commands([CommandLookup("a", "one")])
            assert isinstance(damaged, JournalCorrupt)
            assert "'one'" in str(damaged)
        assert await versions(store.read("a")) == [1]
        assert await found_command(backend, "a", "two") is not None


# Many of them


async def test_thousands_of_outcomes_are_forgotten_in_parts(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        commands = [outcome(f"c-{n}") for n in range(5000)]
        await append_alone(backend, write("a", b"1", commands=commands))
        before = scripts_run(client)
        assert await backend.forget_commands("a", keep=100, before=None) == 4900
        assert scripts_run(client) == before + 3
        assert await remembered(backend) == {command.command_id for command in commands[-100:]}


async def test_an_event_with_thousands_of_outcomes_goes_after_them(url: str, client: redis.Redis):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await append_alone(backend, write("a", b"1", commands=[outcome(f"c-{n}") for n in range(4100)]))
        await append_alone(backend, write("a", b"2", commands=[outcome("last")]))
        before = scripts_run(client)
        assert await store.truncate("a", 1, reason="test") == 1
        # Three remove, and one looks before: is the stream replicated.
        assert scripts_run(client) == before + 3 + 1
        assert await remembered(backend) == {"last"}
        assert await versions(store.read("a")) == [2]


async def test_a_stream_is_told_whole_only_if_it_has_no_more_ids_than_wanted(url: str):
    async with EventStore.open(url) as store:
        backend = backend_of(store)
        await append_alone(backend, write("a", commands=[outcome(f"c-{n}") for n in range(5)]))
        for recent, known_above, count in ((4, None, 0), (5, "", 5), (0, None, 0)):
            (answer,) = await backend.find_commands([CommandLookup("a", "c-1", recent)])
            assert answer.outcome is not None
            assert (answer.known_above, len(answer.recent)) == (known_above, count)


# A server that fails


@pytest.mark.parametrize("payloads", [(b"2",), ()], ids=["with an event", "alone"])
async def test_outcomes_whose_reply_is_lost_are_stored_once_and_known_again(
    server: Redis, url: str, proxy: FaultProxy, payloads: tuple[bytes, ...]
):
    async with EventStore.open(journal_url(server, port=proxy.port)) as store:
        backend = backend_of(store)
        await store.append("a", happened(1))
        batch = [write("a", *payloads, commands=[outcome("c")])]
        proxy.lose_reply(to=b"EVALSHA")
        with pytest.raises(OutcomeUnknown):
            await backend.append([batch])
        assert proxy.lost_replies == 1
        again = await append_alone(backend, *batch)
        assert again == Appended(2 if payloads else 0, (2 if payloads else 1,), is_duplicate=True)
        assert await remembered(backend) == {"c"}
        assert len(await collect(store.read("a"))) == 1 + len(payloads)


async def test_a_server_that_was_started_again_remembers_every_command():
    with Redis(durable=True) as server:
        url = migrated(server)
        batch: list[StreamWrite] = [write("a", commands=[outcome("alone")])]
        async with EventStore.open(url) as store:
            backend = backend_of(store)
            await append_alone(backend, *batch)
            await append_alone(backend, write("a", b"1", commands=[outcome("old", issued_at=1000)]))
            await append_alone(backend, write("a", b"2", commands=[outcome("new", payload=b"[1]")]))
            await store.truncate("a", 1, reason="test")
            server.crash()
            server.start()
            await asyncio.sleep(0.05)  # The loop learns that its connections have ended.
            assert await remembered(backend) == {"new"}
        async with EventStore.open(url) as store:
            backend = backend_of(store)
            (answer,) = await backend.find_commands([CommandLookup("a", "new", recent=9)])
            assert answer.outcome is not None
            assert (answer.outcome.payload, answer.outcome.version, answer.forgotten) == (b"[1]", 2, 1000)


async def test_of_commands_that_are_retried_while_the_server_is_killed_each_is_done_once():
    with Redis(durable=True) as server:
        async with EventStore.open(migrated(server, command_timeout=5)) as store:
            backend = backend_of(store)
            answers: dict[str, int] = {}
            unknown = 0

            async def client_of(stream_id: str) -> None:
                nonlocal unknown
                for n in range(60):
                    # Every third command is a rejection, which stores nothing but its outcome.
                    payloads = () if n % 3 == 0 else (b"%d" % n,)
                    batch = [write(stream_id, *payloads, commands=[outcome(f"{stream_id}-{n}")])]
                    while True:
                        try:
                            (result,) = await backend.append([batch])
                            break
                        except OutcomeUnknown:
                            unknown += 1
                        except BackendUnavailable:
                            await asyncio.sleep(0.01)
                    assert isinstance(result, Appended), result
                    answers[f"{stream_id}-{n}"] = result.versions[0]
                    await asyncio.sleep(0.002)

            async with asyncio.timeout(120), asyncio.TaskGroup() as clients:
                for k in range(8):
                    clients.create_task(client_of(f"s-{k}"))
                for _ in range(5):
                    count = len(answers)
                    while len(answers) < min(count + 40, 470):
                        await asyncio.sleep(0.005)
                    server.crash()
                    await asyncio.sleep(0.02)
                    server.start()
            assert unknown  # Or nothing was in flight when the server died.
            for k in range(8):
                stored = [record.payload for record in await collect(store.read(f"s-{k}"))]
                assert stored == [b"%d" % n for n in range(60) if n % 3]
                for n in range(60):
                    found = await found_command(backend, f"s-{k}", f"s-{k}-{n}")
                    assert found is not None
                    assert found.version == answers[f"s-{k}-{n}"]
