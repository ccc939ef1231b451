"""A crowd of cold actors comes to life in tens of round trips, as the servers count them."""

from __future__ import annotations

import asyncio
from contextlib import closing
from urllib.parse import urlsplit

import redis

from actors import ActorSystem, Command, PersistentActor, SnapshotPolicy, command_handler, event_handler
from eventstore import Event, EventStore

from .postgres_help import fetch

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
    before = await transactions(postgres_url)
    assert sorted(await wake(postgres_url)) == [2] * 900 + [4] * 100
    trips = await transactions(postgres_url) - before
    print(f"{trips} transactions")
    assert 0 < trips <= MOST_TRIPS


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
