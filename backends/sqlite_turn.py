"""SQLiteTurn: the turn of the writer's thread that a transaction with SQL of the user's own has.

There is one writer at a time, so the transaction takes a turn of the writer's thread: appends wait for it in the order
in which they came, and it holds the lock that keeps processes apart as any other job does. The thread begins it, waits
for its end, and brings that about; so its time is over when it is over, whatever the event loop is busy with.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from backends import sqlite_checkpoints
from backends.sqlite_append import SQLiteAppend
from backends.sqlite_connection import translated
from backends.sqlite_records import log_within
from backends.sqlite_user_connection import Tenure, UserConnection, UserConnections
from backends.thread_outcomes import settle
from eventstore.backend import Appended, AppendOutcome, Batch, StoredCheckpoint
from eventstore.contract.sql_transaction import Stored, Unread
from eventstore.errors import (
    EventStoreError,
    StoreClosed,
    TransactionConflict,
    TransactionExpired,
    TransactionRefused,
)

NOTHING_STORED = "the transaction was rolled back, nothing of it was stored"


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
            self._loop.call_soon_threadsafe(settle, self.begun, connection, None)
            return self._until_ordered(connection)
        except RuntimeError:
            # The loop is gone, and nobody will give an order.
            with connection.taken_back(ended, patience=0):
                self._close(connection)
            raise

    def _until_ordered(self, connection: UserConnection) -> AppendOutcome | None:
        deadline = time.monotonic() + self._seconds
        refusal: Callable[[], EventStoreError] = ended
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
            self._loop.call_soon_threadsafe(settle, order.stored, None, failure)
        except Exception as error:
            self._loop.call_soon_threadsafe(settle, order.stored, None, error)
        else:
            positions = (outcome.position for outcome in stored.outcomes if isinstance(outcome, Appended))
            self._last_position = max(positions, default=0)
            self._loop.call_soon_threadsafe(settle, order.stored, stored, None)

    def _stored_and_read(self, connection: UserConnection, order: _Storing) -> Stored:
        tenant = self._append.tenant
        checkpoints = [_found(connection, tenant, one) for one in order.unread]
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
            raise TransactionRefused(f"an error of a statement has ended it: {NOTHING_STORED}")
        try:
            if not all(
                sqlite_checkpoints.save(connection, self._append.tenant, checkpoint) for checkpoint in checkpoints
            ):
                raise TransactionConflict(f"somebody else has changed a checkpoint: {NOTHING_STORED}")
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


def ended() -> StoreClosed:
    """What is said to whoever goes on with a transaction that has ended."""
    return StoreClosed("the transaction has ended: nothing was stored by this call; begin another one")


def _found(connection: sqlite3.Connection, tenant: str, unread: Unread) -> StoredCheckpoint:
    found = sqlite_checkpoints.find(connection, tenant, unread.name, unread.version)
    if found is None:
        raise TransactionConflict(
            f"there is no version {unread.version} of the checkpoint {unread.name!r}: {NOTHING_STORED}"
        )
    return found
