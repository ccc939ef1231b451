"""SQLiteBackend: the journal in one file. Writes go through one thread, reads through their own connections."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar, cast

from backends import checkpoints_sql, sqlite_changing, sqlite_commands, sqlite_ownership
from backends.checkpoints_sql import CHECKPOINT_SECONDS, change_in_sql
from backends.damaged_outcomes import damaged_outcome
from backends.sqlite_append import SQLiteAppend
from backends.sqlite_archive import SQLiteArchive
from backends.sqlite_audit import SQLiteAudit
from backends.sqlite_connection import check_file, check_library, check_schema, inspect, thread_missing
from backends.sqlite_forks import NO_FILE, OPEN_FILES
from backends.sqlite_ownership import SQLiteLease
from backends.sqlite_transaction import SQLiteTransaction
from backends.sqlite_transactions import SQLiteTransactions
from backends.sqlite_writer import SQLiteWriter
from backends.waiters import Waiters
from eventstore.backend import (
    AppendOutcome,
    Batch,
    Capabilities,
    CheckpointKey,
    Claim,
    CommandLookup,
    CommandsFound,
    Durability,
    Holder,
    Holding,
    Owner,
    OwnerInfo,
    StoredCheckpoint,
    StoredSeal,
    StoredSnapshot,
)
from eventstore.calls.appending import Appending
from eventstore.errors import InvalidStoreUrl, JournalCorrupt
from eventstore.tenant import NO_TENANT
from eventstore.url import SQLITE_PARAMETERS, StoreUrl

_DEFAULT_BUSY_TIMEOUT_SECONDS = 5.0
_MAX_BUSY_TIMEOUT_SECONDS = 600.0

# A group of so many batches is handed over to the writer's thread at once, because whoever sent them will keep the loop
# busy. For fewer it is not worth the switch.
_AT_ONCE = 8

# FULL syncs the log at every commit. NORMAL does not: it lost acknowledged commits in nearly all simulated power
# losses, and none in a crash of the process.
_SYNCHRONOUS = {Durability.POWER_LOSS: "FULL", Durability.PROCESS_CRASH: "NORMAL"}

_T = TypeVar("_T")


class SQLiteBackend(SQLiteAudit):
    """`sqlite:///bank.db`, with `?durability=power-loss|process-crash` and `?busy_timeout=` in seconds.

    Several processes may open one file: each commit takes the file's write lock, and a process that cannot get it
    within the busy timeout raises `StoreBusy`. Network file systems are refused by SQLite's WAL mode or unsafe.
    """

    capabilities = Capabilities(creates_schema=True, survives_restart=True, user_sql=True, tenants=True, archive=True)
    database = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(
            url.file_path(parameters=SQLITE_PARAMETERS), tenant=url.tenant, busy_timeout=_busy_timeout(url)
        )
        self.durability = _durability(url)
        self.schema_revision: str | None = None
        self._append = SQLiteAppend(url.tenant)
        self._writer: SQLiteWriter | None = None
        self._transactions: SQLiteTransactions | None = None
        self._waiters = Waiters()
        self._file = NO_FILE

    async def open(self) -> None:
        file = OPEN_FILES.opened(self._path)
        try:
            await self._open()
        except BaseException as error:
            OPEN_FILES.closed(file)
            if isinstance(error, RuntimeError):
                raise thread_missing(error) from error
            raise
        self._file = file

    async def _open(self) -> None:
        check_library()
        await asyncio.to_thread(check_file, self._path)
        # Before the writer's connection, which puts the file into WAL mode.
        await asyncio.to_thread(inspect, self._path, busy_timeout=self._busy_timeout)
        writer = self._new_writer()
        writer.on_connect = self._append.begin
        writer.start()
        try:
            self.schema_revision = await writer.run(lambda connection: check_schema(connection, self._path))
        except BaseException:
            await writer.close()
            raise
        self._writer = writer
        self._transactions = SQLiteTransactions(
            self._path,
            writer,
            self._append,
            synchronous=_SYNCHRONOUS[self.durability],
            busy_timeout=self._busy_timeout,
        )
        self._transactions.on_end = lambda _: self._wake()
        self.open_readers()

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        transactions, self._transactions = self._transactions, None
        self._wake()
        if transactions is not None and writer is not None:
            await transactions.close()
        await self.close_readers()
        if writer is not None:
            await writer.close()
            OPEN_FILES.closed(self._file)

    # Writing

    def append(self, batches: Sequence[Batch]) -> Appending:
        appending = Appending()

        def end(outcomes: Sequence[AppendOutcome] | None, error: BaseException | None) -> None:
            self._wake()
            appending.end(outcomes, error)

        begun = None
        if len(batches) >= _AT_ONCE:
            begun = threading.Lock()
            begun.acquire()
        self._open_writer.submit(lambda connection: self._append.append(connection, batches, begun), end, begun=begun)
        return appending

    def archive(self) -> SQLiteArchive:
        self.check_open()
        return SQLiteArchive(self._path, self._driver_rows, lambda work: self._change(work, None))

    async def begin_sql(self, *, seconds: float) -> SQLiteTransaction:
        self.check_open()
        return await cast("SQLiteTransactions", self._transactions).begin(seconds)

    async def checkpoints(self, *, shared: bool = False) -> Sequence[StoredCheckpoint]:
        rows = await self._rows(checkpoints_sql.selected(NO_TENANT if shared else self.tenant))
        return [checkpoints_sql.stored_checkpoint(*row) for row in rows]

    async def change_checkpoints(
        self, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey] = ()
    ) -> bool:
        transaction = await self.begin_sql(seconds=CHECKPOINT_SECONDS)
        return await change_in_sql(transaction, saving, removing)

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        return await self._change(
            lambda connection: sqlite_changing.forget_commands(connection, self.tenant, stream_id, keep, before),
            [stream_id],
        )

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        return await self._change(
            lambda connection: sqlite_changing.truncate(
                connection, self.tenant, stream_id, through, reason, epoch, fingerprint
            ),
            None,
        )

    async def add_seal(self, seal: StoredSeal) -> bool:
        return await self._open_writer.run(lambda connection: sqlite_changing.add_seal(connection, seal))

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        return await self._open_writer.run(
            lambda connection: sqlite_changing.save_snapshot(connection, self.tenant, snapshot, keep)
        )

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        return await self._open_writer.run(
            lambda connection: sqlite_changing.delete_snapshots(connection, self.tenant, stream_id, through)
        )

    # Ownership

    def lease(self, owner: Owner) -> SQLiteLease:
        self.check_open()
        return SQLiteLease(self.tenant, owner, self._new_writer)

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        claimed = [claim.stream_id for claim in claims]
        return await self._change(lambda connection: sqlite_ownership.claim(connection, self.tenant, claims), claimed)

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        await self._open_writer.run(lambda connection: sqlite_ownership.release(connection, self.tenant, owner, epochs))

    async def owners(self) -> Sequence[OwnerInfo]:
        ((found,),) = await self._driver_rows(sqlite_ownership.OWNERS, (self.tenant, sqlite_changing.now()))
        return sqlite_ownership.owners(found)

    async def holdings(self, *, after: str, limit: int) -> Sequence[Holding]:
        ((found,),) = await self._driver_rows(sqlite_ownership.HOLDINGS, (self.tenant, after, limit))
        return sqlite_ownership.holdings(found)

    async def find_commands(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        if not lookups:
            return []
        try:
            ((found,),) = await self._driver_rows(
                sqlite_commands.FIND, sqlite_commands.parameters(self.tenant, lookups)
            )
            return sqlite_commands.answers(lookups, found)
        except JournalCorrupt as error:
            if len(lookups) == 1:
                return [damaged_outcome(lookups[0], error)]
        # As for loads: one damaged row spoils the answer, so that each is asked for by itself.
        return [(await self.find_commands([lookup]))[0] for lookup in lookups]

    async def wait(self, after: int, timeout: float) -> None:
        self.check_open()
        if self._append.last_position > after:
            return
        await self._waiters.wait(timeout)

    async def _change(self, work: Callable[[sqlite3.Connection], _T], stream_ids: Sequence[str] | None) -> _T:
        """Do what changes streams that appends remember: these, or with None the removals, which all depend on."""

        def change(connection: sqlite3.Connection) -> _T:
            try:
                return work(connection)
            finally:
                self._append.forget(stream_ids)

        return await self._open_writer.run(change)

    def _new_writer(self) -> SQLiteWriter:
        return SQLiteWriter(self._path, synchronous=_SYNCHRONOUS[self.durability], busy_timeout=self._busy_timeout)

    @property
    def _open_writer(self) -> SQLiteWriter:
        self.check_open()
        return cast("SQLiteWriter", self._writer)

    def _wake(self) -> None:
        self._waiters.wake()


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
