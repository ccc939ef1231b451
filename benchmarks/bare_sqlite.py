"""BareSQLite: the events table without the library: plain sqlite3 in the main thread, rows made beforehand."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from uuid_utils import uuid7

from eventstore import schema
from eventstore.url import parse_store_url

_INSERT = """
INSERT INTO journal_events
    (stream, version, type, schema_version, payload, metadata, event_id, batch_id, checksum, epoch, recorded_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

# Of about the size that the journal's have. What making one costs is the library's.
_CHECKSUM = 0x9E3779B9

_Row = tuple[int, int, str, int, str, None, bytes, None, int, int, int]


class BareSQLite:
    """Commits rows of so many streams, one row of each at a time."""

    def __init__(self, path: Path, *, streams: int) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        # It has the journal's table, with its indexes. The triggers are what the library pays for its promises, and the
        # bare side promises nothing.
        triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'journal_events'"
        for (name,) in self._connection.execute(triggers).fetchall():
            self._connection.execute(f"DROP TRIGGER {name}")
        self._rows = _rows(streams)
        self._streams = streams

    def close(self) -> None:
        self._connection.close()

    async def commits(self, seconds: float, *, rows: int) -> list[float]:
        """Commit `rows` rows at a time, for so long. Returns how long each commit took."""
        taken: list[float] = []
        total = 0.0
        while total < seconds:
            # Making rows is not the database's work: it is done between the measurements.
            made = [list(itertools.islice(self._rows, rows)) for _ in range(50)]
            batch = [self._single(group[0]) if rows == 1 else self._many(group) for group in made]
            total += sum(batch)
            taken += batch
        return taken

    async def pairs(self, seconds: float, *, connections: int) -> float:
        """Commit two rows at a time, each by an insert of its own, for so long. Returns commits per second."""
        assert connections == 1, "SQLite has one writer at a time"
        taken = await self.commits(seconds, rows=2)
        return len(taken) / sum(taken)

    def _many(self, group: list[_Row]) -> float:
        execute = self._connection.execute
        start = time.perf_counter()
        execute("BEGIN IMMEDIATE")
        self._connection.executemany(_INSERT, group)
        execute("COMMIT")
        return time.perf_counter() - start

    def _single(self, row: _Row) -> float:
        # A statement outside of a transaction is one of its own: the fastest way to commit one row.
        start = time.perf_counter()
        self._connection.execute(_INSERT, row)
        return time.perf_counter() - start


@asynccontextmanager
async def bare_sqlite(path: Path, *, streams: int) -> AsyncGenerator[BareSQLite, None]:
    await asyncio.to_thread(schema.upgrade, parse_store_url(f"sqlite:///{path}"))
    bare = BareSQLite(path, streams=streams)
    try:
        yield bare
    finally:
        bare.close()


def _rows(streams: int) -> Iterator[_Row]:
    for version in itertools.count(1):
        for stream in range(1, streams + 1):
            yield (
                stream, version, "benchmark.deposited", 1, '{"amount":1}', None, uuid7().bytes, None, _CHECKSUM, 0,
                time.time_ns() // 1000,
            )  # fmt: skip
