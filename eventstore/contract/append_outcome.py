"""What became of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eventstore.contract.writes import Batch
from eventstore.errors import CommandForgotten, ConcurrencyError, DuplicateCommand, DuplicateEventError, FencedError


class Appended(NamedTuple):
    """Where a batch was stored.

    `position` is that of its last event, 0 if it had none. `versions` gives, for every write in order, the stream's
    version after it. `is_duplicate` says that the identical batch had been stored before: the numbers are the
    original ones.
    """

    position: int
    versions: tuple[int, ...]
    is_duplicate: bool = False


def stored_by(batches: Sequence[Batch], outcomes: Sequence[object]) -> Batch:
    """All writes that an append has just stored, as one batch: not those that were refused, or stored before."""
    return [
        write
        for batch, outcome in zip(batches, outcomes, strict=True)
        if isinstance(outcome, Appended) and not outcome.is_duplicate
        for write in batch
    ]


AppendOutcome = Appended | ConcurrencyError | FencedError | DuplicateEventError | DuplicateCommand | CommandForgotten
"""One batch's own outcome: stored, or the error that says why nothing of it was."""
