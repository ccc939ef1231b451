"""SQLiteTransaction: statements of the user's own and a batch of events, in one transaction of the file.

There is one writer at a time, so the transaction takes a turn of the writer's thread: appends wait for it in the order
in which they came, and it holds the lock that keeps processes apart as any other job does. The thread begins it, waits
for its end, and brings that about; so its time is over when it is over, whatever the event loop is busy with.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection as EngineConnection
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from backends.checkpoints_sql import (
    delete_text,
    insert_text,
    saved_values,
    select_text,
    stored_checkpoint,
    update_text,
)
from backends.sqlite_append import SQLiteAppend
from backends.sqlite_connection import thread_missing, translated
from backends.sqlite_reading import log_within
from backends.sqlite_user_connection import Tenure, UserConnection, UserConnections
from backends.sqlite_user_driver import UserDriver, UserThread
from backends.sqlite_writer import SQLiteWriter
from eventstore.backend import Appended, AppendOutcome, Batch, StoredCheckpoint, stored_by
from eventstore.calls.finishing import finish_then_cancel
from eventstore.contract.sql_transaction import Stored, Unread
from eventstore.errors import (
    BackendUnavailable,
    CapabilityError,
    EventStoreError,
    OutcomeUnknown,
    StoreBusy,
    StoreClosed,
    TransactionConflict,
    TransactionExpired,
    TransactionRefused,
)

_T = TypeVar("_T")

# The longest part of the busy timeout that a transaction may have: who waits for it as long as that must get his turn.
_SHARE = 0.8

_PLACES = tuple(f"?{number}" for number in range(1, 9))
_SELECT_CHECKPOINT = select_text("journal_checkpoints", _PLACES[:3])
_INSERT_CHECKPOINT = insert_text("journal_checkpoints", _PLACES)
_UPDATE_CHECKPOINT = update_text("journal_checkpoints", _PLACES)
_DELETE_CHECKPOINT = delete_text("journal_checkpoints", _PLACES[:4])

_CHANGE_NOTHING = "UPDATE eventstore_version SET version_num = version_num"

_NOTHING_STORED = "the transaction was rolled back, nothing of it was stored"

_handed_over: ContextVar[UserDriver] = ContextVar("handed_over")


class _Storing(NamedTuple):
    """An order to store batches, and what came of it."""

    batches: Sequence[Batch]
    unread: Sequence[Unread]
    stored: asyncio.Future[Stored]


class _Committing(NamedTuple):
    """An order to store a batch and checkpoints, and to commit."""

    batch: Batch
    checkpoints: Sequence[StoredCheckpoint]


class SQLiteTurn:
    """The writer's turn that a transaction has, as a job of the writer's thread."""

    def __init__(self, connections: UserConnections, append: SQLiteAppend, *, seconds: float) -> None:
        self._connections = connections
        self._append = append
        self._seconds = seconds
        self._orders: queue.SimpleQueue[_Committing | _Storing | None] = queue.SimpleQueue()
        self._last_position = 0
        self._is_withdrawn = False
        # A connection on which something went wrong is not used again.
        self._is_sound = True
        self.tenure = Tenure()
        self._loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[UserConnection] = self._loop.create_future()
        self.outcome: AppendOutcome | None = None
        """What came of the batch, should nobody get to know whether it was committed."""

    def commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint]) -> None:
        """Order the thread to store the batch and the checkpoints, and commit."""
        self._orders.put(_Committing(batch, checkpoints))

    def store(self, batches: Sequence[Batch], unread: Sequence[Unread]) -> asyncio.Future[Stored]:
        """Order the thread to store batches, and to wait for the next order."""
        stored: asyncio.Future[Stored] = self._loop.create_future()
        self._orders.put(_Storing(batches, unread, stored))
        return stored

    def end(self) -> None:
        """Order it to roll back, or not to begin."""
        self._is_withdrawn = True
        self._orders.put(None)

    def serve(self, _: sqlite3.Connection) -> AppendOutcome | None:
        """The job. None: it was rolled back as ordered."""
        if self._is_withdrawn:
            return None
        connection = self._begin()
        try:
            self._loop.call_soon_threadsafe(_settle, self.begun, connection)
            return self._until_ordered(connection)
        except RuntimeError:
            # The loop is gone, and nobody will give an order.
            with connection.taken_back(_ended, patience=0):
                self._close(connection)
            raise

    def _until_ordered(self, connection: UserConnection) -> AppendOutcome | None:
        deadline = time.monotonic() + self._seconds
        refusal: Callable[[], EventStoreError] = _ended
        committing: _Committing | None = None
        try:
            while isinstance(order := self._orders.get(timeout=max(0.0, deadline - time.monotonic())), _Storing):
                self._store(connection, order)
            committing = order
        except queue.Empty:
            refusal = self._expired
        with connection.taken_back(refusal, patience=deadline - time.monotonic()) as is_interrupted:
            try:
                if is_interrupted or refusal == self._expired:
                    self._is_sound = False
                    raise self._expired()
                return None if committing is None else self._commit(connection, *committing)
            finally:
                self._close(connection)

    def _expired(self) -> TransactionExpired:
        return TransactionExpired(self._seconds)

    def _begin(self) -> UserConnection:
        connection = self._connections.taken()
        try:
            connection.execute("BEGIN IMMEDIATE")
            self.tenure = connection.hand_over()
        except BaseException:
            connection.close()
            raise
        return connection

    def _store(self, connection: UserConnection, order: _Storing) -> None:
        try:
            with connection.lent_back():
                stored = self._stored_and_read(connection, order)
        except sqlite3.Error as error:
            failure = translated(error, writing=False)
            failure.__cause__ = error
            self._loop.call_soon_threadsafe(_fail, order.stored, failure)
        except Exception as error:
            self._loop.call_soon_threadsafe(_fail, order.stored, error)
        else:
            positions = (outcome.position for outcome in stored.outcomes if isinstance(outcome, Appended))
            self._last_position = max(positions, default=0)
            self._loop.call_soon_threadsafe(_settle, order.stored, stored)

    def _stored_and_read(self, connection: UserConnection, order: _Storing) -> Stored:
        tenant = self._append.tenant
        checkpoints = [_found(connection, (tenant, one.name, one.version)) for one in order.unread]
        outcomes = self._append_within(connection, order.batches)
        pages = [
            log_within(connection, tenant, after=checkpoint.position, limit=one.limit, where=one.where)
            for one, checkpoint in zip(order.unread, checkpoints, strict=True)
        ]
        return Stored(outcomes, list(zip(checkpoints, pages, strict=True)))

    def _commit(
        self, connection: UserConnection, batch: Batch, checkpoints: Sequence[StoredCheckpoint]
    ) -> AppendOutcome:
        if not connection.in_transaction:
            raise TransactionRefused(f"an error of a statement has ended it: {_NOTHING_STORED}")
        try:
            if not all(_is_saved(connection, self._append.tenant, checkpoint) for checkpoint in checkpoints):
                raise TransactionConflict(f"somebody else has changed a checkpoint: {_NOTHING_STORED}")
            outcome = self._stored(connection, batch)
        except sqlite3.Error as error:
            self._is_sound = False
            raise translated(error, writing=False) from error
        if not isinstance(outcome, Appended) or outcome.is_duplicate:
            return outcome
        self.outcome = outcome
        self._is_sound = False
        try:
            connection.execute("COMMIT")
            self._is_sound = True
        except sqlite3.IntegrityError as error:
            raise TransactionRefused(
                f"SQLite would not commit the user's own statements: {error}; nothing was stored"
            ) from error
        if last := max(outcome.position, self._last_position):
            self._append.moved(last)
        return outcome

    def _stored(self, connection: UserConnection, batch: Batch) -> AppendOutcome:
        if not batch:
            return Appended(0, ())
        (outcome,) = self._append_within(connection, [batch])
        return outcome

    def _append_within(self, connection: UserConnection, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return SQLiteAppend(self._append.tenant).append_within(connection, batches).outcomes

    def _close(self, connection: UserConnection) -> None:
        # What was not committed is rolled back by it. The lock that keeps processes apart is still held.
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if self._is_sound:
            self._connections.give_back(connection)
        else:
            connection.close()


class SQLiteTransaction:
    """One transaction, in the event loop."""

    def __init__(
        self,
        connection: AsyncConnection,
        driver: UserDriver,
        turn: SQLiteTurn,
        served: asyncio.Future[AppendOutcome | None],
        find_out: Callable[[Batch, Appended], asyncio.Future[AppendOutcome]],
        tenant: str,
    ) -> None:
        self.connection = connection
        self._tenant = tenant
        self._driver = driver
        self._turn = turn
        self._served = served
        self._find_out = find_out
        self._using = asyncio.Lock()
        self._is_open = True
        self._doubt: Appended | None = None
        self._stored: Batch = ()
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()

    async def commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint] = ()) -> AppendOutcome:
        self._check_place()
        return await finish_then_cancel(asyncio.ensure_future(self._commit(batch, checkpoints)))

    async def store(self, batches: Sequence[Batch], unread: Sequence[Unread] = ()) -> Stored:
        self._check_place()
        async with self._using:
            if not self._is_open:
                raise self._ended()
            stored = self._turn.store(batches, unread)
            either: list[asyncio.Future[Any]] = [stored, self._served]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not stored.done():
                raise self._ended()
            self._stored = stored_by(batches, stored.result().outcomes)
            return stored.result()

    async def lock_checkpoint(self, name: str, version: int) -> StoredCheckpoint | None:
        # Nobody else writes to the file.
        return await self._with_checkpoints(lambda connection: _checkpoint(connection, (self._tenant, name, version)))

    async def save_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        return await self._with_checkpoints(lambda connection: _is_saved(connection, self._tenant, checkpoint))

    async def delete_checkpoint(self, name: str, version: int, revision: int) -> bool:
        parameters = (self._tenant, name, version, revision)
        return await self._with_checkpoints(
            lambda connection: connection.execute(_DELETE_CHECKPOINT, parameters).rowcount == 1
        )

    async def _with_checkpoints(self, work: Callable[[UserConnection], _T]) -> _T:
        def working(connection: UserConnection) -> _T:
            with connection.for_checkpoints():
                return work(connection)

        try:
            return await self._driver.run(working)
        except sqlite3.Error as error:
            raise translated(error, writing=False) from error
        except ValueError as error:
            raise self._ended() from error

    async def rollback(self) -> None:
        self._check_place()
        await finish_then_cancel(asyncio.ensure_future(self._roll_back()))

    def check_end(self) -> None:
        """Called when the connection is told to commit or to roll back."""
        if self._is_open:
            raise CapabilityError(
                "nothing was done: the connection's transaction is committed with the events, or rolled back, by "
                "whoever began it; use begin_nested() for a part of it that may be undone"
            )

    async def _commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint]) -> AppendOutcome:
        async with self._using:
            if self._doubt is not None:
                found = await self._find_out(self._stored or batch, self._doubt)
                self._doubt = None
                return found
            if not self._is_open:
                raise self._ended()
            if self.connection.closed:
                self._turn.end()
                await self._end()
                raise TransactionRefused("its connection was closed before the commit: nothing was stored")
            if self._stored and batch:
                raise TransactionRefused(
                    f"its batches were stored before, and it takes no further one: {_NOTHING_STORED}"
                )
            self._turn.commit(batch, checkpoints)
            outcome: AppendOutcome | None = None
            try:
                outcome = await self._served
            except OutcomeUnknown:
                assert isinstance(self._turn.outcome, Appended)  # noqa: S101 - it is set before the only way here
                self._doubt = self._turn.outcome
                raise
            finally:
                await self._end()
            if outcome is None:
                raise self._ended()
            return outcome

    async def _roll_back(self) -> None:
        async with self._using:
            if self._is_open:
                self._turn.end()
                with suppress(EventStoreError):
                    await self._served
                await self._end()

    async def _end(self) -> None:
        self._is_open = False
        await self.connection.close()

    def _ended(self) -> EventStoreError:
        error = self._served.exception() if self._served.done() else None
        if isinstance(error, TransactionExpired):
            return error
        return _ended()

    def _check_place(self) -> None:
        if os.getpid() != self._pid:
            raise StoreClosed("this transaction was begun before a fork: begin another one in the child process")
        if asyncio.get_running_loop() is not self._loop:
            raise StoreClosed("this transaction was begun in another event loop: begin one in each")


class SQLiteTransactions:
    """Begins transactions on one file, and ends those that are open when the store is closed."""

    def __init__(
        self, path: Path, writer: SQLiteWriter, append: SQLiteAppend, *, synchronous: str, busy_timeout: float
    ) -> None:
        self._writer = writer
        self._append = append
        self._busy_timeout = busy_timeout
        self._connections = UserConnections(
            path, tenant=append.tenant, synchronous=synchronous, busy_timeout=busy_timeout
        )
        self._thread = UserThread(path)
        self._engine: AsyncEngine | None = None
        # Who connects first on a NullPool does so in a lock of threads: one more in it would stop the event loop.
        self._connecting = asyncio.Lock()
        self._open: set[SQLiteTransaction] = set()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._is_closed = False
        self.on_end: Callable[[object], None] = lambda _: None
        """Called when a turn has ended, whatever came of it."""

    async def begin(self, seconds: float) -> SQLiteTransaction:
        """Begin a transaction. If the caller is cancelled it is rolled back, in the background."""
        seconds = min(seconds, _SHARE * self._busy_timeout)
        if seconds <= 0:
            raise CapabilityError("with busy_timeout=0 nobody waits for a transaction: nothing was done")
        turn = SQLiteTurn(self._connections, self._append, seconds=seconds)
        served = self._writer.run(turn.serve)
        self._keep(served)
        served.add_done_callback(_retrieve)
        served.add_done_callback(self.on_end)
        try:
            async with asyncio.timeout(self._busy_timeout):
                either: list[asyncio.Future[Any]] = [turn.begun, served]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            connecting = self._owned(self._connect(turn, served))
        except TimeoutError as error:
            turn.end()
            raise StoreBusy(
                f"others have been writing for {self._busy_timeout:g} s: nothing was done, try again"
            ) from error
        except BaseException:
            turn.end()
            raise
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._abandon)
            raise

    async def close(self) -> None:
        """Roll back what is open, and finish what is being committed."""
        self._is_closed = True
        while self._open or self._tasks:
            await asyncio.gather(*(transaction.rollback() for transaction in self._open))
            if self._tasks:
                await asyncio.wait(self._tasks)
        await self._thread.close()
        await self._writer.run(lambda _: self._connections.close())

    async def _connect(self, turn: SQLiteTurn, served: asyncio.Future[AppendOutcome | None]) -> SQLiteTransaction:
        try:
            if served.done():
                # It has failed to begin, or is over already.
                await served
            if self._is_closed or served.done():
                raise StoreClosed("the store was closed: nothing was done")
            driver = self._thread.driver(turn.begun.result(), turn.tenure)
            _handed_over.set(driver)
            async with self._connecting:
                connection = await self._open_engine.connect()
        except RuntimeError as error:
            turn.end()
            raise thread_missing(error) from error
        except BaseException:
            turn.end()
            raise
        transaction = SQLiteTransaction(connection, driver, turn, served, self._find_out, self._append.tenant)
        await connection.execution_options(eventstore_transaction=transaction)
        self._open.add(transaction)
        served.add_done_callback(lambda _: self._open.discard(transaction))
        return transaction

    def _find_out(self, batch: Batch, outcome: Appended) -> asyncio.Future[AppendOutcome]:
        """Whether a commit that failed with the disk was stored all the same. The writer's connection is a new one
        since, and has made durable what it found in the log."""

        def look(connection: sqlite3.Connection) -> AppendOutcome | None:
            connection.execute("BEGIN IMMEDIATE")
            (found,) = self._append.decided(connection, [batch]).outcomes
            if isinstance(found, Appended) and found.is_duplicate:
                connection.execute("ROLLBACK")
                return outcome
            # What was written before its sync failed may be in the log still, behind its end: after a crash it would be
            # taken for committed. A commit of something else is written over it.
            connection.execute(_CHANGE_NOTHING)
            connection.execute("COMMIT")
            return None

        async def find_out() -> AppendOutcome:
            if not any(write.events or write.commands for write in batch):
                raise OutcomeUnknown("the batch has no event and no command, so nothing tells whether it was committed")
            try:
                found = await self._writer.run(look)
            except EventStoreError as error:
                raise OutcomeUnknown(f"whether it was committed could not be found out: {error}") from error
            if found is None:
                raise BackendUnavailable(f"the disk failed at the commit: {_NOTHING_STORED}")
            return found

        return self._owned(find_out())

    def _abandon(self, connecting: asyncio.Future[SQLiteTransaction]) -> None:
        if not connecting.cancelled() and connecting.exception() is None:
            self._owned(connecting.result().rollback())

    def _owned(self, work: Coroutine[Any, Any, _T]) -> asyncio.Future[_T]:
        return self._keep(asyncio.ensure_future(work))

    def _keep(self, task: asyncio.Future[_T]) -> asyncio.Future[_T]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = create_async_engine(
                "sqlite+aiosqlite://", async_creator=_driver_connection, poolclass=NullPool
            )
            sync = self._engine.sync_engine
            event.listen(sync, "commit", _check_end)
            event.listen(sync, "rollback", _check_end)
            event.listen(sync, "handle_error", _on_error, retval=True)
        return self._engine


def _checkpoint(connection: sqlite3.Connection, key: tuple[str, str, int]) -> StoredCheckpoint | None:
    row = connection.execute(_SELECT_CHECKPOINT, key).fetchone()
    return None if row is None else stored_checkpoint(*row)


def _found(connection: sqlite3.Connection, key: tuple[str, str, int]) -> StoredCheckpoint:
    found = _checkpoint(connection, key)
    if found is None:
        raise TransactionConflict(f"there is no version {key[2]} of the checkpoint {key[1]!r}: {_NOTHING_STORED}")
    return found


def _is_saved(connection: sqlite3.Connection, tenant: str, checkpoint: StoredCheckpoint) -> bool:
    statement = _UPDATE_CHECKPOINT if checkpoint.revision else _INSERT_CHECKPOINT
    return connection.execute(statement, saved_values(tenant, checkpoint)).rowcount == 1


async def _driver_connection(**_: Any) -> UserDriver:
    return _handed_over.get()


def _check_end(connection: EngineConnection) -> None:
    transaction = connection.get_execution_options().get("eventstore_transaction")
    # Where SQLAlchemy has begun none it tidies up after an error, and the user has asked for nothing.
    if isinstance(transaction, SQLiteTransaction) and connection.in_transaction():
        transaction.check_end()


def _ended() -> StoreClosed:
    return StoreClosed("the transaction has ended: nothing was stored by this call; begin another one")


def _on_error(context: ExceptionContext) -> BaseException | None:
    # Else SQLAlchemy makes an error of its own of it.
    return context.original_exception if isinstance(context.original_exception, EventStoreError) else None


def _settle(future: asyncio.Future[_T], result: _T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # Whoever waits for it has it.
