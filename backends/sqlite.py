"""SQLiteBackend: the journal in one file. Writes go through one thread, reads through their own connections."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import cast

from backends.sqlite_append import LOG_END, SQLiteAppend
from backends.sqlite_connection import check_file, check_library, check_schema, inspect
from backends.sqlite_reading import SQLiteReader
from backends.sqlite_writer import SQLiteWriter
from eventstore.backend import AppendOutcome, Batch, Capabilities, Durability, StoredSnapshot
from eventstore.errors import InvalidStoreUrl
from eventstore.events import stream_kind
from eventstore.url import SQLITE_PARAMETERS, StoreUrl

_DEFAULT_BUSY_TIMEOUT_SECONDS = 5.0
_MAX_BUSY_TIMEOUT_SECONDS = 600.0
_MAX_VERSION = 2**63 - 1

# A group of so many batches is handed over to the writer's thread at once, because whoever sent them will keep the loop
# busy. For fewer it is not worth the switch.
_AT_ONCE = 8

# FULL syncs the log at every commit. NORMAL does not: it lost acknowledged commits in nearly all simulated power
# losses, and none in a crash of the process.
_SYNCHRONOUS = {Durability.POWER_LOSS: "FULL", Durability.PROCESS_CRASH: "NORMAL"}

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


class SQLiteBackend(SQLiteReader):
    """`sqlite:///bank.db`, with `?durability=power-loss|process-crash` and `?busy_timeout=` in seconds.

    Several processes may open one file: each commit takes the file's write lock, and a process that cannot get it
    within the busy timeout raises `StoreBusy`. Network file systems are refused by SQLite's WAL mode or unsafe.
    """

    capabilities = Capabilities(creates_schema=True, survives_restart=True)
    database = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url.file_path(parameters=SQLITE_PARAMETERS), busy_timeout=_busy_timeout(url))
        self.durability = _durability(url)
        self.schema_revision: str | None = None
        self._append = SQLiteAppend()
        self._writer: SQLiteWriter | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        check_library()
        await asyncio.to_thread(check_file, self._path)
        # Before the writer's connection, which puts the file into WAL mode.
        await asyncio.to_thread(inspect, self._path, busy_timeout=self._busy_timeout)
        writer = SQLiteWriter(self._path, synchronous=_SYNCHRONOUS[self.durability], busy_timeout=self._busy_timeout)
        writer.on_reconnect = self._append.forget
        writer.start()
        try:
            self.schema_revision = await writer.run(lambda connection: check_schema(connection, self._path))
        except BaseException:
            await writer.close()
            raise
        self._writer = writer
        self.open_readers()

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        self._wake()
        await self.close_readers()
        if writer is not None:
            await writer.close()

    # Writing

    def append(self, batches: Sequence[Batch]) -> asyncio.Future[Sequence[AppendOutcome]]:
        future = self._open_writer.run(
            lambda connection: self._append.append(connection, batches), at_once=len(batches) >= _AT_ONCE
        )
        future.add_done_callback(self._wake)
        return future

    async def claim(self, stream_id: str) -> int:
        def claim(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                stream = _stream_row(connection, stream_id)
                connection.execute("UPDATE journal_streams SET epoch = epoch + 1 WHERE id = ?", (stream,))
                row = connection.execute("SELECT epoch FROM journal_streams WHERE id = ?", (stream,)).fetchone()
            self._append.forget()
            return int(row[0])

        return await self._open_writer.run(claim)

    async def truncate(self, stream_id: str, through: int, *, reason: str) -> int:
        def truncate(connection: sqlite3.Connection) -> int:
            with _transaction(connection):
                found = connection.execute(
                    "SELECT s.id, max(s.truncated, coalesce(max(e.version), 0)) FROM journal_streams s "
                    "LEFT JOIN journal_events e ON e.stream = s.id WHERE s.tenant = '' AND s.stream_id = ?",
                    (stream_id,),
                ).fetchone()
                if found is None or found[0] is None:
                    return 0
                stream, last = found[0], min(through, found[1])
                (log_end,) = connection.execute(LOG_END).fetchone()
                # The door that the delete trigger looks for; it stays as the record of what was removed, and of where
                # the log ended, so that no position is used again.
                door = connection.execute(
                    "INSERT INTO journal_removals (stream, through, reason, is_open, log_end, recorded_at) "
                    "VALUES (?, ?, ?, 1, ?, ?)",
                    (stream, last, reason, log_end, _now()),
                ).lastrowid
                removed = connection.execute(
                    "DELETE FROM journal_events WHERE stream = ? AND version <= ?", (stream, last)
                ).rowcount
                connection.execute(
                    "UPDATE journal_streams SET truncated = max(truncated, ?) WHERE id = ?", (last, stream)
                )
                connection.execute("UPDATE journal_removals SET is_open = 0, removed = ? WHERE id = ?", (removed, door))
            self._append.forget()
            return removed

        return await self._open_writer.run(truncate)

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> None:
        def save(connection: sqlite3.Connection) -> None:
            with _transaction(connection):
                stream = _stream_row(connection, snapshot.stream_id)
                connection.execute(
                    "INSERT OR REPLACE INTO journal_snapshots "
                    "(stream, version, fingerprint, encoding, payload, checksum, epoch, recorded_at) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        stream,
                        snapshot.version,
                        snapshot.fingerprint,
                        snapshot.encoding,
                        snapshot.payload,
                        snapshot.checksum,
                        snapshot.epoch,
                        _microseconds(snapshot.recorded_at),
                    ),
                )
                connection.execute(
                    "DELETE FROM journal_snapshots WHERE stream = ?1 AND version NOT IN "
                    "(SELECT version FROM journal_snapshots WHERE stream = ?1 ORDER BY version DESC LIMIT ?2)",
                    (stream, keep),
                )

        await self._open_writer.run(save)

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "DELETE FROM journal_snapshots WHERE version <= ? AND stream IN "
                "(SELECT id FROM journal_streams WHERE tenant = '' AND stream_id = ?)",
                (_MAX_VERSION if through is None else through, stream_id),
            ).rowcount

        return await self._open_writer.run(delete)

    async def wait(self, after: int, timeout: float) -> None:
        self.check_open()
        if self._append.last_position > after:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.add(waiter)
        timer = loop.call_later(timeout, _release, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiters.discard(waiter)

    @property
    def _open_writer(self) -> SQLiteWriter:
        self.check_open()
        return cast("SQLiteWriter", self._writer)

    def _wake(self, _: object = None) -> None:
        for waiter in self._waiters:
            _release(waiter)


def _durability(url: StoreUrl) -> Durability:
    name = url.parameters.get("durability", Durability.POWER_LOSS.value)
    for durability in _SYNCHRONOUS:
        if durability.value == name:
            return durability
    known = " or ".join(durability.value for durability in _SYNCHRONOUS)
    raise InvalidStoreUrl(f"{url}: durability is {known}, not {name!r}")


def _busy_timeout(url: StoreUrl) -> float:
    given = url.parameters.get("busy_timeout", str(_DEFAULT_BUSY_TIMEOUT_SECONDS))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MAX_BUSY_TIMEOUT_SECONDS:
        raise InvalidStoreUrl(
            f"{url}: busy_timeout is a number of seconds from 0 to {_MAX_BUSY_TIMEOUT_SECONDS:g}, not {given!r}"
        )
    return seconds


def _stream_row(connection: sqlite3.Connection, stream_id: str) -> int:
    """The id of a stream's row, which is made if there is none."""
    connection.execute(
        "INSERT INTO journal_streams (stream_id, kind, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (stream_id, stream_kind(stream_id), _now()),
    )
    row = connection.execute(
        "SELECT id FROM journal_streams WHERE tenant = '' AND stream_id = ?", (stream_id,)
    ).fetchone()
    return int(row[0])


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    # IMMEDIATE: a transaction that starts by reading can be refused the write lock later, however long it waits.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _now() -> int:
    return time.time_ns() // 1000


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH_START) // timedelta(microseconds=1)
