"""F42: a listener that is killed costs its readers time, and no event."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import pytest
import redis

from backends.conformance.events import happened
from eventstore import EventStore
from tests.backends.postgres_help import PATIENCE, fetch

LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
POLL_SECONDS = 0.2


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"{request.param}_url"))


async def listeners(url: str) -> set[int]:
    """Who listens, by the numbers that the server gives to its clients. One that was killed may be there for a moment
    still."""
    if url.startswith("postgresql"):
        return {pid for (pid,) in await fetch(url, f"SELECT pid {LISTENERS}")}
    with redis.Redis.from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=10) as client:
        return {int(each["id"]) for each in client.client_list(_type="pubsub")}


async def kill(url: str, listeners: set[int]) -> None:
    if url.startswith("postgresql"):
        await fetch(url, "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid", sorted(listeners))
        return
    with redis.Redis.from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=10) as client:
        for listener in listeners:
            client.execute_command("CLIENT KILL ID", listener)


async def until_listening(url: str, killed: set[int]) -> set[int]:
    """Wait until somebody listens who was not killed, and tell who."""
    async with asyncio.timeout(PATIENCE):
        while not (found := await listeners(url) - killed):
            await asyncio.sleep(0.01)
    return found


async def test_a_subscriber_whose_listener_is_killed_again_and_again_gets_every_event_once_and_in_order(
    url: str,
) -> None:
    count = 60
    got: list[int] = []
    longest = 0.0
    appended_at: dict[int, float] = {}

    async def subscribe(store: EventStore) -> None:
        nonlocal longest
        async for record in store.subscribe(poll_seconds=POLL_SECONDS):
            number = record.json()["number"]
            got.append(number)
            longest = max(longest, time.monotonic() - appended_at[number])
            if len(got) == count:
                return

    killed: set[int] = set()
    async with EventStore.open(url) as reader, EventStore.open(url) as writer:
        subscribing = asyncio.create_task(subscribe(reader))
        for number in range(count):
            # Three times one that is sure to be there, and in between any that there is.
            if number % 20 == 0 or number % 3 == 0:
                found = await (until_listening(url, killed) if number % 20 == 0 else listeners(url))
                await kill(url, found)
                killed |= found
            appended_at[number] = time.monotonic()
            await writer.append("a", happened(number))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE):
            await subscribing
    assert len(killed) >= 3
    assert got == list(range(count))
    # At the latest by the next poll; without one it would have been never.
    assert longest < PATIENCE


async def test_a_listener_that_was_killed_hears_again_without_polling(url: str) -> None:
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        ack = await store.append("a", happened(0))
        killed: set[int] = set()
        for number in range(1, 4):
            waiting = asyncio.create_task(store._backend.wait(ack.position, 3600))
            found = await until_listening(url, killed)
            assert len(found) == 1
            await kill(url, found)
            killed |= found
            await until_listening(url, killed)
            # Whoever has waited is woken by the new listener, because it may have missed something.
            ack = await other.append("a", happened(number))
            async with asyncio.timeout(PATIENCE):
                await waiting
