"""Completeness: whether a projection has been given every event of the journal that it wants, and no other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import NamedTuple

from eventstore.backend import EventFilter, StreamInfo
from eventstore.contract.checkpoint import NOTHING, Checkpoint, Mark, Status, partition_of, version_of
from eventstore.errors import ProjectionError
from eventstore.events import RecordedEvent, stream_kind
from eventstore.projections import Projection
from eventstore.read_models.beginning import check_partitions
from eventstore.store import EventStore


class Place(NamedTuple):
    """An event of the journal, as much as is needed to name it."""

    position: int
    stream_id: str
    version: int
    event_id: int
    tenant: str


class Gone(NamedTuple):
    """An event that stood in the journal once: the stream's versions have a hole there, and nobody truncated it."""

    stream_id: str
    version: int
    tenant: str


class Completeness(NamedTuple):
    """What the comparison gave.

    `applied` events of the projection, in all its partitions, stand against `expected` of the journal. If they are not
    the same ones, `first` is the first that the projection has not got, where the sums tell that, and in any case it
    lies behind `after` and not behind `through`. `truncated`: events were removed from the journal, so that the two
    cannot be compared. `gone` is the first event that the journal itself has lost, if more were applied than it has.
    """

    checkpoint: Checkpoint
    applied: int
    expected: int
    is_complete: bool
    truncated: bool = False
    first: Place | None = None
    after: int = 0
    through: int = 0
    gone: Gone | None = None


async def check_completeness(
    store: EventStore, projection: type[Projection], *, on_events: Callable[[int], None] | None = None
) -> Completeness:
    """Read the journal up to where the projection is, and compare: how many events, and the exclusive or of their ids.

    The projection may be running. Raises `ProjectionError` if it has never been run, `PartitionsChanged`.
    """
    parts = version_of(await store.checkpoints(), projection.name, Status.LIVE)
    if not parts:
        raise ProjectionError(f"projection {projection.name!r} has never been run on this store")
    check_partitions(projection, parts)
    comparisons = [_Comparison(part) for part in parts]
    last = max(part.position for part in parts)
    async for recorded in store.read_all(where=projection.where()):
        if recorded.position > last:
            break
        number = partition_of(recorded.stream_id, len(comparisons))
        if comparisons[number].take(recorded) and on_events is not None:
            on_events(1)
    found = [difference for comparison in comparisons if (difference := comparison.end()) is not None]
    applied, expected = sum(part.events for part in parts), sum(comparison.expected for comparison in comparisons)
    if not found:
        return Completeness(parts[0], applied, expected, is_complete=True)
    # The first that is missing of all partitions, where one of them can name it.
    first = min(found, key=lambda one: (one.first is None, one.first.position if one.first else one.through))
    truncated = await _is_truncated(store, projection)
    gone = await _first_gone(store, projection) if applied > expected else None
    return first._replace(applied=applied, expected=expected, truncated=truncated, gone=gone)


class _Comparison:
    """The events of one checkpoint, which come in order, part by part against its marks."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.expected = 0
        self._checkpoint = checkpoint
        self._marks = [mark for mark in checkpoint.marks if mark.position < checkpoint.position]
        self._marks.append(Mark(checkpoint.position, checkpoint.events, checkpoint.checksum))
        self._before = Mark(0, 0, NOTHING)
        self._next = 0
        self._part: list[Place] = []
        self._found: Completeness | None = None

    def take(self, recorded: RecordedEvent) -> bool:
        """Compare the parts that end before an event, and count it. False for one that it has not come to."""
        if recorded.position > self._checkpoint.position:
            return False
        self._close(recorded.position)
        self._part.append(_place(recorded))
        self.expected += 1
        return True

    def end(self) -> Completeness | None:
        """Compare the rest. Returns the first difference, if there is one."""
        self._close(None)
        return self._found

    def _close(self, position: int | None) -> None:
        while self._next < len(self._marks) and (position is None or self._marks[self._next].position < position):
            mark = self._marks[self._next]
            self._found = self._found or _difference(self._checkpoint, self._before, mark, self._part)
            self._before, self._next, self._part = mark, self._next + 1, []


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
    async for info in _streams(store, projection):
        if info.truncated:
            return True
    return False


async def _first_gone(store: EventStore, projection: type[Projection]) -> Gone | None:
    """The first hole in the versions of the projection's streams: one in the order of the log, or else one at the end
    of a stream. Reads their events once more, of whatever type: versions tell nothing where some are left out."""
    ends: dict[tuple[str, str], int] = {}
    heads: dict[tuple[str, str], int] = {}
    async for info in _streams(store, projection):
        stream = (info.tenant, info.stream_id)
        ends[stream], heads[stream] = info.version, info.truncated
    # Each with the version that the hole ends at.
    holes: list[tuple[Gone, int]] = []
    async for recorded in store.read_all(where=EventFilter(kinds=projection.kinds, tenants=projection.tenants)):
        stream = (recorded.tenant, recorded.stream_id)
        version = heads.get(stream, 0) + 1
        if recorded.version > version:
            holes.append((Gone(recorded.stream_id, version, recorded.tenant), recorded.version - 1))
        heads[stream] = recorded.version
    for (tenant, stream_id), end in ends.items():
        if (head := heads[tenant, stream_id]) < end:
            holes.append((Gone(stream_id, head + 1, tenant), end))
    if not holes:
        return None
    # Retention may have removed them meanwhile.
    removed = {(info.tenant, info.stream_id): info.truncated async for info in _streams(store, projection)}
    for gone, through in holes:
        truncated = removed.get((gone.tenant, gone.stream_id), 0)
        if truncated < through:
            return gone._replace(version=max(gone.version, truncated + 1))
    return None


async def _streams(store: EventStore, projection: type[Projection]) -> AsyncGenerator[StreamInfo, None]:
    """The streams whose events may be the projection's."""
    async for tenant in store.tenants():
        if projection.tenants and tenant not in projection.tenants:
            continue
        async for info in store.streams(tenants=(tenant,)):
            if not projection.kinds or stream_kind(info.stream_id) in projection.kinds:
                yield info


def _place(recorded: RecordedEvent) -> Place:
    return Place(recorded.position, recorded.stream_id, recorded.version, recorded.event_id.int, recorded.tenant)
