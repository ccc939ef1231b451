"""PendingAppend: one atomic batch on its way into the journal, and who hears what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from eventstore.backend import AppendOutcome, Batch, StreamWrite
from eventstore.errors import EventStoreError

# A fixed cost per event beside its payload, so that many tiny events fill the queue too.
EVENT_OVERHEAD_BYTES = 256


class PendingAppend:
    """One atomic batch on its way. Its owner may extend `writes` until `is_taken`; then it belongs to the group.

    `on_outcome` is called once, from the event loop, with the batch and its outcome, unless the owner sets
    `is_withdrawn` before it is taken. `on_taken`, if set, is called when a group takes it. Batches with the same
    `on_outcome` have the same owner: a later one was decided on an earlier one, and its outcome comes after that.
    """

    __slots__ = ("is_taken", "is_withdrawn", "on_outcome", "on_taken", "size_bytes", "writes")

    def __init__(
        self, writes: Batch, size_bytes: int, on_outcome: Callable[[Any, AppendOutcome | EventStoreError], None]
    ) -> None:
        self.writes = writes
        self.size_bytes = size_bytes
        self.on_outcome = on_outcome
        self.on_taken: Callable[[], None] | None = None
        self.is_taken = False
        self.is_withdrawn = False


def size_of(writes: Sequence[StreamWrite]) -> int:
    """The bytes a batch counts for in the queue."""
    size = 0
    for write in writes:
        size += sum(len(event.payload) + EVENT_OVERHEAD_BYTES for event in write.events)
        size += sum(len(command.payload) + EVENT_OVERHEAD_BYTES for command in write.commands)
    return size
