"""Cell: one live actor, its mailbox, and the path of a command from decision to durable reply."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from enum import Enum, auto
from typing import Any, Literal, Protocol, cast

import orjson

from actors.actor import PersistentActor, new_actor
from actors.command import Command
from actors.command_identity import CommandIdentity
from actors.command_memory import CommandMemory
from actors.commit import Commit
from actors.handlers import CommandRoute
from actors.handling import Handling, serving
from actors.mailbox import Envelope, Hold, Mailbox
from actors.message_metadata import merged, pass_on, sent_with
from actors.pipeline import Pipeline
from actors.replies import rejected, replied
from actors.snapshotting import due_snapshot, snapshot_data
from actors.supervisor import described
from eventstore.backend import CommandLookup, CommandOutcome, CommandsFound, EncodedEvent
from eventstore.codec import encode_event, encode_metadata
from eventstore.errors import (
    ActorError,
    ActorStopped,
    BackendUnavailable,
    CodecError,
    CommandForgotten,
    CommandRejected,
    ConcurrencyError,
    DefinitionError,
    DuplicateCommand,
    DurabilityError,
    EventStoreError,
    FencedError,
    OutcomeUnknown,
    OwnedElsewhere,
    ProjectionError,
    ProjectionFailed,
    SchemaError,
    StoreClosed,
    TransactionError,
)
from eventstore.events import Event, Metadata
from eventstore.group_commit import GroupCommit

logger = logging.getLogger(__name__)

# A conflict is cured by catching up and deciding again, so often before the asker is told.
_ATTEMPTS = 3

# Commands served from a mailbox in one turn of the loop, so that a full one does not hold up everybody else.
_TURN = 64

# These say nothing about the actor, so they are not its failures: the database is away, or not what it should be, or
# somebody else owns the stream, or an inline projection cannot apply the events.
_NOT_ITS_OWN = (
    BackendUnavailable,
    DurabilityError,
    FencedError,
    OutcomeUnknown,
    OwnedElsewhere,
    ProjectionError,
    SchemaError,
    StoreClosed,
    TransactionError,
)
_OVERTAKEN = (ConcurrencyError, DuplicateCommand, CommandForgotten)


class Phase(Enum):
    """What a cell does."""

    RECOVERING = auto()
    LIVE = auto()
    HANDLING = auto()
    """An async handler runs."""
    HELD = auto()
    """A transaction has it for itself."""
    PAUSED = auto()
    """It failed, and waits for its restart."""
    STOPPED = auto()
    PASSIVE = auto()
    """It has left memory: whoever still holds it must ask the system for a new one."""


class CellRuntime(Protocol):
    """What a cell needs of the runtime it lives in."""

    loop: asyncio.AbstractEventLoop
    new_reply: Callable[[], asyncio.Future[Any]]
    commits: GroupCommit
    mailbox_size: int
    mailbox_overflow: Literal["reject", "wait"]
    max_payload_bytes: int
    has_inline: bool
    is_open: bool
    is_shut: bool

    def start_task(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None) -> object: ...

    def recover(self, cell: Cell, pause: float) -> Coroutine[Any, Any, None]: ...

    def catch_up(self, cell: Cell) -> Coroutine[Any, Any, None]: ...

    def find_command(self, lookup: CommandLookup) -> Coroutine[Any, Any, CommandsFound]: ...

    def owns_streams(self, lease: int) -> bool: ...

    def is_exclusive(self, cls: type[PersistentActor[Any]]) -> bool: ...

    def forget(self, cell: Cell) -> None: ...

    def supervise(self, cell: Cell, error: BaseException) -> None: ...

    def save_snapshot(self, cell: Cell, version: int, data: bytes) -> None: ...

    def command_remembered(self, cell: Cell, outcome: CommandOutcome) -> None: ...

    def tell_failed(self, cell: Cell, envelope: Envelope, error: BaseException) -> None: ...


class Cell:
    """One actor in memory. An idle one is this object and the actor's own: no task, queue, lock or timer.

    `is_ready` says that a command may be decided at once, in the caller's own turn. `epoch` is that of an actor whose
    stream this process owns, None where it is shared; `lease` is the number of the lease that it was claimed under.
    `is_doubtful` says that another process may have changed the stream since the state was read. `base` is the state at
    an earlier version, kept where others interfere.
    """

    __slots__ = (
        "_failure",
        "_identity",
        "_is_deciding",
        "_is_touched",
        "_mailbox",
        "_memory",
        "_metadata",
        "_pipeline",
        "_refusal",
        "_runtime",
        "_staged",
        "_stopped_by",
        "actor",
        "base",
        "cls",
        "decisions",
        "epoch",
        "handling",
        "is_doubtful",
        "is_overtaken",
        "is_ready",
        "lease",
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
        self.epoch: int | None = None
        self.lease = 0
        self.is_doubtful = False
        self.is_overtaken = False
        self.base: tuple[int, Any] | None = None
        self.handling: Handling | None = None
        self._mailbox: Mailbox | None = None
        self._staged: list[EncodedEvent] | None = None
        # Of the command that is being decided.
        self._metadata: Metadata | bytes | None = None
        self._identity: CommandIdentity | None = None
        self._refusal: BackendUnavailable | None = None
        self._memory: CommandMemory | None = None
        self._is_deciding = False
        self._is_touched = False
        self._failure: BaseException | None = None
        self._stopped_by = "the system's end"
        self._pipeline = Pipeline(self, runtime.commits)
        self.actor: PersistentActor[Any]

    # Commands in

    def knows_new(self, identity: CommandIdentity) -> bool:
        """Whether a command with an id can be decided without asking the journal what it remembers."""
        return self._memory is not None and self._memory.is_new(identity)

    def memory(self) -> CommandMemory:
        """What is known of the commands that the journal remembers."""
        if self._memory is None:
            self._memory = CommandMemory(self.stream_id, self._runtime.find_command)
        return self._memory

    def doubt(self) -> None:
        """Another process has moved the stream on: catch up before the next command is served."""
        self.is_doubtful = True
        self.is_ready = False

    def decide(
        self,
        handle: Callable[[Any, Any], Any],
        command: Command[Any],
        metadata: Metadata | None,
        identity: CommandIdentity | None = None,
    ) -> Any:
        """Run a sync handler now. Returns its reply, or an `Envelope` whose reply comes once its events are durable.

        Only for a cell that `is_ready`, and an identity that it `knows_new`.
        """
        outcome: CommandOutcome | None = None
        self._metadata = metadata
        self._identity = identity
        self._is_deciding = True
        try:
            result = handle(self.actor, command)
            if identity is not None:
                outcome = replied(command, identity, result, limit=self._runtime.max_payload_bytes)
        except BaseException as error:
            self._is_deciding = False
            envelope = Envelope(command, self._runtime.new_reply(), metadata, contextvars.copy_context(), identity)
            self._refused(envelope, error)
            return envelope
        self._is_deciding = False
        if not self._is_touched and self._pipeline.tail is None and outcome is None and self._refusal is None:
            return result
        # The context is for the case that it must be decided again.
        envelope = Envelope(command, self._runtime.new_reply(), metadata, contextvars.copy_context(), identity)
        envelope.result = result
        if self._failure is None and self._refusal is None:
            self._conclude(envelope, outcome)
        else:
            self._decided(envelope, outcome)
        return envelope

    def accept(self, envelope: Envelope) -> None:
        """Take a command in, or a transaction: serve it if that can be done now, else keep it in the mailbox.

        Raises `MailboxFull`, or `ActorStopped`.
        """
        if self.phase is Phase.STOPPED:
            raise self.stopped_error()
        if self._mailbox is None:
            self._mailbox = Mailbox(self._runtime.mailbox_size)
        if isinstance(envelope, Hold):
            # Where others wait for room, a transaction waits in here: of those it is known who waits for whom.
            self._mailbox.put_hold(envelope, self.stream_id, is_bounded=self._runtime.mailbox_overflow == "reject")
        else:
            self._mailbox.put(envelope, self.stream_id)
        self.is_ready = False
        if len(self._mailbox) == 1:
            self.pump()

    def room(self) -> asyncio.Future[None] | None:
        """A future that is done when the mailbox may have room again; None if it has room now."""
        if self._mailbox is None or not self._mailbox.is_full:
            return None
        return self._mailbox.room(self._runtime.new_reply())

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done or waited for, so that the actor may leave memory."""
        return self.phase is Phase.LIVE and self._pipeline.head is None and not self._mailbox and self._failure is None

    @property
    def is_certain(self) -> bool:
        """Whether the state may be decided on as it is, as far as this process knows."""
        return self.epoch is not None or not (self.is_doubtful or self.cls.always_fresh)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is in flight here any more, whatever the reason."""
        return self.is_idle or self.phase in (Phase.PAUSED, Phase.STOPPED, Phase.PASSIVE)

    def pump(self) -> None:
        """Serve the mailbox as far as it goes without waiting."""
        if self.phase is not Phase.LIVE or self._failure is not None or self._runtime.is_shut:
            return
        mailbox = self._mailbox
        for _ in range(_TURN):
            if not mailbox or self._pipeline.is_congested:
                break
            if self.epoch is not None and not self._runtime.owns_streams(self.lease):
                self._lapsed()
                return
            first = mailbox.first
            if isinstance(first, Hold):
                if self._pipeline.head is not None:
                    break  # As for what does I/O: it must not rest on what may turn out not to be stored.
                mailbox.take()
                if self._begin_hold(first):
                    return
                continue
            route = self.cls.handlers.commands[type(first.command)]  # type: ignore[index]
            must_look = self._must_look(route, first)
            if (route.is_async or must_look) and self._pipeline.head is not None:
                break  # It may do I/O, so it must not act on what may turn out not to be stored.
            if first.is_apart and self._pipeline.head is not None:
                break
            envelope = mailbox.take()
            if must_look:
                self._begin(self._look(route, envelope), None)
                return
            if route.is_async:
                self._begin(self._handle(route.handle, envelope), envelope.context)
                return
            self._serve(route.handle, envelope)
            if self._failure is not None or self.phase is not Phase.LIVE:
                return
        else:
            self._runtime.loop.call_soon(self.pump)
            return
        if not mailbox:
            self._mailbox = None
            if mailbox is not None:
                mailbox.close()
            self.is_ready = self.is_certain and self._runtime.is_open and not self._pipeline.is_congested

    def _must_look(self, route: CommandRoute, envelope: Envelope) -> bool:
        """Whether the journal must be asked first: is the command remembered, is the state the newest."""
        identity = envelope.identity
        if identity is not None and not self.knows_new(identity):
            return True
        if self.epoch is not None:
            return False
        # What another process has stored is found out by the append. That is too late for a handler that does I/O.
        is_async_once = identity is not None and route.is_async
        return is_async_once or self.is_doubtful or envelope.is_fresh or self.cls.always_fresh

    def _serve(self, handle: Callable[[Any, Any], Any], envelope: Envelope) -> None:
        outcome: CommandOutcome | None = None
        self._metadata = envelope.metadata
        self._identity = envelope.identity
        self._is_deciding = True
        try:
            envelope.result = cast("contextvars.Context", envelope.context).run(handle, self.actor, envelope.command)
            if envelope.identity is not None:
                outcome = self._outcome(envelope)
        except BaseException as error:
            self._is_deciding = False
            self._refused(envelope, error)
            return
        self._is_deciding = False
        self._decided(envelope, outcome)

    def _begin(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None) -> None:
        """Do something for one command that has to be awaited. The others wait in the mailbox."""
        self.phase = Phase.HANDLING
        self.is_ready = False
        self._runtime.start_task(work, context)

    async def _handle(self, handle: Callable[[Any, Any], Awaitable[Any]], envelope: Envelope) -> None:
        outcome: CommandOutcome | None = None
        # It is not run again, so no other must be the reason that it is not stored.
        envelope.is_apart = self._runtime.has_inline
        self.begin_handling()
        self._metadata = merged(sent_with(), envelope.metadata)
        self._identity = envelope.identity
        pass_on(self._metadata, envelope.identity)
        self._is_deciding = True
        try:
            envelope.result = await handle(self.actor, envelope.command)
            if envelope.identity is not None:
                outcome = self._outcome(envelope)
        except asyncio.CancelledError:
            self._end_handling()
            self._refused(envelope, self._cancelled(envelope))
        except BaseException as error:
            self._end_handling()
            self._refused(envelope, error)
        else:
            self._end_handling()
            self._decided(envelope, outcome)
        self._after_failure()
        self.pump()

    async def _look(self, route: CommandRoute, envelope: Envelope) -> None:
        """Ask the journal what must be known before the command is decided; then answer it, or have it decided."""
        is_answered = False
        try:
            if envelope.identity is not None:
                is_answered = await self.memory().recall(envelope, envelope.identity)
            if not is_answered:
                await self.catch_up(is_fresh=envelope.is_fresh)
        except asyncio.CancelledError:
            envelope.error = self._cancelled(envelope)
        except BackendUnavailable as error:
            envelope.error = error
        except Exception as error:
            # Whatever it is: the asker must be told, and the actor go on.
            self._failure = envelope.error = error
        self._end_handling()
        if envelope.error is not None or is_answered:
            self.deliver(envelope)
        elif route.is_async:
            self._begin(self._handle(route.handle, envelope), envelope.context)
            return
        elif self._failure is None:
            self._serve(route.handle, envelope)
        self._after_failure()
        self.pump()

    async def catch_up(self, *, is_fresh: bool = False) -> None:
        """Bring the state up to the journal, where another process may have moved on, or if the newest is asked for."""
        if self.is_certain and (self.epoch is not None or not is_fresh):
            return
        self.is_doubtful = False
        try:
            await self._runtime.catch_up(self)
        except (BackendUnavailable, asyncio.CancelledError):
            self.is_doubtful = True
            raise
        except Exception as error:
            self._failure = error
            raise
        finally:
            # What has been caught up is right as far as it goes.
            self._pipeline.sent_version = self.version

    def _outcome(self, envelope: Envelope) -> CommandOutcome:
        command = cast("Command[Any]", envelope.command)
        identity = cast("CommandIdentity", envelope.identity)
        return replied(command, identity, envelope.result, limit=self._runtime.max_payload_bytes)

    def _cancelled(self, envelope: Envelope) -> ActorStopped:
        return ActorStopped(f"{self.stream_id!r}: the handler of {type(envelope.command).__name__} was cancelled")

    def _decided(self, envelope: Envelope, outcome: CommandOutcome | None) -> None:
        """The handler returned. If something failed under way, it may have caught that, but nothing of it can stand."""
        failure = self._failure or self._refusal
        if failure is None:
            self._conclude(envelope, outcome)
        else:
            self._refused(envelope, failure)

    def begin_handling(self) -> None:
        """From here on, what this context asks is asked by this actor."""
        self.handling = Handling()
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

    # For a transaction, which has the actor for itself from its `Hold` on until it releases it

    def _begin_hold(self, hold: Hold) -> bool:
        granted = cast("asyncio.Future[Any]", hold.reply)
        if granted.done():
            return False  # Whoever wanted it has given up.
        self._hold_for(hold.handling)
        granted.set_result(None)
        return True

    def _hold_for(self, handling: Handling) -> None:
        self.phase = Phase.HELD
        self.is_ready = False
        self.handling = handling

    def only_reads_before(self, hold: Hold) -> bool:
        """Whether the actor only has to be read from the journal before it serves a transaction that waits."""
        mailbox = self._mailbox
        is_next = mailbox is not None and len(mailbox) > 0 and mailbox.first is hold
        # To own it is a write, and its hooks may ask others for some.
        cls, plain = self.cls, cast("type[PersistentActor[Any]]", PersistentActor)
        is_plain = cls.recovered is plain.recovered and cls.after_restart is plain.after_restart
        return is_next and self.phase is Phase.RECOVERING and is_plain and not self._runtime.is_exclusive(cls)

    def hold_at_once(self, handling: Handling) -> bool:
        """Give a transaction the actor without a place in its queue, if it is idle. Returns whether it was."""
        if not self.is_idle or self._runtime.is_shut:
            return False
        if self.epoch is not None and not self._runtime.owns_streams(self.lease):
            return False
        self._hold_for(handling)
        return True

    def begin_decision(self, metadata: bytes) -> None:
        """From here on the actor may persist, for a command of the transaction."""
        self._metadata = metadata
        self._identity = None
        self._is_deciding = True

    def end_decision(self, error: BaseException | None) -> tuple[list[EncodedEvent], BaseException | None]:
        """What the command persisted, which is in the state and not on its way into the journal; and how it failed.

        Where it failed, nothing of it can stand: if it had persisted anything, the state is spoilt.
        """
        staged, self._staged = self._staged, None
        is_touched, self._is_touched = self._is_touched, False
        refusal, self._refusal = self._refusal, None
        self._is_deciding = False
        failure = self._failure or refusal or error
        if failure is None:
            return staged or [], None
        if is_touched:
            self._failure = failure
        return [], failure

    @property
    def is_spoilt(self) -> bool:
        """Whether the state is not what its events have made of it."""
        return self._failure is not None

    def stored(self, before: int, outcome: CommandOutcome | None) -> None:
        """The journal has what the transaction decided on a version, and the outcome of it under its id."""
        self._pipeline.sent_version = self.version
        snapshot = due_snapshot(
            self.cls.snapshot_policy,
            self.cls.state_type,
            self.actor.state,
            stream_id=self.stream_id,
            before=before,
            version=self.version,
        )
        if snapshot is not None:
            self._runtime.save_snapshot(self, self.version, snapshot)
        if outcome is not None:
            self._remember(outcome)
            self._runtime.command_remembered(self, outcome)

    def forget_commands(self) -> None:
        """Another process has stored a command: what is known of them is not all there is."""
        self._memory = None

    def release(self, failure: BaseException | None = None) -> None:
        """The transaction is over: serve the others; with a failure, from the state that the journal has."""
        if self.phase is not Phase.HELD:
            return  # The system was closed meanwhile.
        self.phase = Phase.LIVE
        self.handling = None
        self._failure = self._failure or failure
        self._after_failure()
        self.pump()

    # Events out

    def stage(self, events: tuple[Event, ...]) -> Awaitable[None]:
        """Encode events, apply them to the state, and keep them for the commit. Called by `PersistentActor.persist`."""
        if not self._is_deciding:
            raise ActorError(f"{self.stream_id!r}: persist works only while a command handler of the actor runs")
        if self._failure is not None:
            raise self._failure
        commits = self._runtime.commits
        if commits.is_refusing and (refusal := commits.refusal()) is not None:
            # Before the state is touched, so that the actor can go on answering from it.
            self._refusal = refusal
            raise refusal
        handlers = self.cls.handlers.events
        staged = self._staged
        batch_id = staged[0].batch_id if staged else None
        given = self._metadata
        # A transaction has encoded them; and where the handler has a context of its own, that is about what it sends
        # further.
        if self.handling is None and (outer := sent_with()) is not None and not isinstance(given, bytes):
            given = merged(outer, given)
        metadata = None
        if given is not None or self._identity is not None:
            metadata = encoded_metadata(given, self._identity)
        limit = self._runtime.max_payload_bytes
        added: list[EncodedEvent] = []
        for event in events:
            if event.__class__ not in handlers:
                raise DefinitionError(
                    f"{self.cls.__qualname__} persists {type(event).__qualname__} but has no @event_handler for it; "
                    "nothing was stored"
                )
            encoded = encode_event(event, metadata, limit=limit, batch_id=batch_id)
            if batch_id is None:
                batch_id = encoded.event_id
            added.append(encoded)
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
        if staged is None:
            self._staged = added
        else:
            staged += added
        return self

    def __await__(self) -> Generator[Any, None, None]:
        """A cell is what `persist` returns: awaiting it waits until what was persisted is durable."""
        return self.until_durable().__await__()

    async def until_durable(self) -> None:
        """Store what is staged now, and return when everything the actor persisted is durable."""
        if self.phase is Phase.HELD:
            raise TransactionError(
                f"{self.stream_id!r}: in a transaction events are durable when its block has ended: await no persist"
            )
        if self.phase is not Phase.HANDLING:
            raise ActorError(
                f"{self.stream_id!r}: only an `async def` handler can await persist; the reply of a plain one "
                "waits for its events by itself"
            )
        if self._staged or self._pipeline.tail is not None:
            envelope = Envelope(None, self._runtime.new_reply(), None)
            self._conclude(envelope)
            await cast("asyncio.Future[None]", envelope.reply)

    def _conclude(self, envelope: Envelope, outcome: CommandOutcome | None = None) -> None:
        """A command is decided: send its events on, and let its reply wait for them and all before them."""
        staged, self._staged = self._staged, None
        self._is_touched = False
        envelope.attempts += 1
        if outcome is not None:
            self._remember(outcome)
        self._pipeline.put(envelope, staged, outcome)

    def _remember(self, outcome: CommandOutcome) -> None:
        if self._memory is not None:
            self._memory.add(outcome.command_id)

    def outcome_known(self, stored: Commit | None) -> None:
        """A commit was stored, or what was decided on it is lost: go on with what waited for that."""
        if stored is not None:
            if stored.snapshot is not None:
                self._runtime.save_snapshot(self, *stored.snapshot)
            for remembered in stored.commands:
                self._runtime.command_remembered(self, remembered)
        if self._failure is not None:
            self._after_failure()
        if not self.is_ready:
            self.pump()

    def lost(self, envelopes: Sequence[Envelope], error: EventStoreError) -> None:
        """What was decided is not stored: decide again after a conflict, else tell everyone who waits."""
        self.is_ready = False
        again: list[Envelope] = []
        for envelope in envelopes:
            if self._is_decided_again(envelope, error):
                # One of several cannot be stored: each by itself, it is seen which.
                envelope.is_apart = isinstance(error, ProjectionFailed)
                envelope.result = envelope.error = None
                again.append(envelope)
            else:
                envelope.error = _told(error, envelope.identity, self._pipeline.sent_version)
                self.deliver(envelope)
        if again:
            if self._mailbox is None:
                self._mailbox = Mailbox(self._runtime.mailbox_size)
            self._mailbox.put_back(again)
        self._failure = self._failure or error

    def _is_decided_again(self, envelope: Envelope, error: EventStoreError) -> bool:
        is_pure = type(envelope.command) in self.decisions
        if isinstance(error, (DuplicateCommand, CommandForgotten)):
            is_named = envelope.identity is not None and envelope.identity.command_id == error.command_id
            # Another process was faster with this very command: what came of it there is the answer.
            envelope.is_decided = envelope.is_decided or is_named
            return is_pure or is_named
        if isinstance(error, ProjectionFailed):
            return is_pure and not envelope.is_apart
        return isinstance(error, ConcurrencyError) and is_pure and envelope.attempts < _ATTEMPTS

    def _refused(self, envelope: Envelope, error: BaseException) -> None:
        """The handler raised. Unless it had persisted something, nothing has changed and the actor goes on."""
        envelope.error = error
        envelope.attempts += 1
        self._refusal = None
        is_touched, self._is_touched = self._is_touched, False
        if is_touched:
            self._staged = None
            self.version = self._pipeline.sent_version
            self.is_ready = False
        outcome: CommandOutcome | None = None
        if envelope.identity is not None and isinstance(error, CommandRejected) and self._failure is None:
            try:
                outcome = rejected(envelope.identity, error, limit=self._runtime.max_payload_bytes)
            except CodecError as unwritable:
                envelope.error = unwritable
        if outcome is not None:
            self._remember(outcome)
        self._pipeline.put(envelope, None, outcome)
        if is_touched:
            self._failure = self._failure or error
            self._after_failure()
        if not isinstance(error, Exception):
            raise error

    def deliver(self, envelope: Envelope) -> None:
        """Answer the asker; what a told command came to is nobody's but the runtime's."""
        if envelope.reply is not None:
            envelope.answer()
        elif envelope.error is not None:
            self._runtime.tell_failed(self, envelope, envelope.error)

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
        self._memory = None
        self.is_doubtful = False
        self.actor = new_actor(self.cls, self)
        return self.actor

    def recovered(self) -> None:
        """The state is that of the journal: begin to serve."""
        self.phase = Phase.LIVE
        self._pipeline.sent_version = self.version
        self.is_overtaken = False
        self.pump()

    def recovery_failed(self, error: BaseException) -> None:
        """Nobody can be served: tell everyone who waits, and leave memory."""
        self._fail_mailbox(error)
        self.phase = Phase.PASSIVE
        if isinstance(error, _NOT_ITS_OWN):
            self._runtime.forget(self)
        else:
            self._runtime.supervise(self, error)

    def stop(self, error: BaseException) -> None:
        """Serve nobody any more."""
        # The text, not the error: its traceback holds on to the state, and a stopped actor may stay here for ever.
        self._stopped_by = described(error)
        self._let_go()
        self.phase = Phase.STOPPED
        self._fail_mailbox(self.stopped_error())

    def passivate(self) -> None:
        """Leave memory. Only for an idle cell."""
        # References to the actor may hold this cell: they should not hold its state.
        self._let_go()
        self.phase = Phase.PASSIVE

    def _let_go(self) -> None:
        self.is_ready = False
        self.base = self._memory = None
        if hasattr(self, "actor"):
            del self.actor

    def snapshot_on_passivation(self) -> bytes | None:
        """The state to keep when the actor leaves memory, if its class wants that."""
        if not (self.cls.snapshot_policy.on_passivation and self.version):
            return None
        try:
            return snapshot_data(self.cls.state_type, self.actor.state, self.stream_id, self.version)
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
        for envelope in self._pipeline.waiting():
            envelope.error = unknown
            self.deliver(envelope)

    def stopped_error(self) -> ActorStopped:
        """What a command to a stopped actor is answered with."""
        return ActorStopped(
            f"actor {self.stream_id!r} was stopped after {self._stopped_by}; "
            "when the cause is gone, call restart() on its reference"
        )

    def _lapsed(self) -> None:
        """The lease ran out, so another process may have claimed the stream: the state here counts no more."""
        self.is_ready = False
        self._failure = BackendUnavailable(f"{self.stream_id!r}: this process's lease ran out")
        self._after_failure()

    def _after_failure(self) -> None:
        """Once nothing is in flight any more, drop the state that is not the journal's, and rebuild it."""
        if self._failure is None or self._pipeline.head is not None or self.phase is not Phase.LIVE:
            return
        failure, self._failure = self._failure, None
        if isinstance(failure, FencedError):
            # The stream has a new owner: what waits here is that one's to answer.
            self._fail_mailbox(failure)
            self._runtime.forget(self)
        elif isinstance(failure, (*_OVERTAKEN, *_NOT_ITS_OWN, CommandRejected)):
            # Nothing is wrong with the actor: it was overtaken, or changed its mind, or the database was away.
            self.is_overtaken = isinstance(failure, (*_OVERTAKEN, TransactionError))
            self.activate(0)
        else:
            self._runtime.supervise(self, failure)

    def _fail_mailbox(self, error: BaseException) -> None:
        mailbox, self._mailbox = self._mailbox, None
        for envelope in mailbox.empty() if mailbox is not None else ():
            envelope.error = error
            self.deliver(envelope)


