"""SQLiteTransaction: statements of the user's own and a batch of events, in one transaction of the file."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from backends import sqlite_checkpoints
from backends.sqlite_connection import translated
from backends.sqlite_turn import NOTHING_STORED, SQLiteTurn, ended
from backends.sqlite_user_connection import UserConnection
from backends.sqlite_user_driver import UserDriver
from eventstore.backend import Appended, AppendOutcome, Batch, StoredCheckpoint, stored_by
from eventstore.calls.finishing import finish_then_cancel
from eventstore.contract.sql_transaction import Stored, Unread
from eventstore.errors import (
    CapabilityError,
    EventStoreError,
    OutcomeUnknown,
    StoreClosed,
    TransactionExpired,
    TransactionRefused,
)

_T = TypeVar("_T")


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
        return await self._with_checkpoints(
            lambda connection: sqlite_checkpoints.find(connection, self._tenant, name, version)
        )

    async def save_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        return await self._with_checkpoints(
            lambda connection: sqlite_checkpoints.save(connection, self._tenant, checkpoint)
        )

    async def delete_checkpoint(self, name: str, version: int, revision: int) -> bool:
        return await self._with_checkpoints(
            lambda connection: sqlite_checkpoints.delete(connection, self._tenant, name, version, revision)
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
                    f"its batches were stored before, and it takes no further one: {NOTHING_STORED}"
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
        return ended()

    def _check_place(self) -> None:
        if os.getpid() != self._pid:
            raise StoreClosed("this transaction was begun before a fork: it is the parent's, and nothing was done")
        if asyncio.get_running_loop() is not self._loop:
            raise StoreClosed("this transaction was begun in another event loop: begin one in each")
