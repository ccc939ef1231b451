"""Growth: what one more event and one more actor cost in a large journal, against a small one (row 15)."""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

from uuid_utils import uuid7

from actors import ActorSystem
from benchmarks.accounts import Account, Deposit, Deposited
from benchmarks.harness import FULL, MICROSECONDS, READ_ONLY, Goal, Plan, Ratio, Side, compared, interleaved, progress
from eventstore import EventStore
from eventstore.backend import Load
from eventstore.codec import checksum_of

_SMALL = 10_000
_EVENTS_PER_STREAM = 10
_GROUP = 64
_GOAL = Goal(1.3, 1.1, is_upper_limit=True)

# Few enough that the small journal stays small: all rounds together add less than it has.
_SINGLES = 60
_GROUPS = 4
_ACTORS = 40
_READS = 200

_INSERT_STREAM = "INSERT INTO journal_streams (id, stream_id, kind, created_at) VALUES (?, ?, 'Account', 1)"
_INSERT_EVENT = """
INSERT INTO journal_events (stream, version, type, schema_version, payload, event_id, epoch, recorded_at, checksum)
VALUES (?, ?, 'benchmark.deposited', 1, '{"amount":1}', ?, 0, 1, ?)
"""


async def journal_size(plan: Plan) -> list[Ratio]:
    """Row 15: each of four things in a journal of 10^6 events (10^7 with --long) / in one of 10^4.

    The streams are drawn at random from all there are, so nothing helps the large journal: the actors that are
    really in use are fewer, and near in the caches.
    """
    large = 100_000 if plan.is_quick else 10_000_000 if plan.is_long else 1_000_000
    ratios: list[Ratio] = []
    async with AsyncExitStack() as stack:
        journals = []
        for count in (large, _SMALL):
            path = plan.directory / f"journal-{count}.db"
            await _fill(path, count)
            store = await stack.enter_async_context(EventStore.open(f"sqlite:///{path}"))
            system = await stack.enter_async_context(ActorSystem(store))
            journals.append(_Journal(store, system, count))
        for letter, what, durability, measure in (
            ("a", "an append, one at a time", FULL, _Journal.append_singly),
            ("b", "an append, 64 at a time", FULL, _Journal.append_in_groups),
            ("c", "a new actor's first event", FULL, _Journal.make_actors),
            ("d", "a read of one stream", READ_ONLY, _Journal.read),
        ):
            sides = [
                Side(f"{what}, {journal.count:,} events", durability, _measuring(measure, journal))
                for journal in journals
            ]
            figures = await interleaved(sides, plan)
            title = f"SQLite: {what}: journal of {large:.0e} events / of {_SMALL:.0e}".replace("e+0", "e")
            ratios.append(compared(f"15{letter}", title, sides, figures, MICROSECONDS, _GOAL))
    return ratios


class _Journal:
    """One of the two journals. Every method returns seconds for each thing done."""

    def __init__(self, store: EventStore, system: ActorSystem, count: int) -> None:
        self.count = count
        self._store = store
        self._system = system
        self._random = random.Random(1)
        self._new_keys = (f"new-{number}" for number in itertools.count())

    async def append_singly(self) -> float:
        start = time.perf_counter()
        for stream_id in self._some(_SINGLES):
            await self._store.append(stream_id, [Deposited(amount=1)])
        return (time.perf_counter() - start) / _SINGLES

    async def append_in_groups(self) -> float:
        start = time.perf_counter()
        for _ in range(_GROUPS):
            appends = (self._store.append(stream_id, [Deposited(amount=1)]) for stream_id in self._some(_GROUP))
            await asyncio.gather(*appends)
        return (time.perf_counter() - start) / (_GROUPS * _GROUP)

    async def make_actors(self) -> float:
        start = time.perf_counter()
        for key in itertools.islice(self._new_keys, _ACTORS):
            await self._system.ref(Account, key).ask(Deposit(amount=1))
        return (time.perf_counter() - start) / _ACTORS

    async def read(self) -> float:
        start = time.perf_counter()
        for stream_id in self._some(_READS):
            loaded = await self._store.load(Load(stream_id))
            assert loaded.version >= _EVENTS_PER_STREAM
        return (time.perf_counter() - start) / _READS

    def _some(self, count: int) -> list[str]:
        return [f"Account-{self._random.randrange(self.count // _EVENTS_PER_STREAM)}" for _ in range(count)]


def _measuring(
    measure: Callable[[_Journal], Awaitable[float]], journal: _Journal
) -> Callable[[float], Awaitable[float]]:
    async def measured(_: float) -> float:
        return await measure(journal)

    return measured


async def _fill(path: Path, count: int) -> None:
    """A journal as it grows: all its streams are in use at once, so the events of each lie far apart."""
    progress(f"  making a journal of {count:,} events")
    async with EventStore.open(f"sqlite:///{path}"):
        pass  # It gets its tables.
    streams = count // _EVENTS_PER_STREAM
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -1000000")
        with connection:
            connection.executemany(_INSERT_STREAM, ((number + 1, f"Account-{number}") for number in range(streams)))
            connection.executemany(_INSERT_EVENT, _events(streams))
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _events(streams: int) -> Iterator[tuple[int, int, bytes, int]]:
    checksum = checksum_of("benchmark.deposited", 1, b'{"amount":1}', None)
    for version in range(1, _EVENTS_PER_STREAM + 1):
        for stream in range(1, streams + 1):
            yield stream, version, uuid7().bytes, checksum