def encoded_metadata(metadata: Metadata | bytes | None, identity: CommandIdentity | None) -> bytes | None:
    """The metadata that a command's events are stored with: they name the command. A transaction has encoded them."""
    if isinstance(metadata, bytes):
        return metadata
    if identity is None:
        return None if metadata is None else encode_metadata(metadata)
    if metadata is None:
        return b'{"command_id":' + orjson.dumps(identity.command_id) + b"}"
    return encode_metadata(metadata.model_copy(update={"command_id": identity.command_id}))


def _told(error: EventStoreError, identity: CommandIdentity | None, version: int) -> EventStoreError:
    """An append's error as the asker of one command gets it."""
    command_id = None if identity is None else identity.command_id
    if isinstance(error, (DuplicateCommand, CommandForgotten)) and error.command_id != command_id:
        # It was another command, which went the same way, that could not be stored.
        conflict = ConcurrencyError(error.stream_id, version, None)
        conflict.__cause__ = error
        return conflict
    return outcome_unknown(error, command_id) if isinstance(error, OutcomeUnknown) else error


def outcome_unknown(error: OutcomeUnknown, command_id: str | None) -> OutcomeUnknown:
    """An append's unknown outcome as that of a command, which says how to find out."""
    if command_id is None:
        return error
    unknown = OutcomeUnknown(f"{error}; ask again with command_id {command_id!r} to find out", command_id=command_id)
    unknown.__cause__ = error
    return unknown
