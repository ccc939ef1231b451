"""A crowd of cold actors comes to life in tens of round trips, as the servers count them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from urllib.parse import urlsplit

import redis

from actors import ActorSystem, Command, PersistentActor, SnapshotPolicy, command_handler, event_handler
from eventstore import Event, EventStore
from eventstore.backend import LogPage
from eventstore.reading.reading_ahead import ReadAhead

from .postgres_help import fetch, has_told

CROWD = 1000
MOST_TRIPS = 50


class Grown(Event, name="round-trips.grown"):
    pass


class Size(Command[int]):
    pass


class Grow(Command[int]):
    pass


class Plant(PersistentActor[int]):
    snapshot_policy = SnapshotPolicy(every=3)

    @command_handler
    def size(self, command: Size) -> int:
        return self.state

    @command_handler
    def grow(self, command: Grow) -> int:
        self.persist(Grown())
        return self.state

    @event_handler
    def grown(self, event: Grown) -> None:
        self.state += 1


async def plant(url: str) -> None:
    """A thousand actors with two events each; every tenth has a snapshot, and an event behind it."""
    async with EventStore.open(url) as store:
        streams = [f"Plant-{number}" for number in range(CROWD)]
        await asyncio.gather(*(store.append(stream, [Grown(), Grown()]) for stream in streams))
        async with ActorSystem(store) as system:
            some = [system.ref(Plant, str(number)) for number in range(0, CROWD, 10)]
            for _ in range(2):
                await asyncio.gather(*(ref.ask(Grow()) for ref in some))


async def wake(url: str) -> list[int]:
    async with ActorSystem(url) as system:
        refs = [system.ref(Plant, str(number)) for number in range(CROWD)]
        return await asyncio.gather(*(ref.ask(Size()) for ref in refs))


async def test_a_thousand_cold_actors_cost_tens_of_trips_to_postgres(postgres_url: str) -> None:
    await plant(postgres_url)
    counts: list[int] = []
    # Once a minute the server tidies up, in ten transactions of its own: it can come to one count, or to two.
    while len(counts) < 3 and not (counts and counts[-1] <= MOST_TRIPS):
        before = await transactions(postgres_url)
        assert sorted(await wake(postgres_url)) == [2] * 900 + [4] * 100
        counts.append(await transactions(postgres_url) - before)
    print(f"{counts} transactions")
    assert 0 < counts[-1] <= MOST_TRIPS


async def test_a_thousand_cold_actors_cost_tens_of_trips_to_redis(redis_url: str) -> None:
    await plant(redis_url)
    before = scripts(redis_url)
    assert sorted(await wake(redis_url)) == [2] * 900 + [4] * 100
    trips = scripts(redis_url) - before
    print(f"{trips} scripts")
    assert 0 < trips <= MOST_TRIPS


async def transactions(url: str) -> int:
    """How many transactions, and so single statements, sessions have committed; those of sessions that have ended are
    all counted."""
    database = urlsplit(url).path.removeprefix("/")
    async with asyncio.timeout(20):
        while await fetch(url, "SELECT FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()", database):
            await asyncio.sleep(0.01)
    ((count,),) = await fetch(url, "SELECT xact_commit FROM pg_stat_database WHERE datname = $1", database)
    return int(count)


def scripts(url: str) -> int:
    with closing(redis.Redis.from_url(urlsplit(url)._replace(query="").geturl(), socket_timeout=60)) as client:
        statistics = client.info("commandstats")
    return sum(int(statistics[name]["calls"]) for name in ("cmdstat_evalsha", "cmdstat_eval") if name in statistics)


async def test_the_server_works_at_the_next_page_of_the_log_before_this_one_is_used(postgres_url: str) -> None:
    """Whoever uses a page may keep the event loop to himself meanwhile."""
    asked: list[datetime] = []
    async with EventStore.open(postgres_url) as store:
        await store.append("a", [Grown() for _ in range(6)])
        # Else that may have the connection, and another one takes more than one turn of the loop.
        await has_told(store)

        async def read(after: int) -> LogPage:
            asked.append(datetime.now(UTC))
            return await store.read_page(after=after, limit=2)

        async with ReadAhead(read, after=0) as log:
            # The first page finds out how far the log is final, which later ones rest on.
            for number in (2, 3):
                await log.page()
                assert len(asked) == number
            with ThreadPoolExecutor(1) as pool:
                pool.submit(asyncio.run, is_at_work(postgres_url, since=asked[-1])).result()


async def is_at_work(url: str, *, since: datetime) -> None:
    """Returns when the server has begun to look for a page."""
    pages = (
        "SELECT FROM pg_stat_activity WHERE query LIKE '%(p.payload%' AND query_start > $1 AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(20):
        while not await fetch(url, pages, since):
            await asyncio.sleep(0.01)
