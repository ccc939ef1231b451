"""PostgresTransaction: statements of the user's own and a batch of events, in one transaction of one session."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Any

from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection

from backends.checkpoints_sql import saved_values, stored_checkpoint
from backends.postgres_append import PostgresAppend
from backends.postgres_driver import DRIVER_ERRORS, ServerError, sqlstate
from backends.postgres_errors import ROLLED_BACK, first_line, is_lost, translated
from backends.postgres_in_doubt import InDoubt, has_committed
from backends.postgres_reading import log_within
from backends.postgres_session import PLANNING, PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.postgres_stream_locks import lock_streams, streams_of
from eventstore.backend import Appended, AppendOutcome, Batch, StoredCheckpoint, stored_by
from eventstore.calls.finishing import finish_then_cancel
from eventstore.contract.sql_transaction import Stored, Unread
from eventstore.errors import (
    BackendUnavailable,
    CapabilityError,
    EventStoreError,
    StoreClosed,
    TransactionConflict,
    TransactionExpired,
    TransactionRefused,
)

# One trip: the journal's own statements are planned as in its own sessions, the user's were not; what the server calls
# this transaction, if it must be asked later what became of it (a server that was started since may have given that
# name to another one); and whether there are streams to be made.
_PREPARE = """
SELECT pg_current_xact_id()::text, pg_postmaster_start_time()::text, EXISTS (
    SELECT FROM unnest($1::text[]) AS w (stream_id) WHERE NOT EXISTS (
        SELECT FROM {schema}.journal_streams s WHERE s.tenant = {tenant} AND s.stream_id = w.stream_id)
), set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), true),
    {planning}{shared}
