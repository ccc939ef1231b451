"""BarePostgres: the events table without the library: one asyncpg connection, rows made beforehand."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from uuid_utils import uuid7

# The columns and indexes of `journal_events`, whichever it has. Its triggers are left out, and so is the table of
# streams, whose rows an append locks and moves: they are what the library pays for its promises, and the bare side
# promises nothing.
_TABLE = """
CREATE SCHEMA bare;
CREATE TABLE bare.events (LIKE journal_events INCLUDING STORAGE INCLUDING INDEXES);
CREATE SEQUENCE bare.position OWNED BY bare.events.position;
ALTER TABLE bare.events ALTER position SET DEFAULT nextval('bare.position'), ALTER epoch SET DEFAULT 0;
"""
# Columns that are always empty are not sent: each array takes time.
INSERT = """
INSERT INTO bare.events (stream, version, type, schema_version, payload, event_id, checksum, recorded_at)
SELECT * FROM unnest(
    $1::bigint[], $2::bigint[], $3::text[], $4::int[], $5::text[], $6::bytea[], $7::bigint[], $8::bigint[]
)
"""
_INSERT_ONE = """
INSERT INTO bare.events (stream, version, type, schema_version, payload, event_id, checksum, recorded_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_EVENTS_OF_STREAM = """
SELECT version, type, schema_version, payload FROM journal_events
WHERE stream = (SELECT id FROM journal_streams WHERE stream_id = $1) AND version > $2 ORDER BY version LIMIT $3
"""

# Of about the size that the journal's have. What making one costs is the library's.
_CHECKSUM = 0x9E3779B9

Columns = tuple[Sequence[object], ...]


class BarePostgres:
    """Commits rows of so many streams, one row of each at a time."""

    def __init__(self, connection: Any, streams: range, dsn: str) -> None:
        self._connection = connection
        self._rows = rows(streams)
        self._dsn = dsn
        self._others: list[Any] = []

    async def create(self) -> None:
        """Make the table."""
        await self._connection.execute(_TABLE)

    async def close(self) -> None:
        for connection in (self._connection, *self._others):
            await connection.close(timeout=5)

    async def commits(self, seconds: float, *, rows: int) -> list[float]:
        """Commit `rows` rows at a time, for so long. Returns how long each commit took."""
        insert = (await self._connection.prepare(INSERT)).fetch
        taken: list[float] = []
        total = 0.0
        while total < seconds:
            # Making rows is not the database's work: it is done between the measurements.
            for columns in [columns_of(list(itertools.islice(self._rows, rows))) for _ in range(50)]:
                start = time.perf_counter()
                await insert(*columns)
                taken.append(time.perf_counter() - start)
                total += taken[-1]
        return taken

    async def pairs(self, seconds: float, *, connections: int) -> float:
        """Commit two rows at a time, each by an insert of its own, for so long. Returns commits per second."""
        while len(self._others) < connections:
            self._others.append(await asyncpg.connect(self._dsn, timeout=10, command_timeout=60))
        # `executemany` is a transaction, whose inserts reach the server in one trip.
        inserts = [(await each.prepare(_INSERT_ONE)).executemany for each in self._others[:connections]]
        total, committed = 0.0, 0
        while total < seconds:
            made = [[list(itertools.islice(self._rows, 2)) for _ in range(50)] for _ in inserts]
            start = time.perf_counter()
            await asyncio.gather(*map(_each, inserts, made))
            total += time.perf_counter() - start
            committed += 50 * connections
        return committed / total

    async def analyze(self) -> None:
        """Tell the server how large the journal is: believing it nearly empty, it sorts all the rest for each page."""
        await self._connection.execute("ANALYZE journal_events")

    async def read(self, stream_id: str, page: int) -> AsyncGenerator[Sequence[Any], None]:
        """The stored events of a stream of the journal beside it, page by page."""
        fetch = (await self._connection.prepare(_EVENTS_OF_STREAM)).fetch
        version = 0
        while found := await fetch(stream_id, version, page):
            yield found
            version = found[-1][0]


@asynccontextmanager
async def bare_postgres(dsn: str, *, streams: int = 1) -> AsyncGenerator[BarePostgres, None]:
    """In the same database as the journal, which is migrated, in a schema of its own."""
    bare = BarePostgres(await asyncpg.connect(dsn, timeout=10, command_timeout=60), range(1, streams + 1), dsn)
    try:
        await bare.create()
        yield bare
    finally:
        await bare.close()


async def _each(insert: Callable[[Any], Awaitable[None]], groups: Sequence[object]) -> None:
    for group in groups:
        await insert(group)


def columns_of(made: Sequence[tuple[object, ...]]) -> Columns:
    """Rows as the parameters of `INSERT`."""
    return tuple(zip(*made, strict=True))


def rows(streams: range) -> Iterator[tuple[object, ...]]:
    """One row of each stream, then the next of each, without end."""
    for version in itertools.count(1):
        for stream in streams:
            yield (
                stream, version, "benchmark.deposited", 1, '{"amount":1}', uuid7().bytes, _CHECKSUM,
                time.time_ns() // 1000,
            )  # fmt: skip
