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


async def kill_listeners(url: str) -> int:
    if url.startswith("postgresql"):
        return len(await fetch(url, f"SELECT pg_terminate_backend(pid) {LISTENERS}"))
    with redis.Redis.from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=10) as client:
        return int(client.execute_command("CLIENT KILL TYPE pubsub"))


async def count_listeners(url: str) -> int:
    if url.startswith("postgresql"):
        return int((await fetch(url, f"SELECT count(*) {LISTENERS}"))[0][0])
    with redis.Redis.from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=10) as client:
        return len(client.client_list(_type="pubsub"))


async def until_listening(url: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not await count_listeners(url):
            await asyncio.sleep(0.01)


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

    killed = 0
    async with EventStore.open(url) as reader, EventStore.open(url) as writer:
        subscribing = asyncio.create_task(subscribe(reader))
        await until_listening(url)
        for number in range(count):
            if number % 20 == 0:
                await until_listening(url)
            if number % 3 == 0:
                killed += await kill_listeners(url)
            appended_at[number] = time.monotonic()
            await writer.append("a", happened(number))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(PATIENCE):
            await subscribing
    assert killed >= 3
    assert got == list(range(count))
    # At the latest by the next poll; without one it would have been never.
    assert longest < PATIENCE


async def test_a_listener_that_was_killed_hears_again_without_polling(url: str) -> None:
    async with EventStore.open(url) as store, EventStore.open(url) as other:
        ack = await store.append("a", happened(0))
        for number in range(1, 4):
            waiting = asyncio.create_task(store._backend.wait(ack.position, 3600))
            await until_listening(url)
            assert await kill_listeners(url) == 1
            await until_listening(url)
            # Whoever has waited is woken by the new listener, because it may have missed something.
            ack = await other.append("a", happened(number))
            async with asyncio.timeout(PATIENCE):
                await waiting
