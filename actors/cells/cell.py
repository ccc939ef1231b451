"""Cell: one live actor, and the path of a command from its mailbox to its decision and to its reply."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, cast

from actors.actor import PersistentActor
from actors.cells.append_failures import is_decided_again, told
from actors.cells.cell_runtime import CellRuntime
from actors.cells.commit import Commit
from actors.cells.detaching import UNCHANGEABLE, detached
from actors.cells.holdable_cell import HoldableCell
from actors.cells.mailbox import Envelope, Hold, Mailbox
from actors.cells.phase import Phase
from actors.cells.pipeline import Pipeline
from actors.cells.replies import rejected, replied
from actors.command import Command
from actors.command_identity import CommandIdentity
from actors.handlers import CommandRoute
from actors.message_metadata import merged, pass_on, sent_with
from actors.told_error import ENDS_THE_PROGRAM, told_error
from eventstore.backend import CommandOutcome
from eventstore.errors import (
    ActorStopped,
    BackendUnavailable,
    CodecError,
    CommandRejected,
    EventStoreError,
    ProjectionFailed,
)
from eventstore.events import Metadata

# Commands served from a mailbox in one turn of the loop, so that a full one does not hold up everybody else.
_TURN = 64


class Cell(HoldableCell):
    """One actor in memory. An idle one is this object and the actor's own: no task, queue, lock or timer.

    What else it does has files of its own, and is in the same object, because there may be a million of them:
    `StagingCell`, `LivingCell` and `HoldableCell`.
    """

    __slots__ = ("decisions",)

    def __init__(self, runtime: CellRuntime, cls: type[PersistentActor[Any]], stream_id: str) -> None:
        super().__init__(runtime, cls, stream_id)
        self.decisions = cls.handlers.decisions
        self._pipeline = Pipeline(self, runtime.commits)

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
            if result.__class__ not in UNCHANGEABLE:
                result = detached(result)
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

    @property
    def is_certain(self) -> bool:
        """Whether the state may be decided on as it is, as far as this process knows."""
        return self.epoch is not None or not (self.is_doubtful or self.cls.always_fresh)

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
                self._begin(self._look(route, envelope), envelope, None)
                return
            if route.is_async:
                self._begin(self._handle(route.handle, envelope), envelope, envelope.context)
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
            context = cast("contextvars.Context", envelope.context)
            envelope.result = detached(context.run(handle, self.actor, envelope.command))
            if envelope.identity is not None:
                outcome = self._outcome(envelope)
        except BaseException as error:
            self._is_deciding = False
            self._refused(envelope, error)
            return
        self._is_deciding = False
        self._decided(envelope, outcome)

    def _begin(self, work: Coroutine[Any, Any, None], envelope: Envelope, context: contextvars.Context | None) -> None:
        """Do something for one command that has to be awaited. The others wait in the mailbox."""
        self._handled = envelope
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
        self._begin_async_decision()
        try:
            envelope.result = detached(await handle(self.actor, envelope.command))
            if envelope.identity is not None:
                outcome = self._outcome(envelope)
        except asyncio.CancelledError:
            if self._end_handling():
                self._refused(envelope, self._cancelled(envelope))
        except BaseException as error:
            if self._end_handling():
                self._refused(envelope, error)
        else:
            if self._end_handling():
                self._decided(envelope, outcome)
        self._go_on()

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
        except BaseException as error:
            # Whatever it is: the asker must be told, and the actor go on.
            self._failure = envelope.error = told_error(error, self.stream_id)
        fatal = envelope.error if isinstance(envelope.error, ENDS_THE_PROGRAM) else None
        if not self._end_handling():
            return
        if envelope.error is not None or is_answered:
            self.deliver(envelope)
        elif route.is_async:
            self._begin(self._handle(route.handle, envelope), envelope, envelope.context)
            return
        elif self._failure is None:
            self._serve(route.handle, envelope)
        self._go_on()
        if fatal is not None:
            raise fatal

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
        except BaseException as error:
            self._failure = told_error(error, self.stream_id)
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

    def _end_handling(self) -> bool:
        """Returns whether what was decided counts: not when the system has closed and did not wait for it."""
        self.end_handling()
        self._is_deciding = False
        self._decision = self._handled = None
        if self.phase is Phase.HANDLING:
            self.phase = Phase.LIVE
        return self.phase is not Phase.STOPPED

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
            if is_decided_again(envelope, error, is_pure=type(envelope.command) in self.decisions):
                # One of several cannot be stored: each by itself, it is seen which.
                envelope.is_apart = isinstance(error, ProjectionFailed)
                envelope.result = envelope.error = None
                again.append(envelope)
            else:
                envelope.error = told(error, envelope.identity, self._pipeline.sent_version)
                self.deliver(envelope)
        if again:
            if self._mailbox is None:
                self._mailbox = Mailbox(self._runtime.mailbox_size)
            self._mailbox.put_back(again)
        self._failure = self._failure or error

    def _refused(self, envelope: Envelope, error: BaseException) -> None:
        """The handler raised. Unless it had persisted something, nothing has changed and the actor goes on."""
        refusal, self._refusal = self._refusal, None
        if refusal is not None and isinstance(error, CommandRejected):
            # The handler made a rejection of it. As such it would be remembered, and the database comes back.
            error = refusal
        envelope.error = error = told_error(error, self.stream_id)
        envelope.attempts += 1
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
        if isinstance(error, ENDS_THE_PROGRAM):
            # Whether that ends the loop is not known here.
            self._runtime.loop.call_soon(self._go_on)
            raise error

    def _go_on(self) -> None:
        self._after_failure()
        self.pump()
