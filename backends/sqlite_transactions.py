"""SQLiteTransactions: begins transactions with SQL of the users' own on one file."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection as EngineConnection
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from backends.open_transactions import OpenTransactions
from backends.sqlite_append import SQLiteAppend
from backends.sqlite_connection import thread_missing
from backends.sqlite_transaction import SQLiteTransaction
from backends.sqlite_turn import NOTHING_STORED, SQLiteTurn
from backends.sqlite_user_connection import UserConnections
from backends.sqlite_user_driver import UserDriver, UserThread
from backends.sqlite_writer import SQLiteWriter
from eventstore.backend import Appended, AppendOutcome, Batch
from eventstore.errors import (
    BackendUnavailable,
    CapabilityError,
    EventStoreError,
    OutcomeUnknown,
    StoreBusy,
    StoreClosed,
)

# The longest part of the busy timeout that a transaction may have: who waits for it as long as that must get his turn.
_SHARE = 0.8

_CHANGE_NOTHING = "UPDATE eventstore_version SET version_num = version_num"

_handed_over: ContextVar[UserDriver] = ContextVar("handed_over")


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
        self._open: OpenTransactions[SQLiteTransaction] = OpenTransactions()
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
        self._open.keep(served)
        served.add_done_callback(_retrieve)
        served.add_done_callback(self.on_end)
        try:
            async with asyncio.timeout(self._busy_timeout):
                either: list[asyncio.Future[Any]] = [turn.begun, served]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError as error:
            turn.end()
            raise StoreBusy(
                f"others have been writing for {self._busy_timeout:g} s: nothing was done, try again"
            ) from error
        except BaseException:
            turn.end()
            raise
        return await self._open.begun(self._connect(turn, served))

    async def close(self) -> None:
        """Roll back what is open, and finish what is being committed."""
        self._is_closed = True
        await self._open.close()
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
                raise BackendUnavailable(f"the disk failed at the commit: {NOTHING_STORED}")
            return found

        return self._open.own(find_out())

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


async def _driver_connection(**_: Any) -> UserDriver:
    return _handed_over.get()


def _check_end(connection: EngineConnection) -> None:
    transaction = connection.get_execution_options().get("eventstore_transaction")
    # Where SQLAlchemy has begun none it tidies up after an error, and the user has asked for nothing.
    if isinstance(transaction, SQLiteTransaction) and connection.in_transaction():
        transaction.check_end()


def _on_error(context: ExceptionContext) -> BaseException | None:
    # Else SQLAlchemy makes an error of its own of it.
    return context.original_exception if isinstance(context.original_exception, EventStoreError) else None


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()  # Whoever waits for it has it.
