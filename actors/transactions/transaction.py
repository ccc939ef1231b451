"""Transaction: commands to several actors, stored together or not at all."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from actors.cells.append_failures import outcome_unknown
from actors.command import Command
from actors.command_identity import CommandIdentity, check_command_id, identify, issued_at
from actors.deadlines import check_seconds
from actors.event_metadata import metadata_of_transaction
from actors.handlers import CommandRoute
from actors.handling import Handling, current_handling, serving
from actors.ref import ActorRef
from actors.transactions.participant import Participant, finished
from actors.transactions.repetition import Repetition
from actors.transactions.transaction_run import TransactionRun
from eventstore.backend import Appended, AppendOutcome, StreamWrite
from eventstore.calls.finishing import finish_then_cancel
from eventstore.calls.group_commit import GroupCommit
from eventstore.calls.pending_append import PendingAppend, size_of
from eventstore.calls.sql_connection import SqlConnection
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import (
    ActorStopped,
    CapabilityError,
    CodecError,
    CommandRejected,
    ConcurrencyError,
    DuplicateCommand,
    EventStoreError,
    InvalidArgument,
    OutcomeUnknown,
    StoreClosed,
    TransactionError,
    TransactionExpired,
    TransactionOvertaken,
    TransactionRepeated,
)
from eventstore.events import Metadata

R = TypeVar("R")
T = TypeVar("T")


class TransactionRuntime(Protocol):
    """What a transaction needs of the runtime its actors live in."""

    loop: asyncio.AbstractEventLoop
    commits: GroupCommit
    max_payload_bytes: int
    is_open: bool
    is_shut: bool
    has_user_sql: bool
    transactions: set[Transaction]

    def start_task(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None) -> object: ...

    async def begin_sql(self, seconds: float) -> SqlTransaction: ...


class Transaction:
    """A block in which commands to several actors are decided, and stored together or not at all when it ends.

        async with system.transaction(command_id="transfer-17") as tx:
            await tx.ask(alice, Withdraw(amount=50))
            await tx.ask(bob, Deposit(amount=50))

    From its first command on, an actor serves this transaction alone; whoever asks it meanwhile waits. So the replies
    are provisional: they hold once the block has ended without an error. An error that leaves the block stores nothing.
    """

    def __init__(
        self,
        runtime: TransactionRuntime,
        *,
        age: int,
        seconds: float,
        command_id: str | None,
        metadata: Metadata | None,
    ) -> None:
        self._runtime = runtime
        self.age = age
        """Of two transactions, the older has the lower one. It is kept when a transaction is run again."""
        check_seconds(seconds, "timeout")
        self._seconds = seconds
        if command_id is not None:
            check_command_id(command_id)
        self.command_id = command_id
        self._issued_at = 0 if command_id is None else issued_at(command_id)
        self._metadata = metadata
        self._encoded: bytes | None = None
        self._outer: Handling | None = None
        self._run = TransactionRun(age, self.abort)
        self._timer: asyncio.TimerHandle | None = None
        self._participants: dict[str, Participant] = {}
        self._expected: dict[str, int] = {}
        self.wanted: dict[str, ActorRef[Any]] = {}
        """The actors it has taken, or has tried to."""
        self._writes: list[StreamWrite] = []
        self._batch_id: bytes | None = None
        self._replies: list[Any] = []
        self._repetition = Repetition()
        self._has_begun = False
        self._is_asking = False
        self._is_committing = False
        self._end: EventStoreError | None = None
        self._connection = SqlConnection(self._begin_sql, lambda: self._end)
        self._sql: SqlTransaction | None = None
        # While it asks: the actor that decides, and the task that prepares it or decides.
        self._deciding: Participant | None = None
        self._work: asyncio.Task[Any] | None = None
        self.ran_async = False
        """Whether an `async def` handler took part, which the runtime never runs twice."""

    @property
    def replies(self) -> tuple[Any, ...]:
        """The replies so far, in the order of the commands; final when the block has ended."""
        return tuple(self._replies)

    @property
    def is_repeated(self) -> bool:
        """Whether a transaction with this id was stored before: then its replies are those of that time.

        It is known from the first command on.
        """
        return self._repetition.is_known

    async def __aenter__(self) -> Self:
        """Begin. Raises `TransactionError` inside another transaction, and `ActorStopped` when the system closes."""
        runtime = self._runtime
        if self._has_begun:
            raise TransactionError("this transaction was begun before: make a new one")
        if asyncio.get_running_loop() is not runtime.loop:
            raise StoreClosed("this actor system belongs to another event loop: begin the transaction there")
        self._outer = current_handling()
        if isinstance(self._outer, TransactionRun):
            raise TransactionError("a transaction is open here already: ask by that one, or begin this one after it")
        if runtime.is_shut or (not runtime.is_open and self._outer is None):
            raise ActorStopped("the actor system is closed: no transaction can begin")
        self._has_begun = True
        self._run.parent = self._outer
        serving.set(self._run)
        runtime.transactions.add(self)
        self._timer = runtime.loop.call_later(self._seconds, self._expire)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Store everything, or nothing if an error leaves the block.

        Raises `ConcurrencyError` where another process was faster, `TransactionExpired`, and what an append raises.
        """
        serving.set(self._outer)
        # What the block has left running asks for itself.
        self._run.is_over = True
        try:
            if exc is None:
                await self._conclude()
        finally:
            self.abort(TransactionError("the transaction is over"))
            if self._sql is not None:
                await self._sql.rollback()
        if isinstance(exc, Exception) and not isinstance(exc, EventStoreError) and self._sql is not None:
            await self._explain(exc)
        # What was stored before is not done again: the rest of the block was passed over.
        return isinstance(exc, TransactionRepeated) and exc.command_id == self.command_id

    async def ask(self, ref: ActorRef[Any], command: Command[R]) -> R:
        """Have a command decided. Its reply is provisional: it holds when the block has ended without an error.

        The first command to an actor waits until that has served those who came before, and until everything it has
        decided for them is durable. Asks follow each other: await one before the next.

        Raises what the handler raised. Where that had not persisted anything, the transaction may go on; else it
        cannot be stored any more. Raises `TransactionOvertaken` (a `ConcurrencyError`) where an older transaction
        waits for an actor of this one and the other way round; `AskCycle` for an actor that waits for this very code;
        and what `ActorRef.ask` raises when an actor cannot serve.
        """
        self._check_open()
        route = ref.route_of(command)
        identity = None if self.command_id is None else identify(command, self.command_id)
        self._is_asking = True
        try:
            participant = self._participants.get(ref.stream_id) or await self._join(ref)
            self._deciding = participant
            if participant.is_taken_for_new and (self.is_repeated or (route.is_async and not participant.is_owned)):
                await self._look(participant)
            if not participant.is_asked:
                await self._compare(participant)
                participant.is_asked = True
            if identity is None:
                reply: Any = await self._decide(participant, route, command)
            else:
                reply = await self._decide_once(participant, route, command, identity)
        finally:
            self._asked()
        if self._end is not None:
            raise self._end
        self._replies.append(reply)
        result: R = reply
        return result

    async def hold(self, *refs: ActorRef[Any]) -> None:
        """Have actors for this transaction before anything is decided. Raises as `ask` does.

        They are taken in one order, so that transactions which begin like this do not wait for each other in circles.
        It asks nothing: who is not asked afterwards has no part in what is stored.
        """
        self._check_open()
        self._is_asking = True
        try:
            for ref in sorted(refs, key=_stream_id):
                if ref.stream_id not in self._participants:
                    await self._join(ref)
        finally:
            self._asked()
        if self._end is not None:
            raise self._end

    def _asked(self) -> None:
        self._is_asking = False
        deciding, self._deciding = self._deciding, None
        if self._end is not None and deciding is not None:
            # It could not be released as long as it was in use here.
            deciding.abandon()

    def expect(self, ref: ActorRef[Any], *, version: int) -> None:
        """Store everything only if an actor's stream, which is only read, is at this version then.

        Raises `ConcurrencyError` at once where an actor that takes part was at another, and nothing is stored then.
        """
        self._check_open()
        if version < 0:
            raise InvalidArgument(f"a stream is at version 0 or a later one, not {version}")
        participant = self._participants.get(ref.stream_id)
        if participant is None or not participant.is_asked:
            # One that is only held has no part in what is stored: so this has to have one.
            found = self._expected.setdefault(ref.stream_id, version)
        else:
            found = participant.version
        if found != version and not self.is_repeated:
            if participant is not None:
                # It was decided on what is known here, which may be behind: the next transaction looks.
                participant.cell.is_doubtful = True
            raise self._ended(ConcurrencyError(ref.stream_id, version, found))

    @property
    def connection(self) -> SqlConnection:
        """Where statements of your own are executed, with SQLAlchemy: stored together with the events, or not at all.

            await tx.connection.execute(insert(transfers).values(id=17, amount=50))

        The database's transaction begins with the first statement, and holds up whoever wants the same rows; on SQLite,
        everybody who writes. So ask the actors first, or `hold` them: from the first statement on, nobody is waited for
        any more who has an actor, and `TransactionOvertaken` is raised instead.

        Raises `CapabilityError` where the store's capabilities do not have `user_sql`. In a transaction with an id, ask
        an actor first. If it was stored before, `TransactionRepeated` is raised, which passes over the rest of the
        block: look at `is_repeated` first if that is not what you want.
        """
        self._check_open()
        if not self._runtime.has_user_sql:
            raise CapabilityError("this store cannot commit statements of your own together with events")
        if self.is_repeated:
            raise TransactionRepeated(self.command_id or "", self._replies)
        if self.command_id is not None and not self._asked_participants():
            raise TransactionError(
                "in a transaction with an id, ask an actor before using the connection: only then is it known whether "
                "the transaction was stored before"
            )
        return self._connection

    def abort(self, reason: EventStoreError) -> None:
        """End it, unless it is over or being stored: nothing of it is stored, and its actors serve others."""
        if self._is_committing or self._end is not None:
            return
        self._over(reason)
        self._run.end_wait(reason)
        if self._work is not None:
            self._work.cancel()
        if self._sql is not None:
            self._runtime.start_task(self._sql.rollback(), None)
        for participant in self._participants.values():
            if participant is not self._deciding:
                participant.abandon()

    # Who gets which actor

    async def _join(self, ref: ActorRef[Any]) -> Participant:
        """Wait for an actor, and have it for this transaction alone."""
        self.wanted[ref.stream_id] = ref
        cell = ref.cell_in(self._runtime)
        try:
            await self._run.take(cell, has_statements=self._sql is not None)
        except TransactionOvertaken as overtaken:
            raise self._ended(overtaken) from None
        if self._end is not None:
            cell.release()
            raise self._end
        participant = self._deciding = Participant(cell, limit=self._runtime.max_payload_bytes)
        try:
            await self._prepare(participant)
            if self._end is not None:
                raise self._end
        except BaseException:
            self._deciding = None
            participant.abandon()
            raise
        self._participants[cell.stream_id] = participant
        return participant

    async def _prepare(self, participant: Participant) -> None:
        if self.command_id is not None and not self.is_repeated:
            participant.expect_new(self.command_id, self._issued_at)
        if participant.must_prepare(self.command_id):
            await self._in_time(participant.prepare(self.command_id, self._issued_at))

    async def _look(self, participant: Participant) -> None:
        """Ask the journal after all whether it has an outcome: another process may have stored the transaction since
        this one was told. That is known by now, or a handler that does I/O must not find it out at the end."""
        command_id = self.command_id or ""
        participant.is_taken_for_new = False
        if not participant.is_asked:
            await self._in_time(participant.prepare(command_id, self._issued_at))
        elif await self._in_time(participant.remembers_by_now(command_id)):
            # What it has decided here was decided before.
            raise self._ended(ConcurrencyError(participant.stream_id, "", None))

    async def _compare(self, participant: Participant) -> None:
        """End unless what one more participant knows goes with what is known already."""
        error = None
        if self.command_id is not None:
            # Only where this one remembers something are the others asked for it.
            finding_out = self._repetition.contradiction(participant, self._asked_participants(), self.command_id)
            error = await self._in_time(finding_out) if participant.remembered is not None else await finding_out
        if error is None and not self.is_repeated:
            expected = self._expected.pop(participant.stream_id, participant.version)
            if expected != participant.version:
                # Whoever expects it may have read the journal, where another process was ahead of what is known here.
                await self._in_time(participant.refresh())
            if expected != participant.version:
                error = ConcurrencyError(participant.stream_id, expected, participant.version)
        if error is not None:
            raise self._ended(error)

    def _asked_participants(self) -> list[Participant]:
        return [participant for participant in self._participants.values() if participant.is_asked]

    # What is decided

    async def _decide(self, participant: Participant, route: CommandRoute, command: Command[Any]) -> Any:
        participant.check_sound()
        version = participant.cell.version
        if self._encoded is None:
            self._encoded = metadata_of_transaction(self._metadata, self.command_id)
        if route.is_async:
            self.ran_async = True
            reply, events = await self._in_time(participant.handle(route, command, self._encoded))
        else:
            reply, events = participant.decide(route, command, self._encoded)
        if events:
            if self._batch_id is None:
                self._batch_id = events[0].batch_id
            else:
                events = [event._replace(batch_id=self._batch_id) for event in events]
            self._writes.append(participant.write(events, version))
        return reply

    async def _decide_once(
        self, participant: Participant, route: CommandRoute, command: Command[Any], identity: CommandIdentity
    ) -> Any:
        if participant.is_repeated:
            return participant.repeat(command, identity)
        try:
            reply = await self._decide(participant, route, command)
        except CommandRejected as rejection:
            # The block may go on without it, and must be told the same when it comes again.
            participant.remember_rejection(rejection, identity)
            raise
        try:
            participant.remember(command, identity, reply)
        except CodecError as error:
            # Its events are in the state, and cannot be stored without it.
            raise self._ended(error) from None
        return reply

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what must be awaited, in a task: so it can be ended when the time is up, whatever its caller does."""
        self._work = task = self._runtime.loop.create_task(work)
        try:
            await finished(task)
            if task.cancelled():
                raise self._end or TransactionError("what the transaction waited for was cancelled")
            return task.result()
        finally:
            self._work = None

    # How it ends

    async def _explain(self, error: Exception) -> None:
        """Raise `ConcurrencyError` where another process has stored the transaction since its actors were asked: then
        its rows are in the way of the block's own."""
        if self.command_id is None or self.is_repeated:
            return
        for participant in self._asked_participants():
            is_stored = False
            # What cannot be found out must not take the place of the block's own error.
            with suppress(EventStoreError):
                is_stored = await participant.remembers_by_now(self.command_id)
            if is_stored:
                raise ConcurrencyError(participant.stream_id, "", None) from error

    def _ended(self, reason: EventStoreError) -> EventStoreError:
        """End it, also if the block catches what is raised."""
        self.abort(reason)
        return reason

    async def _conclude(self) -> None:
        if self._end is not None:
            raise self._end
        if self._is_asking:
            raise TransactionError("the block has ended before an ask of it: await every one")
        asked = {participant.stream_id: participant for participant in self._asked_participants()}
        for participant in asked.values():
            participant.check_sound()
        if self.is_repeated:
            self._repetition.check_end(asked, self.command_id or "")
        elif asked or self._expected or self._sql is not None:
            writes = self._completed_writes(asked)
            outcome = await (self._store(writes) if self._sql is None else self._store_with_sql(self._sql, writes))
            if not isinstance(outcome, Appended):
                try:
                    raise self._told(outcome)
                finally:
                    # The error keeps this frame, which need not keep the error.
                    del outcome

    def _completed_writes(self, asked: Mapping[str, Participant]) -> list[StreamWrite]:
        """The events, and what else must be true or is to be remembered."""
        streams = sorted(asked)
        writes = self._writes
        for participant in asked.values():
            if self.command_id is not None:
                participant.conclude(self.command_id, self._issued_at, streams)
            last = participant.last_write()
            if last is not None:
                writes.append(last)
        writes.extend(StreamWrite(stream_id, version, ()) for stream_id, version in self._expected.items())
        return writes

    async def _store(self, writes: list[StreamWrite]) -> AppendOutcome | EventStoreError:
        commits = self._runtime.commits
        while commits.is_full:
            await commits.room()
            if self._end is not None:
                raise self._end
        stored: asyncio.Future[AppendOutcome | EventStoreError] = self._runtime.loop.create_future()

        def settle(_: PendingAppend, outcome: AppendOutcome | EventStoreError) -> None:
            self._settle(outcome)
            stored.set_result(outcome)

        commits.submit(PendingAppend(writes, size_of(writes), settle))
        self._is_committing = True
        return await finish_then_cancel(stored)

    async def _store_with_sql(self, sql: SqlTransaction, writes: list[StreamWrite]) -> AppendOutcome | EventStoreError:
        stored: asyncio.Future[AppendOutcome | EventStoreError] = self._runtime.loop.create_future()

        async def commit() -> None:
            outcome: AppendOutcome | EventStoreError
            try:
                outcome = await sql.commit(writes)
            except EventStoreError as error:
                outcome = error
            except BaseException as error:
                outcome = OutcomeUnknown("the transaction's commit was broken off: its outcome is unknown")
                outcome.__cause__ = error
            self._settle(outcome)
            stored.set_result(outcome)

        self._is_committing = True
        # A task of the runtime's, so that the actors are released whatever becomes of the block.
        self._runtime.start_task(commit(), None)
        return await finish_then_cancel(stored)

    async def _begin_sql(self) -> SqlTransaction:
        self._check_open()
        if self._sql is None:
            loop = self._runtime.loop
            left = self._seconds if self._timer is None else self._timer.when() - loop.time()
            self._is_asking = True
            try:
                self._sql = await self._runtime.begin_sql(left)
            finally:
                self._is_asking = False
            if self._end is not None:
                await self._sql.rollback()
                raise self._end
        return self._sql

    def _settle(self, outcome: AppendOutcome | EventStoreError) -> None:
        """It is stored, or it is not: release every actor, with the state that the journal has."""
        self._over(TransactionError("the transaction is over"))
        for participant in self._participants.values():
            if isinstance(outcome, Appended):
                participant.stored()
            else:
                participant.refused(outcome)

    def _told(self, outcome: AppendOutcome | EventStoreError) -> EventStoreError:
        """A refusal as the block gets it."""
        if isinstance(outcome, DuplicateCommand):
            conflict = ConcurrencyError(outcome.stream_id, "", None)
            conflict.__cause__ = outcome
            return conflict
        if isinstance(outcome, OutcomeUnknown):
            return outcome_unknown(outcome, self.command_id)
        return outcome  # type: ignore[return-value]

    def _expire(self) -> None:
        self.abort(TransactionExpired(self._seconds))

    def _over(self, reason: EventStoreError) -> None:
        self._end = reason
        self._is_committing = False
        self._runtime.transactions.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _check_open(self) -> None:
        if not self._has_begun:
            raise TransactionError(
                "the transaction has not begun: use it inside `async with system.transaction() as tx`"
            )
        if self._end is not None:
            raise self._end
        if self._run.is_over:
            raise TransactionError("the block has ended: what it has left running can ask no more by its transaction")
        if self._is_asking:
            raise TransactionError(
                "the asks and statements of one transaction follow each other: await one before the next"
            )


def _stream_id(ref: ActorRef[Any]) -> str:
    return ref.stream_id
