"""What is done to projections from outside: pausing, seeking, forgetting, waiting for them, and their dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

from eventstore.contract.checkpoint import (
    NOTHING,
    Checkpoint,
    DeadLetter,
    Mark,
    Status,
    added,
    projection_of,
    version_of,
)
from eventstore.errors import JournalCorrupt, ProjectionBehind, ProjectionError
from eventstore.events import RecordedEvent
from eventstore.projections import Projection
from eventstore.read_models.applying import Lost, apply_events
from eventstore.read_models.beginning import check_partitions
from eventstore.read_models.delivering import Poison
from eventstore.store import EventStore

# A runner is heard of at least every third of its lease.
_SILENT_SECONDS = 60


async def live_checkpoints(store: EventStore, name: str) -> list[Checkpoint]:
    """The checkpoints of a projection's live version, one for each partition. Raises `ProjectionError` if it has never
    been run."""
    if found := version_of(await store.checkpoints(), name, Status.LIVE):
        return found
    raise ProjectionError(f"projection {name!r} has never been run on this store")


async def live_checkpoint(store: EventStore, name: str, partition: int = 0) -> Checkpoint:
    """The same of one partition."""
    for checkpoint in await live_checkpoints(store, name):
        if checkpoint.partition == partition:
            return checkpoint
    raise ProjectionError(f"projection {name!r} has no partition {partition} on this store")


async def change(store: EventStore, name: str, make: Callable[[Checkpoint], Checkpoint]) -> list[Checkpoint]:
    """Change a projection's live checkpoints, whoever else does so. Who runs it notices at the next batch."""
    changed: list[Checkpoint] = []
    for part in await live_checkpoints(store, name):
        while True:
            made = make(await live_checkpoint(store, name, part.partition))
            if await store.save_checkpoint(made):
                changed.append(made.saved())
                break
    return changed


async def pause(store: EventStore, name: str, reason: str) -> list[Checkpoint]:
    """Let nobody bring the projection forward until it is resumed."""
    return await change(store, name, lambda found: replace(found, pause=reason, runner=""))


async def resume(store: EventStore, name: str) -> list[Checkpoint]:
    """Let it go on. If an event was in its way, that is tried again."""
    return await change(store, name, lambda found: replace(found, pause=None))


async def seek(store: EventStore, projection: type[Projection], position: int) -> list[Checkpoint]:
    """Let the projection go on behind another position. Events behind it come again, dead letters among them, those
    before it are taken as applied: what the read model makes of that is up to who calls this. Raises
    `PartitionsChanged`."""
    parts = await live_checkpoints(store, projection.name)
    check_partitions(projection, parts)
    sums = {part.partition: (0, NOTHING) for part in parts}
    async for recorded in store.read_all(where=projection.where()):
        if recorded.position > position:
            break
        number = next(part.partition for part in parts if part.has(recorded.stream_id))
        events, checksum = sums[number]
        sums[number] = events + 1, added(checksum, [recorded.event_id])

    def moved(found: Checkpoint) -> Checkpoint:
        events, checksum = sums[found.partition]
        marks = (Mark(position, events, checksum),) if events else ()
        # Those behind it come again with all others. As a dead letter such an event could be applied once more.
        letters = tuple(letter for letter in found.letters if letter.position <= position)
        return replace(
            found, position=position, events=events, checksum=checksum, marks=marks, letters=letters, runner=""
        )

    return await change(store, projection.name, moved)


async def forget(store: EventStore, name: str) -> int:
    """Forget a projection, all versions of its read model, whose tables stay: no event is kept for it any more. A
    damaged checkpoint goes as well. Returns how many checkpoints went.

    Who has the class and is not ended begins it anew, on the tables as they are: end them all before, and rebuild it if
    it is to be there again. Raises `ProjectionError` while it is run, as far as one can tell, and for one that has
    never been run.
    """
    count = 0
    while found := [one for one in await store.stored_checkpoints() if projection_of(one.name) == name]:
        for one in found:
            with suppress(JournalCorrupt):
                _check_stands_still(Checkpoint.of(one))
        count += sum([await store.change_checkpoints([], [one.key]) for one in found])
    if not count:
        known = sorted({projection_of(one.name) for one in await store.stored_checkpoints()})
        raise ProjectionError(
            f"projection {name!r} has never been run on this store; there are: {', '.join(known) or 'none'}"
        )
    return count


