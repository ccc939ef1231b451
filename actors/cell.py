"""Cell: one live actor, its mailbox, and the path of a command from decision to durable reply."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from enum import Enum, auto
from typing import Any, Protocol, cast

from uuid_utils import uuid7

from actors.actor import PersistentActor, new_actor
from actors.command import Command
from actors.commit import Commit, size_of
from actors.handling import Handling, serving
from actors.mailbox import Envelope, Mailbox
from eventstore.backend import Appended, AppendOutcome, EncodedEvent
from eventstore.codec import encode_metadata, encode_payload
from eventstore.errors import (
    ActorError,
    ActorStopped,
    CodecError,
    CommandRejected,
    ConcurrencyError,
    DefinitionError,
    EventStoreError,
    JournalCorrupt,
    OutcomeUnknown,
)
from eventstore.events import Event, Metadata
from eventstore.group_commit import GroupCommit

logger = logging.getLogger(__name__)

# A conflict is cured by catching up and deciding again, so often before the asker is told.
_ATTEMPTS = 3

# Commands served from a mailbox in one turn of the loop, so that a full one does not hold up everybody else.
_TURN = 64


class Phase(Enum):
    """What a cell does."""

    RECOVERING = auto()
    LIVE = auto()
    HANDLING = auto()
    """An async handler runs."""
    PAUSED = auto()
    """It failed, and waits for its restart."""
    STOPPED = auto()
    PASSIVE = auto()
    """It has left memory: whoever still holds it must ask the system for a new one."""


class CellRuntime(Protocol):
    """What a cell needs of the runtime it lives in."""

    loop: asyncio.AbstractEventLoop
    commits: GroupCommit
    mailbox_size: int
    max_payload_bytes: int
    is_open: bool
    is_shut: bool

    def new_reply(self) -> asyncio.Future[Any]: ...

    def start_task(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None) -> object: ...

    def recover(self, cell: Cell, pause: float) -> Coroutine[Any, Any, None]: ...

    def supervise(self, cell: Cell, error: BaseException) -> None: ...

    def save_snapshot(self, cell: Cell, version: int, data: bytes) -> None: ...

    def tell_failed(self, cell: Cell, envelope: Envelope, error: BaseException) -> None: ...


class Cell:
    """One actor in memory. An idle one is this object and the actor's own: no task, queue, lock or timer.

    `is_ready` says that a command may be decided at once, in the caller's own turn.
    """

    __slots__ = (
        "_failure",
        "_head",
        "_is_deciding",
        "_is_touched",
        "_mailbox",
        "_metadata",
        "_runtime",
        "_staged",
        "_tail",
        "actor",
        "cls",
        "decisions",
        "handling",
        "is_ready",
        "phase",
        "stream_id",
        "used",
        "version",
    )

    def __init__(self, runtime: CellRuntime, cls: type[PersistentActor[Any]], stream_id: str) -> None:
        self._runtime = runtime
        self.cls = cls
        self.decisions = cls.handlers.decisions
        self.stream_id = stream_id
        self.version = 0
        self.used = 0
        self.phase = Phase.PASSIVE
        self.is_ready = False
        self.handling: Handling | None = None
        self._mailbox: Mailbox | None = None
        self._staged: list[EncodedEvent] | None = None
        self._metadata: Metadata | None = None
        self._is_deciding = False
        self._is_touched = False
        self._failure: BaseException | None = None
        self._head: Commit | None = None
        self._tail: Commit | None = None
        self.actor: PersistentActor[Any]

    # Commands in

    def decide(self, handle: Callable[[Any, Any], Any], command: Command[Any], metadata: Metadata | None) -> Any:
        """Run a sync handler now. Returns its reply, or an `Envelope` whose reply comes once its events are durable.

        Only for a cell that `is_ready`.
        """
        self._metadata = metadata
        self._is_deciding = True
        try:
            result = handle(self.actor, command)
        except BaseException as error:
            self._is_deciding = False
            envelope = Envelope(command, self._runtime.new_reply(), metadata, contextvars.copy_context())
            self._refused(envelope, error)
            return envelope
        self._is_deciding = False
        if not self._is_touched and self._tail is None:
            return result
        # The context is for the case that it must be decided again.
        envelope = Envelope(command, self._runtime.new_reply(), metadata, contextvars.copy_context())
        envelope.result = result
        self._decided(envelope)
        return envelope

    def accept(self, envelope: Envelope) -> None:
        """Take a command in: serve it if that can be done now, else keep it in the mailbox, behind the others.

        Raises `MailboxFull`, or `ActorStopped`.
        """
        if self.phase is Phase.STOPPED:
            raise self.stopped_error()
        if self._mailbox is None:
            self._mailbox = Mailbox(self._runtime.mailbox_size)
        self._mailbox.put(envelope, self.stream_id)
        self.is_ready = False
        if len(self._mailbox) == 1:
            self._pump()

    def room(self) -> asyncio.Future[None] | None:
        """A future that is done when the mailbox may have room again; None if it has room now."""
        if self._mailbox is None or not self._mailbox.is_full:
            return None
        return self._mailbox.room(self._runtime.new_reply())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done or waited for, so that the actor may leave memory."""
        return self.phase is Phase.LIVE and self._head is None and not self._mailbox and self._failure is None

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight here any more, whatever the reason."""
        return self.is_idle or self.phase in (Phase.PAUSED, Phase.STOPPED, Phase.PASSIVE)

    def _pump(self) -> None:
        """Serve the mailbox as far as it goes without waiting."""
        if self.phase is not Phase.LIVE or self._failure is not None or self._runtime.is_shut:
            return
        mailbox = self._mailbox
        for _ in range(_TURN):
            if not mailbox or self._is_congested():
                break
            route = self.cls.handlers.commands[type(mailbox.first.command)]  # type: ignore[index]
            if route.is_async and self._head is not None:
                break  # It may do I/O, so it must not act on what may turn out not to be stored.
            envelope = mailbox.take()
            if route.is_async:
                self._start(route.handle, envelope)
                return
            self._serve(route.handle, envelope)
            if self._failure is not None or self.phase is not Phase.LIVE:
                return
        else:
            self._runtime.loop.call_soon(self._pump)
            return
        if not mailbox:
            self._mailbox = None
            if mailbox is not None:
                mailbox.close()
            self.is_ready = self._runtime.is_open and not self._is_congested()

    def _is_congested(self) -> bool:
        tail = self._tail
        return tail is not None and (tail.is_full or self._runtime.commits.is_full)

    def _serve(self, handle: Callable[[Any, Any], Any], envelope: Envelope) -> None:
        self._metadata = envelope.metadata
        self._is_deciding = True
        try:
            envelope.result = cast("contextvars.Context", envelope.context).run(handle, self.actor, envelope.command)
        except BaseException as error:
            self._is_deciding = False
            self._refused(envelope, error)
            return
        self._is_deciding = False
        self._decided(envelope)

    def _start(self, handle: Callable[[Any, Any], Awaitable[Any]], envelope: Envelope) -> None:
        self.phase = Phase.HANDLING
        self.is_ready = False
        self._runtime.start_task(self._handle(handle, envelope), envelope.context)

    async def _handle(self, handle: Callable[[Any, Any], Awaitable[Any]], envelope: Envelope) -> None:
        self.begin_handling()
        self._metadata = envelope.metadata
        self._is_deciding = True
        try:
            envelope.result = await handle(self.actor, envelope.command)
        except asyncio.CancelledError:
            self._end_handling()
            self._refused(
                envelope,
                ActorStopped(f"{self.stream_id!r}: the handler of {type(envelope.command).__name__} was cancelled"),
            )
        except BaseException as error:
            self._end_handling()
            self._refused(envelope, error)
        else:
            self._end_handling()
            self._decided(envelope)
        self._after_failure()
        self._pump()

    def _decided(self, envelope: Envelope) -> None:
        """The handler returned. If something failed under way, it may have caught that, but nothing of it can stand."""
        if self._failure is None:
            self._conclude(envelope)
        else:
            self._refused(envelope, self._failure)

    def begin_handling(self) -> None:
        """From here on, what this context asks is asked by this actor."""
        self.handling = Handling(self)
        serving.set(self.handling)

    def end_handling(self) -> None:
        """The handler is done; what it left running asks for itself."""
        if self.handling is not None:
            self.handling.is_over = True
            self.handling = None

    def _end_handling(self) -> None:
        self.end_handling()
        self._is_deciding = False
        if self.phase is Phase.HANDLING:
            self.phase = Phase.LIVE

    # Events out

    def stage(self, events: tuple[Event, ...]) -> Awaitable[None]:
        """Encode events, apply them to the state, and keep them for the commit. Called by `PersistentActor.persist`."""
        if not self._is_deciding:
            raise ActorError(f"{self.stream_id!r}: persist works only while a command handler of the actor runs")
        if self._failure is not None:
            raise self._failure
        handlers = self.cls.handlers.events
        staged = [] if self._staged is None else self._staged
        batch_id = staged[0].batch_id if staged else None
        metadata = None if self._metadata is None else encode_metadata(self._metadata)
        added: list[EncodedEvent] = []
        for event in events:
            if event.__class__ not in handlers:
                raise DefinitionError(
                    f"{self.cls.__qualname__} persists {type(event).__qualname__} but has no @event_handler for it; "
                    "nothing was stored"
                )
            type_, schema_version, payload = encode_payload(event, limit=self._runtime.max_payload_bytes)
            event_id = uuid7().bytes
            batch_id = batch_id or event_id
            added.append(EncodedEvent(event_id, type_, schema_version, payload, metadata, batch_id))
        # From here on the state differs from the journal until the events are stored.
        self._is_touched = True
        self._is_deciding = False
        try:
            for event in events:
                self.version += 1
                handlers[event.__class__](self.actor, event)
        except BaseException as error:
            # The state is half changed: whatever the command handler makes of this, the command has failed.
            self._failure = error
            raise
        self._is_deciding = True
        staged.extend(added)
        self._staged = staged
        return _Durable(self)

    async def until_durable(self) -> None:
        """Store what is staged now, and return when everything the actor persisted is durable."""
        if self.phase is not Phase.HANDLING:
            raise ActorError(
                f"{self.stream_id!r}: only an `async def` handler can await persist; the reply of a plain one "
                "waits for its events by itself"
            )
        if self._staged or self._tail is not None:
            envelope = Envelope(None, self._runtime.new_reply(), None)
            self._conclude(envelope)
            await cast("asyncio.Future[None]", envelope.reply)

    def _conclude(self, envelope: Envelope) -> None:
        """A command is decided: send its events on, and let its reply wait for them and all before them."""
        staged, self._staged = self._staged, None
        self._is_touched = False
        envelope.attempts += 1
        if staged:
            self._send(staged)
        self._settle(envelope)

    def _settle(self, envelope: Envelope) -> None:
        """Let a reply, or a refusal, wait for all events before it."""
        if self._tail is None:
            self._deliver(envelope)
            return
        self._tail.envelopes.append(envelope)
        if self._is_congested():
            self.is_ready = False
            self._tail.on_taken = self._pump
            if self._runtime.commits.is_full:
                self._runtime.commits.when_room(self._pump)

    def _send(self, staged: list[EncodedEvent]) -> None:
        before = self.version - len(staged)
        size = size_of(staged)
        tail = self._tail
        if tail is not None and not tail.is_taken:
            tail.events.extend(staged)
            self._runtime.commits.grow(tail, size)
        else:
            tail = Commit(self.stream_id, before, self._on_outcome)
            tail.events.extend(staged)
            tail.size_bytes = size
            self._tail = tail
            self._head = self._head or tail
            self._runtime.commits.submit(tail)
        policy = self.cls.snapshot_policy
        if policy.every is not None or policy.when is not None:
            self._snapshot_if_due(tail, before)

    def _snapshot_if_due(self, commit: Commit, before: int) -> None:
        try:
            if self.cls.snapshot_policy.is_due(self.actor.state, before, self.version):
                # Written out now: what the handlers do to the state later does not reach it.
                commit.snapshot = (self.version, self.cls.state_type.dump(self.actor.state))
        except Exception:
            # It is only an optimisation, and a policy of the user's own may fail in any way.
            logger.exception("%s: no snapshot was taken at version %d", self.stream_id, self.version)

    def _on_outcome(self, commit: Commit, outcome: AppendOutcome | EventStoreError) -> None:
        behind = None if self._tail is commit else self._tail
        self._head = behind
        if behind is None:
            self._tail = None
        stored = commit.version + len(commit.events)
        if isinstance(outcome, Appended):
            if outcome.versions[0] != stored:
                outcome = JournalCorrupt(
                    f"events were stored up to version {outcome.versions[0]}, not {stored}", stream_id=self.stream_id
                )
            else:
                for envelope in commit.envelopes:
                    self._deliver(envelope)
                if commit.snapshot is not None:
                    self._runtime.save_snapshot(self, *commit.snapshot)
        if not isinstance(outcome, Appended):
            self._lost([*commit.envelopes, *(behind.envelopes if behind else ())], outcome)
        self._after_failure()
        if not self.is_ready:
            self._pump()

    def _lost(self, envelopes: Sequence[Envelope], error: EventStoreError) -> None:
        """What was decided is not stored: decide again after a conflict, else tell everyone who waits."""
        if self._tail is not None:
            self._tail.is_withdrawn = True
            self._head = self._tail = None
        self.is_ready = False
        again: list[Envelope] = []
        for envelope in envelopes:
            is_pure = type(envelope.command) in self.decisions
            if isinstance(error, ConcurrencyError) and is_pure and envelope.attempts < _ATTEMPTS:
                envelope.result = envelope.error = None
                again.append(envelope)
            else:
                envelope.error = error
                self._deliver(envelope)
        if again:
            if self._mailbox is None:
                self._mailbox = Mailbox(self._runtime.mailbox_size)
            self._mailbox.put_back(again)
        self._failure = self._failure or error

    def _refused(self, envelope: Envelope, error: BaseException) -> None:
        """The handler raised. Unless it had persisted something, nothing has changed and the actor goes on."""
        envelope.error = error
        envelope.attempts += 1
        self._settle(envelope)
        if self._is_touched:
            self._staged = None
            self._is_touched = False
            self.is_ready = False
            self._failure = self._failure or error
            self._after_failure()
        if not isinstance(error, Exception):
            raise error

    def _deliver(self, envelope: Envelope) -> None:
        reply, error = envelope.reply, envelope.error
        if reply is None:
            if error is not None:
                self._runtime.tell_failed(self, envelope, error)
        elif reply.done():
            pass  # The asker has stopped waiting.
        elif error is None:
            reply.set_result(envelope.result)
        elif isinstance(error, StopIteration):
            # A future refuses it, as a coroutine does (PEP 479).
            stopped = RuntimeError(f"{self.stream_id!r}: a handler raised StopIteration")
            stopped.__cause__ = error
            reply.set_exception(stopped)
        else:
            reply.set_exception(error)

    # Life cycle

    def activate(self, pause: float) -> None:
        """Rebuild the state from the journal, after a pause; then serve the mailbox."""
        if self._runtime.is_shut:
            self.abandon()
            return
        self.phase = Phase.RECOVERING if pause == 0 else Phase.PAUSED
        self.is_ready = False
        self._runtime.start_task(self._runtime.recover(self, pause), None)

    def start_anew(self) -> PersistentActor[Any]:
        """The actor in its initial state, for recovery to begin with."""
        self.phase = Phase.RECOVERING
        self.version = 0
        self.actor = new_actor(self.cls, self)
        return self.actor

    def recovered(self) -> None:
        """The state is that of the journal: begin to serve."""
        self.phase = Phase.LIVE
        self._pump()

    def recovery_failed(self, error: BaseException) -> None:
        """Nobody can be served: tell everyone who waits, and leave memory."""
        self._fail_mailbox(error)
        self.phase = Phase.PASSIVE
        self._runtime.supervise(self, error)

    def stop(self, error: BaseException) -> None:
        """Serve nobody any more."""
        self._failure = error
        self.phase = Phase.STOPPED
        self.is_ready = False
        self._fail_mailbox(self.stopped_error())

    def passivate(self) -> None:
        """Leave memory. Only for an idle cell."""
        self.phase = Phase.PASSIVE
        self.is_ready = False
        # References to the actor may hold this cell: they should not hold its state.
        del self.actor

    def snapshot_on_passivation(self) -> bytes | None:
        """The state to keep when the actor leaves memory, if its class wants that."""
        if not (self.cls.snapshot_policy.on_passivation and self.version):
            return None
        try:
            return self.cls.state_type.dump(self.actor.state)
        except CodecError:
            logger.exception("%s: no snapshot was taken at version %d", self.stream_id, self.version)
            return None

    def abandon(self) -> None:
        """The system closes and waits no longer: answer whoever still waits."""
        self.phase = Phase.STOPPED
        self.is_ready = False
        self._fail_mailbox(
            ActorStopped(f"actor {self.stream_id!r}: the system was closed; the command was not handled")
        )
        unknown = OutcomeUnknown(f"actor {self.stream_id!r}: the system was closed before the outcome was known")
        for commit in (self._head, self._tail):
            for envelope in commit.envelopes if commit is not None else ():
                envelope.error = unknown
                self._deliver(envelope)

    def stopped_error(self) -> ActorStopped:
        """What a command to a stopped actor is answered with."""
        stopped = ActorStopped(
            f"actor {self.stream_id!r} was stopped after {type(self._failure).__name__}: {self._failure}; "
            "when the cause is gone, call restart() on its reference"
        )
        stopped.__cause__ = self._failure
        return stopped

    def _after_failure(self) -> None:
        """Once nothing is in flight any more, drop the state that is not the journal's, and rebuild it."""
        if self._failure is None or self._head is not None or self.phase is not Phase.LIVE:
            return
        failure, self._failure = self._failure, None
        if isinstance(failure, (ConcurrencyError, CommandRejected)):
            self.activate(0)  # Nothing is wrong with the actor: it was overtaken, or changed its mind.
        else:
            self._runtime.supervise(self, failure)

    def _fail_mailbox(self, error: BaseException) -> None:
        mailbox, self._mailbox = self._mailbox, None
        for envelope in mailbox.empty() if mailbox is not None else ():
            envelope.error = error
            self._deliver(envelope)


class _Durable:
    """What `persist` returns: awaiting it waits until the events are durable; not awaiting it costs nothing."""

    __slots__ = ("_cell",)

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def __await__(self) -> Generator[Any, None, None]:
        return self._cell.until_durable().__await__()
