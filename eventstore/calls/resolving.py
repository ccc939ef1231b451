"""Resolving: finding out what became of an append or a transaction whose outcome is unknown, by trying again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from eventstore.backend import AppendOutcome, Batch
from eventstore.errors import (
    BackendUnavailable,
    ConcurrencyError,
    DuplicateEventError,
    EventStoreError,
    FencedError,
    OutcomeUnknown,
)

Removed = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""Up to which version the events of streams were removed. It is asked for one at least, and for each once."""

_REFUSALS = (ConcurrencyError, DuplicateEventError, FencedError)

# The longest pause between two tries: once the database is back, nobody waits much longer than that.
RETRY_SECONDS = 1.0


async def resolve(
    append: Callable[[Sequence[Batch]], Awaitable[Sequence[AppendOutcome | EventStoreError]]],
    batches: Sequence[Batch],
    *,
    within: float,
    removed: Removed,
) -> Sequence[AppendOutcome | EventStoreError]:
    """Append the identical batches until the database says what became of them. No try begins after `within` seconds.

    Nothing is looked up first: between a look and a decision the first try could still be carried out. The backend
    looks for the ids in the very transaction that decides, so what it refuses now was not stored before, unless it was
    `removed` since, with its ids.

    Raises `OutcomeUnknown`.
    """

    async def append_again() -> Sequence[AppendOutcome | EventStoreError]:
        # A backend may return any awaitable; what is retried must be a coroutine function.
        return await append(batches)

    try:
        again = _attempts(within, OutcomeUnknown, BackendUnavailable)
        outcomes: Sequence[AppendOutcome | EventStoreError] = await again(append_again)
    except OutcomeUnknown:
        raise
    except EventStoreError as error:
        # The first try may have been stored: that the later ones were not does not settle it.
        raise OutcomeUnknown(
            f"the database could not say whether the events were stored ({type(error).__name__}: {error})"
        ) from error
    return await _unless_removed(batches, [_of_every_try(outcome) for outcome in outcomes], removed)


async def find_out(commit: Callable[[], Awaitable[AppendOutcome]], *, within: float) -> AppendOutcome:
    """Ask a transaction what became of its commit until it knows (`SqlTransaction.commit`). Raises as it does then.

    No try begins after `within` seconds: then it stays with `OutcomeUnknown`.
    """

    async def ask() -> AppendOutcome:
        return await commit()

    outcome: AppendOutcome = await _attempts(within, OutcomeUnknown)(ask)
    return outcome


def _attempts(within: float, *unsettled: type[EventStoreError]) -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(unsettled),
        wait=wait_random_exponential(multiplier=0.05, max=RETRY_SECONDS),
        stop=stop_after_delay(within),
        reraise=True,
    )


def _of_every_try(outcome: AppendOutcome | EventStoreError) -> AppendOutcome | EventStoreError:
    """The outcome of the last try, as that of the first one too, which may still be on its way to the database.

    A refusal holds for it as well: a stream's version, its epoch and the commands it remembers only grow. But a stream
    that has not come to the expected version yet may have done so when the first try arrives.
    """
    match outcome:
        case ConcurrencyError(expected=expected, actual=actual) if isinstance(expected, str) or (
            actual is not None and actual < expected
        ):
            unknown = OutcomeUnknown(f"the append was refused now, but an earlier try may still arrive: {outcome}")
            unknown.__cause__ = outcome
            return unknown
        case _:
            return outcome


async def _unless_removed(
    batches: Sequence[Batch], outcomes: Sequence[AppendOutcome | EventStoreError], removed: Removed
) -> Sequence[AppendOutcome | EventStoreError]:
    """What the last try was told. A refusal says nothing of an earlier one whose events may have been removed."""
    refused = [batch for batch, outcome in zip(batches, outcomes, strict=True) if isinstance(outcome, _REFUSALS)]
    streams = {write.stream_id for batch in refused for write in batch if write.events}
    if not streams:
        return outcomes
    through: Mapping[str, int] | None = None
    with suppress(EventStoreError):
        through = await removed(sorted(streams))
    told: list[AppendOutcome | EventStoreError] = []
    for batch, outcome in zip(batches, outcomes, strict=True):
        if isinstance(outcome, _REFUSALS) and _may_be_gone(batch, outcome, through):
            unknown = OutcomeUnknown(f"what an earlier try has stored may have been removed; the last one: {outcome}")
            unknown.__cause__ = outcome
            told.append(unknown)
        else:
            told.append(outcome)
    return told


def _may_be_gone(batch: Batch, outcome: EventStoreError, through: Mapping[str, int] | None) -> bool:
    """Whether the events of a batch may have been stored and removed, up to such versions; None: nobody can say."""
    versions = [(write.stream_id, max(0, write.expected)) for write in batch if write.events]
    gone = [through is None or through[stream_id] > version for stream_id, version in versions]
    # Of a batch that is there in part the rest is gone. Otherwise all of it is: what is left would have been found.
    return any(gone) if isinstance(outcome, DuplicateEventError) else bool(gone) and all(gone)
