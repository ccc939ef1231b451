"""Completeness: whether a projection has been given every event of the journal that it wants, and no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from eventstore.checkpoint import NOTHING, Checkpoint, Mark, Status
from eventstore.errors import ProjectionError
from eventstore.events import RecordedEvent, stream_kind
from eventstore.projections import Projection
from eventstore.store import EventStore


class Place(NamedTuple):
    """An event of the journal, as much as is needed to name it."""

    position: int
    stream_id: str
    version: int
    event_id: int
    tenant: str


class Completeness(NamedTuple):
    """What the comparison gave.

    `applied` events of the projection stand against `expected` of the journal. If they are not the same ones, `first`
    is the first that the projection has not got, where the sums tell that, and in any case it lies behind `after` and
    not behind `through`. `truncated`: events were removed from the journal, so that the two cannot be compared.
    """

    checkpoint: Checkpoint
    applied: int
    expected: int
    is_complete: bool
    truncated: bool = False
    first: Place | None = None
    after: int = 0
    through: int = 0


async def check_completeness(
    store: EventStore, projection: type[Projection], *, on_events: Callable[[int], None] | None = None
) -> Completeness:
    """Read the journal up to where the projection is, and compare: how many events, and the exclusive or of their ids.

    The projection may be running. Raises `ProjectionError` if it has never been run.
    """
    checkpoint = next(
        (
            one
            for one in reversed(await store.checkpoints())
            if one.name == projection.name and one.status is Status.LIVE
        ),
        None,
    )
    if checkpoint is None:
        raise ProjectionError(f"projection {projection.name!r} has never been run on this store")
    marks = [*(mark for mark in checkpoint.marks if mark.position < checkpoint.position)]
    marks.append(Mark(checkpoint.position, checkpoint.events, checkpoint.checksum))
    before, index, expected = Mark(0, 0, NOTHING), 0, 0
    part: list[Place] = []
    found: Completeness | None = None

    def close_parts(position: int | None) -> None:
        """Compare the parts that end before a position, or all."""
        nonlocal before, index, part, found
        while index < len(marks) and (position is None or marks[index].position < position):
            mark = marks[index]
            first = found or _difference(checkpoint, before, mark, part)
            found = first
            before, index, part = mark, index + 1, []

    async for recorded in store.read_all(where=projection.where()):
        if recorded.position > checkpoint.position:
            break
        close_parts(recorded.position)
        part.append(_place(recorded))
        expected += 1
        if on_events is not None:
            on_events(1)
    close_parts(None)
    if found is None:
        return Completeness(checkpoint, checkpoint.events, expected, is_complete=True)
    truncated = await _is_truncated(store, projection)
    return found._replace(applied=checkpoint.events, expected=expected, truncated=truncated)


def _difference(checkpoint: Checkpoint, before: Mark, mark: Mark, part: Sequence[Place]) -> Completeness | None:
    """How a part of the journal differs from what was applied of it. None: it does not."""
    applied = mark.events - before.events
    difference = int.from_bytes(mark.checksum) ^ int.from_bytes(before.checksum)
    for place in part:
        difference ^= place.event_id
    if applied == len(part) and difference == 0:
        return None
    first = first_missing(part, len(part) - applied, difference)
    return Completeness(
        checkpoint, applied, len(part), False, first=first, after=before.position, through=mark.position
    )


def first_missing(part: Sequence[Place], count: int, difference: int) -> Place | None:
    """The first of so many events that are missing in a part, by the exclusive or of their ids. None where that does
    not tell: those that are missing are more than two, and do not follow each other."""
    if count < 1:
        return None
    # Those that follow each other: the usual loss is a page. One alone is such a row too.
    sums = [0]
    for place in part:
        sums.append(sums[-1] ^ place.event_id)
    for start in range(len(part) - count + 1):
        if sums[start] ^ sums[start + count] == difference:
            return part[start]
    if count == 2:
        known = {place.event_id for place in part}
        return next((place for place in part if place.event_id ^ difference in known), None)
    return None


async def _is_truncated(store: EventStore, projection: type[Projection]) -> bool:
    async for tenant in store.tenants():
        if projection.tenants and tenant not in projection.tenants:
            continue
        async for info in store.streams(tenants=(tenant,)):
            if info.truncated and (not projection.kinds or stream_kind(info.stream_id) in projection.kinds):
                return True
    return False


def _place(recorded: RecordedEvent) -> Place:
    return Place(recorded.position, recorded.stream_id, recorded.version, recorded.event_id.int, recorded.tenant)
