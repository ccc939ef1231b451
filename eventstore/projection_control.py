"""What is done to projections from outside: pausing, seeking, waiting for them, and their dead letters."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from eventstore.checkpoint import NOTHING, Checkpoint, DeadLetter, Mark, Status, added
from eventstore.errors import ProjectionBehind, ProjectionError
from eventstore.events import RecordedEvent
from eventstore.projection_runner import Lost, Poison, apply_events
from eventstore.projections import Projection
from eventstore.store import EventStore


async def live_checkpoint(store: EventStore, name: str) -> Checkpoint:
    """The checkpoint of a projection's live version. Raises `ProjectionError` if it has never been run."""
    for checkpoint in reversed(await store.checkpoints()):
        if checkpoint.name == name and checkpoint.status is Status.LIVE:
            return checkpoint
    raise ProjectionError(f"projection {name!r} has never been run on this store")


async def change(store: EventStore, name: str, make: Callable[[Checkpoint], Checkpoint]) -> Checkpoint:
    """Change a projection's live checkpoint, whoever else does so. Who runs it notices at the next batch."""
    while True:
        changed = make(await live_checkpoint(store, name))
        if await store.save_checkpoint(changed):
            return changed.saved()


async def pause(store: EventStore, name: str, reason: str) -> Checkpoint:
    """Let nobody bring the projection forward until it is resumed."""
    return await change(store, name, lambda found: replace(found, pause=reason, runner=""))


async def resume(store: EventStore, name: str) -> Checkpoint:
    """Let it go on. If an event was in its way, that is tried again."""
    return await change(store, name, lambda found: replace(found, pause=None))


async def seek(store: EventStore, projection: type[Projection], position: int) -> Checkpoint:
    """Let the projection go on behind another position. Events behind it come again, those before it are taken as
    applied: what the read model makes of that is up to who calls this."""
    events, checksum = 0, NOTHING
    async for recorded in store.read_all(where=projection.where()):
        if recorded.position > position:
            break
        events, checksum = events + 1, added(checksum, [recorded.event_id])
    marks = (Mark(position, events, checksum),) if events else ()
    return await change(
        store,
        projection.name,
        lambda found: replace(found, position=position, events=events, checksum=checksum, marks=marks, runner=""),
    )


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
            found = await live_checkpoint(store, name)
            if found.position >= wanted:
                return found.position
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


async def replay_letter(store: EventStore, projection: type[Projection], letter: DeadLetter) -> str | None:
    """Apply an event that was put among the dead letters, and take it out. Returns why it cannot be applied, still.

    Raises `ProjectionError` if it is no dead letter any more, or the event was removed from the journal.
    """
    event = await letter_event(store, letter)
    if event is None:
        raise ProjectionError(f"the event at position {letter.position} was removed from the journal")
    while True:
        found = await live_checkpoint(store, projection.name)
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
    before = 0

    def without(found: Checkpoint) -> Checkpoint:
        nonlocal before
        before = len(found.letters)
        return _without(found, {letter.position for letter in found.letters} if positions is None else positions)

    return -len((await change(store, name, without)).letters) + before


def _without(checkpoint: Checkpoint, positions: set[int]) -> Checkpoint:
    return replace(
        checkpoint, letters=tuple(letter for letter in checkpoint.letters if letter.position not in positions)
    )
