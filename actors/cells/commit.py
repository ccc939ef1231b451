"""Commit: one actor's events on their way into the journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from actors.cells.mailbox import Envelope
from eventstore.backend import AppendOutcome, CommandOutcome, EncodedEvent, StreamWrite
from eventstore.calls.pending_append import EVENT_OVERHEAD_BYTES, PendingAppend
from eventstore.errors import EventStoreError

# What may join one commit before the actor waits for it: more would only make the reply of the first wait longer.
_EVENTS = 256
_COMMANDS = 256
_BYTES = 1024 * 1024


# As the class does it by itself, without a call in Python.
_new_write = cast("Callable[[type[StreamWrite], tuple[Any, ...]], StreamWrite]", tuple.__new__)


class Commit(PendingAppend):
    """Events and outcomes of one actor on their way into the journal, and everyone who waits for them.

    It can be joined until the group takes it, so that there is at most one in flight and one behind it: a conflict
    then fails exactly those commands that were decided on what is lost.
    """

    __slots__ = ("commands", "envelopes", "events", "is_apart", "snapshot", "version")

    def __init__(
        self,
        stream_id: str,
        version: int,
        epoch: int | None,
        events: list[EncodedEvent],
        outcome: CommandOutcome | None,
        on_outcome: Callable[[Commit, AppendOutcome | EventStoreError], None],
    ) -> None:
        # As the class above does it: a call fewer, and one of these is made for nearly every command.
        commands = [] if outcome is None else [outcome]
        self.writes = [_new_write(StreamWrite, (stream_id, version, events, epoch, commands))]
        self.size_bytes = _size_of(events, outcome)
        self.on_outcome = on_outcome
        self.on_taken = None
        self.is_taken = False
        self.is_withdrawn = False
        self.is_apart = False
        self.events = events
        self.commands = commands
        self.envelopes: list[Envelope] = []
        self.version = version
        self.snapshot: tuple[int, bytes] | None = None

    def join(self, events: list[EncodedEvent], outcome: CommandOutcome | None) -> int:
        """Take in what another command came to, before the group takes all of it. Returns the bytes it counts for."""
        self.events += events
        if outcome is not None:
            self.commands.append(outcome)
        return _size_of(events, outcome)

    @property
    def is_full(self) -> bool:
        """Whether no more may wait for it. While it is in flight it gets no events, but others wait for it too."""
        if self.is_taken:
            return len(self.envelopes) >= 2 * _COMMANDS
        return len(self.envelopes) >= _COMMANDS or len(self.events) >= _EVENTS or self.size_bytes >= _BYTES


def _size_of(events: list[EncodedEvent], outcome: CommandOutcome | None) -> int:
    """The bytes that a command's events and outcome count for in the queue of appends."""
    size = EVENT_OVERHEAD_BYTES * len(events)
    for event in events:
        size += len(event.payload)
    return size if outcome is None else size + EVENT_OVERHEAD_BYTES + len(outcome.payload)