"""
# Appends take the lock before they lock streams, and so does this. Else one that has it alone, and wants a stream,
# would wait for one that has the stream, and wants the lock.
_SHARED = ", pg_advisory_xact_lock_shared({lock})"
# Alone: all other appends have ended when it is had, and none begins before the end of the transaction. So the log is
# what the next statement sees, and positions rise in the order of commits.
_ALONE = """
SELECT pg_current_xact_id()::text, pg_postmaster_start_time()::text, current_setting('transaction_isolation'),
    pg_advisory_xact_lock({lock}),
    set_config('synchronous_commit', coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on'), true),
    {planning}
"""
_PLANNED_AS_BEFORE = "; ".join(f"SET LOCAL {name} TO DEFAULT" for name in PLANNING)
_PLANNING = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in PLANNING.items())
# The server's word for a transaction that took too long: idle inside it, or altogether.
_EXPIRED = ("25P03", "25P04")
_CONFLICTS = ("40001", "40P01")
# A lock that was not to be had, a statement that took too long.
_TIMEOUTS = ("55P03", "57014")

# The words that end a transaction, behind spaces and comments. To go back to a savepoint ends none.
_ENDS = re.compile(
    r"(?>\s|;|--[^\n]*+|/\*(?>.*?\*/))*+"
    r"(?:commit|end|abort|prepare\s+transaction|rollback(?!(?:\s+(?:work|transaction))?\s+to\b))\b",
    re.IGNORECASE | re.DOTALL,
)

_CLOCKS_DIFFER_SECONDS = 0.1


class _State(Enum):
    OPEN = "open"
    # COMMIT was sent, and no answer came.
    IN_DOUBT = "in doubt"
    ENDED = "ended"


class PostgresTransaction:
    """Uses one session, which is inside a transaction already, until it gives it back with `let_go`."""

    def __init__(
        self,
        connection: AsyncConnection,
        session: PostgresSession,
        sql: PostgresSQL,
        append: PostgresAppend,
        *,
        seconds: float,
        connect: Callable[[], asyncio.Future[PostgresSession]],
        let_go: Callable[[PostgresTransaction, bool], asyncio.Future[None]],
        stored: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.session = session
        self._sql = sql
        self._append = append
        self._seconds = seconds
        self._connect = connect
        self._let_go = let_go
        self._stored = stored
        self._state = _State.OPEN
        self._doubt: InDoubt | None = None
        self._stored_now: InDoubt | None = None
        self._is_expired = False
        self._turn = asyncio.Lock()
        self._pid = os.getpid()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._expire)

    async def commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint] = ()) -> AppendOutcome:
        self._check_place()
        return await finish_then_cancel(asyncio.ensure_future(self._commit(batch, checkpoints)))

    async def store(self, batches: Sequence[Batch], unread: Sequence[Unread] = ()) -> Stored:
        self._check_place()
        return await finish_then_cancel(asyncio.ensure_future(self._store(batches, unread)))

    async def lock_checkpoint(self, name: str, version: int) -> StoredCheckpoint | None:
        async with self._turn:
            return await self._locked(name, version)

    async def save_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        async with self._turn:
            return await self._is_saved(checkpoint)

    async def delete_checkpoint(self, name: str, version: int, revision: int) -> bool:
        async with self._turn:
            parameters = (self._sql.tenant, name, version, revision)
            return len(await self._checkpoint_rows(self._sql.delete_checkpoint, *parameters)) == 1

    async def _locked(self, name: str, version: int) -> StoredCheckpoint | None:
        rows = await self._checkpoint_rows(self._sql.lock_checkpoint, self._sql.tenant, name, version)
        return stored_checkpoint(*rows[0]) if rows else None

    async def _is_saved(self, checkpoint: StoredCheckpoint) -> bool:
        statement = self._sql.update_checkpoint
        if not checkpoint.revision:
            await self._checkpoint_rows(self._sql.share_removals)
            statement = self._sql.insert_checkpoint
        return len(await self._checkpoint_rows(statement, *saved_values(self._sql.tenant, checkpoint))) == 1

    async def _checkpoint_rows(self, statement: str, *parameters: object) -> Sequence[Any]:
        if self._state is not _State.OPEN or self._is_expired:
            raise self._ended()
        self._check_inside()
        try:
            # Who waits here for another runner's transaction has as much time as this one.
            return await self.session.connection.fetch(statement, *parameters)
        except DRIVER_ERRORS as error:
            raise self._refusal(error) from error

    async def rollback(self) -> None:
        self._check_place()
        await finish_then_cancel(asyncio.ensure_future(self._roll_back()))

    # What SQLAlchemy tells of the connection

    def check_statement(self, statement: str) -> None:
        """Called before each of the user's statements."""
        if self._is_expired:
            raise TransactionExpired(self._seconds)
        if self._state is _State.OPEN and _ENDS.match(statement):
            raise CapabilityError(
                "this statement was not executed: the user's own SQL may not end the transaction that it shares with "
                "events; use begin_nested() for a part of it that may be undone"
            )
        self._check_inside()

    def check_end(self) -> None:
        """Called when the connection is told to commit or to roll back."""
        if self._state is _State.OPEN:
            raise CapabilityError(
                "nothing was done: the connection's transaction is committed with the events, or rolled back, by "
                "whoever began it; use begin_nested() for a part of it that may be undone"
            )

    def on_error(self, context: ExceptionContext) -> EventStoreError | None:
        """The error of a statement, where it is not the statement's own."""
        error = context.original_exception
        if not isinstance(error, Exception):
            return None
        # Else SQLAlchemy would make a new connection for the next statement, outside of this transaction.
        context.is_disconnect = False
        cause = error.__cause__
        return self._not_the_statements(cause if isinstance(cause, ServerError) else error)

    def _not_the_statements(self, error: BaseException) -> EventStoreError | None:
        state = sqlstate(error)
        is_cut = is_lost(error) or not self.session.is_connected
        # The server ends it by a clock of its own, and by ending the session: of why, the driver tells no code.
        is_late = is_cut and self._loop.time() > self._timer.when() - _CLOCKS_DIFFER_SECONDS
        if self._is_expired or state in _EXPIRED or is_late:
            self._is_expired = True
            return TransactionExpired(self._seconds)
        if state in _CONFLICTS:
            return TransactionConflict(f"{ROLLED_BACK}; {first_line(error)} (SQLSTATE {state})")
        if state in _TIMEOUTS:
            return translated(error, writing=False)
        if is_cut:
            return BackendUnavailable(f"the connection was lost; {ROLLED_BACK}; {first_line(error)}")
        return None

    def _check_inside(self) -> None:
        # As on the driver's own connection. Outside, each statement of an append would be a transaction by itself,
        # without the locks of those before it, and COMMIT be answered as if all were still there to be committed.
        if self._state is _State.OPEN and self.session.is_usable:
            raise TransactionRefused(
                "something has ended the transaction that the user's own SQL shares with events: no more is stored, "
                "and what came before only if it was committed; use begin_nested() for a part that may be undone"
            )

    # Committing

    async def _commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint]) -> AppendOutcome:
        async with self._turn:
            if self._doubt is not None:
                return await self._find_out(self._doubt)
            if self._state is _State.ENDED:
                raise self._ended()
            if self.connection.closed:
                await self._end(committed=False)
                raise TransactionRefused("its connection was closed before the commit: nothing was stored")
            committed = False
            try:
                self._check_inside()
                for checkpoint in checkpoints:
                    if not await self._is_saved(checkpoint):
                        raise TransactionConflict(f"somebody else has changed a checkpoint; {ROLLED_BACK}")
                outcome = await self._store_and_commit(batch)
                committed = isinstance(outcome, Appended) and not outcome.is_duplicate
                return outcome
            finally:
                if self._state is _State.OPEN:
                    await self._end(committed=committed)

    async def _store_and_commit(self, batch: Batch) -> AppendOutcome:
        stored = self._stored_now
        if stored is None:
            xid, server_started, (outcome,) = await self._stored_in_turn(batch)
            if not isinstance(outcome, Appended) or outcome.is_duplicate:
                return outcome
            stored = InDoubt(batch, outcome, xid, server_started)
        elif batch:
            raise TransactionRefused(f"its batches were stored before, and it takes no further one; {ROLLED_BACK}")
        if self._is_expired:
            raise TransactionExpired(self._seconds)
        # From here on nobody can tell that nothing was stored because the time is over.
        self._timer.cancel()
        try:
            await self.session.execute("COMMIT")
        except DRIVER_ERRORS as error:
            if isinstance(error, ServerError) and not is_lost(error):
                raise self._refusal(error) from error
            self._doubt = stored
            self._state = _State.IN_DOUBT
            await self._let_go(self, False)
            raise translated(error, writing=True) from error
        self._is_stored(stored.batch, stored.outcome)
        return stored.outcome

    async def _stored_in_turn(self, batch: Batch) -> tuple[str, str, Sequence[AppendOutcome]]:
        """Store a batch beside other appends. Returns what the server calls the transaction, too."""
        stream_ids = streams_of(batch)
        prepare = self._sql.named(_PREPARE, planning=_PLANNING, shared=_SHARED if stream_ids else "")

        async def store() -> tuple[str, str, Sequence[AppendOutcome] | None]:
            ((xid, server_started, is_new, *_),) = await self.session.fetch(prepare, stream_ids)
            if not batch:
                return xid, server_started, [Appended(0, ())]
            await lock_streams(self.session, self._sql, stream_ids, are_made=not is_new)
            return xid, server_started, await self._append.append_within(self.session, [batch])

        return await self._certainly(store)

    async def _store(self, batches: Sequence[Batch], unread: Sequence[Unread]) -> Stored:
        """Store batches while nobody else appends, and go on."""

        async def store() -> tuple[str, str, Sequence[AppendOutcome] | None]:
            alone = self._sql.named(_ALONE, planning=_PLANNING)
            ((xid, server_started, isolation, *_),) = await self.session.fetch(alone)
            if isolation != "read committed":
                # What others have stored meanwhile would not be seen.
                raise TransactionRefused(
                    f"the transaction is {isolation}, and not read committed: that is for the role to have as its "
                    f"default_transaction_isolation; {ROLLED_BACK}"
                )
            outcomes = await self._append.append_within(self.session, batches)
            # The user's statements come next.
            await self.session.execute(_PLANNED_AS_BEFORE)
            return xid, server_started, outcomes

        async with self._turn:
            if self._state is _State.ENDED:
                raise self._ended()
            self._check_inside()
            checkpoints: list[StoredCheckpoint] = []
            for one in unread:
                found = await self._locked(one.name, one.version)
                if found is None:
                    raise TransactionConflict(
                        f"there is no version {one.version} of the checkpoint {one.name!r}; {ROLLED_BACK}"
                    )
                checkpoints.append(found)
            xid, server_started, outcomes = await self._certainly(store)
            appended = [outcome for outcome in outcomes if isinstance(outcome, Appended) and not outcome.is_duplicate]
            versions = tuple(version for outcome in appended for version in outcome.versions)
            position = max((outcome.position for outcome in appended), default=0)
            batch = stored_by(batches, outcomes)
            self._stored_now = InDoubt(batch, Appended(position, versions), xid, server_started)
            try:
                pages = [
                    await log_within(
                        self.session, self._sql, after=checkpoint.position, limit=one.limit, where=one.where
                    )
                    for one, checkpoint in zip(unread, checkpoints, strict=True)
                ]
            except DRIVER_ERRORS as error:
                raise self._refusal(error) from error
            return Stored(outcomes, list(zip(checkpoints, pages, strict=True)))

    async def _certainly(
        self, store: Callable[[], Awaitable[tuple[str, str, Sequence[AppendOutcome] | None]]]
    ) -> tuple[str, str, Sequence[AppendOutcome]]:
        """Store what is not committed yet. Whatever goes wrong, nothing of it will be stored."""
        try:
            xid, server_started, outcomes = await store()
            if outcomes is None:
                raise TransactionConflict(f"another append was in the way; {ROLLED_BACK}")
            return xid, server_started, outcomes
        except DRIVER_ERRORS as error:
            raise self._refusal(error) from error
        except BackendUnavailable as error:
            # The lookups of an append translate by themselves.
            cause = error.__cause__
            if cause is not None and (typed := self._not_the_statements(cause)) is not None:
                raise typed from cause
            raise

    def _is_stored(self, batch: Batch, outcome: Appended) -> None:
        self._append.stored(batch, outcome)
        self._stored()

    def _refusal(self, error: BaseException) -> EventStoreError:
        """What an error before the end of the transaction means. Whatever it is, nothing was stored."""
        if (typed := self._not_the_statements(error)) is not None:
            return typed
        state = sqlstate(error)
        if state.startswith(("23", "25P02", "P0", "44")):
            return TransactionRefused(
                f"the user's own statements cannot be committed, nothing was stored; Postgres: {first_line(error)} "
                f"(SQLSTATE {state})"
            )
        return translated(error, writing=False)

    async def _find_out(self, doubt: InDoubt) -> AppendOutcome:
        is_stored = await has_committed(doubt, self._connect, self._sql)
        self._doubt, self._state = None, _State.ENDED
        if not is_stored:
            raise BackendUnavailable(f"the connection was lost while it committed; {ROLLED_BACK}")
        self._is_stored(doubt.batch, doubt.outcome)
        return doubt.outcome

    # The end

    async def _roll_back(self) -> None:
        async with self._turn:
            if self._state is _State.OPEN:
                await self._end(committed=False)

    async def _end(self, *, committed: bool) -> None:
        self._timer.cancel()
        self._state = _State.ENDED
        try:
            if not committed and self.session.is_connected and not self.session.is_usable:
                # What cannot be rolled back is cut off, and the server rolls it back.
                with suppress(*DRIVER_ERRORS):
                    await self.session.execute("ROLLBACK")
        finally:
            is_clean = self.session.is_usable
            if not is_clean:
                self.session.cut()
            # Whatever has happened: a store that closes waits for it.
            letting_go = self._let_go(self, is_clean)
        if not committed:
            # Nobody who has committed waits for what is only tidying up.
            await letting_go

    def _expire(self) -> None:
        self._is_expired = True
        # The server rolls back. It has been told to do so by itself as well, should this process not get to it.
        self.session.cut()

    def _ended(self) -> EventStoreError:
        if self._is_expired:
            return TransactionExpired(self._seconds)
        return StoreClosed("the transaction has ended: nothing was stored by this call; begin another one")

    def _check_place(self) -> None:
        if os.getpid() != self._pid:
            raise StoreClosed("this transaction was begun before a fork: begin another one in the child process")
        if asyncio.get_running_loop() is not self._loop:
            raise StoreClosed("this transaction was begun in another event loop: begin one in each")


def transaction_of(connection: Connection) -> PostgresTransaction | None:
    """The transaction whose connection it is."""
    found = connection.get_execution_options().get("eventstore_transaction")
    return found if isinstance(found, PostgresTransaction) else None
