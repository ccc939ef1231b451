"""The progress of a projection, on a bar."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from eventstore.cli.progress import Progress, Silent, bar, is_shown
from eventstore.projections import Projection
from eventstore.store import EventStore


def shown_on(progress: Progress) -> Callable[[int, int, int], None]:
    """What a runner tells, on a bar."""

    def shown(position: int, count: int, end: int) -> None:
        progress.advance(count, lag=end - position)

    return shown


async def projection_progress(
    store: EventStore, projection: type[Projection] | None, stack: ExitStack, *, follow: bool = False
) -> Progress:
    """A bar over the events that a projection has not had; None: one that has had none. One that follows has no end."""
    if not is_shown():
        return Silent()
    if follow:
        return stack.enter_context(bar("events", None))
    done = 0
    if projection is not None:
        done = sum(one.events for one in await store.checkpoints() if one.name == projection.name)
    return stack.enter_context(bar("events", max(0, (await store.statistics()).events - done)))
