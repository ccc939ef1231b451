"""StagingCell: what the command that an actor is deciding has come to so far: events, and an outcome to remember."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, cast

from actors.actor import PersistentActor
from actors.cells.cell_runtime import CellRuntime
from actors.cells.command_memory import CommandMemory
from actors.cells.mailbox import Envelope
from actors.cells.phase import Phase
from actors.cells.pipeline import Pipeline
from actors.command_identity import CommandIdentity
from actors.event_metadata import metadata_of_command
from actors.handlers import unhandled
from actors.handling import Handling, deciding
from actors.message_metadata import merged, sent_with
from actors.told_error import told_error
from eventstore.backend import CommandOutcome, EncodedEvent
from eventstore.codec import encode_event
from eventstore.errors import ActorError, BackendUnavailable, TransactionError
from eventstore.events import Event, Metadata


class StagingCell:
    """An actor that persists: its events are encoded, applied to its state, and kept until its command is decided.

    Then they go, with the outcome if the command has an id, into the pipeline. `Cell` says what else a live actor is.
    """

    __slots__ = (
        "_decision",
        "_failure",
        "_identity",
        "_is_deciding",
        "_is_touched",
        "_memory",
        "_metadata",
        "_pipeline",
        "_refusal",
        "_runtime",
        "_staged",
        "actor",
        "cls",
        "handling",
        "phase",
        "stream_id",
        "version",
    )

    _pipeline: Pipeline
    actor: PersistentActor[Any]

    def __init__(self, runtime: CellRuntime, cls: type[PersistentActor[Any]], stream_id: str) -> None:
        self._runtime = runtime
        self.cls = cls
        self.stream_id = stream_id
        self.version = 0
        self.phase = Phase.PASSIVE
        self.handling: Handling | None = None
        self._staged: list[EncodedEvent] | None = None
        # Of the command that is being decided.
        self._metadata: Metadata | bytes | None = None
        self._identity: CommandIdentity | None = None
        self._refusal: BackendUnavailable | None = None
        self._memory: CommandMemory | None = None
        self._is_deciding = False
        # What marks the contexts that are part of the async handler that runs.
        self._decision: object = None
        self._is_touched = False
        self._failure: BaseException | None = None

    def knows_new(self, identity: CommandIdentity) -> bool:
        """Whether a command with an id can be decided without asking the journal what it remembers."""
        return self._memory is not None and self._memory.is_new(identity)

    def memory(self) -> CommandMemory:
        """What is known of the commands that the journal remembers."""
        if self._memory is None:
            self._memory = CommandMemory(self.stream_id, self._runtime.find_command)
        return self._memory

    def forget_commands(self) -> None:
        """Another process has stored a command: what is known of them is not all there is."""
        self._memory = None

    def begin_decision(self, metadata: bytes, *, is_async: bool) -> None:
        """From here on the actor may persist, for a command of the transaction."""
        self._metadata = metadata
        self._identity = None
        if is_async:
            self._begin_async_decision()
        self._is_deciding = True

    def _begin_async_decision(self) -> None:
        """From here on this context may persist, with those made out of it, until the handler has ended."""
        self._decision = object()
        deciding.set(self._decision)
        self._is_deciding = True

    def end_decision(self, error: BaseException | None) -> tuple[list[EncodedEvent], BaseException | None]:
        """What the command persisted, which is in the state and not on its way into the journal; and how it failed.

        Where it failed, nothing of it can stand: if it had persisted anything, the state is spoilt.
        """
        staged, self._staged = self._staged, None
        is_touched, self._is_touched = self._is_touched, False
        refusal, self._refusal = self._refusal, None
        self._is_deciding = False
        self._decision = None
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

    def stage(self, events: tuple[Event, ...]) -> Awaitable[None]:
        """Encode events, apply them to the state, and keep them for the commit. Called by `PersistentActor.persist`."""
        if not self._is_deciding or (self._decision is not None and deciding.get() is not self._decision):
            raise self._no_handler()
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
        metadata = self._notes()
        limit = self._runtime.max_payload_bytes
        added: list[EncodedEvent] = []
        for event in events:
            if event.__class__ not in handlers:
                raise unhandled(self.cls, event)
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
            self._failure = told_error(error, self.stream_id)
            raise
        self._is_deciding = True
        if staged is None:
            self._staged = added
        else:
            staged += added
        return self

    def _no_handler(self) -> ActorError:
        """Why the code that persists cannot."""
        if self._is_deciding:
            return ActorError(
                f"{self.stream_id!r}: persist was called by what an earlier handler, or somebody else, left running "
                "while another command is handled: nothing was stored; send the actor a command instead"
            )
        return ActorError(f"{self.stream_id!r}: persist works only while a command handler of the actor runs")

    def _notes(self) -> bytes | None:
        """What the events of the command that is being decided are stored with."""
        given = self._metadata
        # A transaction has encoded them; and where the handler has a context of its own, that is about what it sends
        # further.
        if self.handling is None and (outer := sent_with()) is not None and not isinstance(given, bytes):
            given = merged(outer, given)
        if given is None and self._identity is None:
            return None
        return metadata_of_command(given, self._identity)

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