def _check_stands_still(checkpoint: Checkpoint) -> None:
    if is_run(checkpoint):
        raise ProjectionError(
            f"projection {checkpoint.name!r} is run by {checkpoint.runner_name}: end that first, or it would begin "
            f"anew; one that was killed counts as ended after {_SILENT_SECONDS} s"
        )


def is_run(checkpoint: Checkpoint) -> bool:
    """Whether somebody brings it forward, as far as one can tell."""
    return checkpoint.runner != "" and seconds_silent(checkpoint) < _SILENT_SECONDS


def seconds_silent(checkpoint: Checkpoint) -> float:
    """How long ago it was last saved, by the clocks of two machines."""
    return (datetime.now(UTC) - datetime.fromisoformat(checkpoint.updated_at)).total_seconds()


async def caught_up(
    store: EventStore,
    projection: type[Projection] | str,
    position: int | None = None,
    *,
    timeout: float = 30.0,
    poll_seconds: float = 0.02,
) -> int:
    """Wait until a projection has come to a position, by default to where the log ends now: then whoever reads the read
    model reads what he has written. Returns where it is.

    Raises `ProjectionBehind` when that takes longer, `ProjectionError` if it has not been run at all by then.
    """
    name = projection if isinstance(projection, str) else projection.name
    wanted = await store.end() if position is None else position
    deadline = time.monotonic() + timeout
    while True:
        is_over = time.monotonic() >= deadline
        try:
            found = min(await live_checkpoints(store, name), key=lambda part: part.position)
            if found.position >= wanted:
                return found.position
            if not (found.runner or isinstance(projection, str)) and await _wants_nothing(
                store, projection, found.position, wanted
            ):
                # Nobody runs it, and it need not be: it is inline, and these are events of others.
                return wanted
            if is_over:
                what = "it is paused" if found.pause is not None else f"waited for {timeout:g} s"
                raise ProjectionBehind(name, found.position, wanted, what)
        except ProjectionBehind:
            raise
        except ProjectionError:
            # Its runner may have just been started.
            if is_over:
                raise
        await asyncio.sleep(poll_seconds)


async def letter_event(store: EventStore, letter: DeadLetter) -> RecordedEvent | None:
    """The event of a dead letter, whichever tenant's it is; None if it was removed from the journal."""
    page = await store.read_page(after=letter.position - 1, limit=1)
    return next((event for event in page.events if event.position == letter.position), None)


async def _wants_nothing(store: EventStore, projection: type[Projection], after: int, through: int) -> bool:
    page = await store.read_page(after=after, limit=1, where=projection.where())
    return page.position >= through and all(recorded.position > through for recorded in page.events)


async def replay_letter(store: EventStore, projection: type[Projection], letter: DeadLetter) -> str | None:
    """Apply an event that was put among the dead letters, and take it out. Returns why it cannot be applied, still.

    One that was removed from the journal cannot. Raises `ProjectionError` if it is no dead letter any more.
    """
    event = await letter_event(store, letter)
    if event is None:
        return "the event was removed from the journal; eventstore dead-letters purge forgets it"
    while True:
        parts = await live_checkpoints(store, projection.name)
        check_partitions(projection, parts)
        (found,) = (part for part in parts if part.has(letter.stream_id))
        if letter.position not in [one.position for one in found.letters]:
            raise ProjectionError(f"there is no dead letter at position {letter.position} any more")
        try:
            await apply_events(store, projection, _without(found, {letter.position}), [event])
        except Lost:
            continue
        except Poison as poison:
            return f"{type(poison.__cause__).__name__}: {poison.__cause__}"
        return None


async def purge_letters(store: EventStore, name: str, positions: set[int] | None = None) -> int:
    """Forget dead letters, all if no positions are given. Returns how many. Their events stay in the journal."""
    before: dict[int, int] = {}

    def without(found: Checkpoint) -> Checkpoint:
        before[found.partition] = len(found.letters)
        return _without(found, {letter.position for letter in found.letters} if positions is None else positions)

    after = await change(store, name, without)
    return sum(before.values()) - sum(len(part.letters) for part in after)


def _without(checkpoint: Checkpoint, positions: set[int]) -> Checkpoint:
    return replace(
        checkpoint, letters=tuple(letter for letter in checkpoint.letters if letter.position not in positions)
    )
