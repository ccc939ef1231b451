"""Recovery of replicated actors: a stable state out of a snapshot, and all events behind it, put in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from actors.actor import Stage
from actors.replaying.replay import late_page
from actors.replaying.unfoldable import UNFOLDABLE, unfoldable
from actors.replicas.convergence import Base, Entry, History
from actors.replicas.replicated_actor import ReplicatedActor
from eventstore.errors import JournalCorrupt, RecoveryError, ReplicationChanged, SnapshotUnusable
from eventstore.events import RecordedEvent, Snapshot
from eventstore.snapshots import new_snapshot
from eventstore.stamp import Stamp, parse_stamp
from eventstore.store import EventStore
from eventstore.vector_clock import VectorClock

logger = logging.getLogger(__name__)

_PAGE = 500
_SNAPSHOTS = 10

# So many events are applied without giving the event loop a turn.
_EVENTS_AT_ONCE = 125

Heard = Mapping[str, VectorClock]
"""What each other replica knows of a stream, as far as it was heard of."""


class Found(NamedTuple):
    """A history out of the journal, up to a version. `snapshot_version` is 0 where none was used."""

    history: History
    version: int
    heard: Heard
    snapshot_version: int


async def read_history(
    store: EventStore,
    actor: ReplicatedActor[Any],
    stage: Stage,
    *,
    through: int | None = None,
    use_snapshots: bool = True,
    reaching: Sequence[Stamp] = (),
    page_timeout: float,
) -> Found:
    """Bring an actor in its initial state to what the journal says.

    The newest snapshot is used that no event behind it, and none that is `reaching`, belongs before. `page_timeout`
    bounds the wait for each page of events. Raises `RecoveryError`, and `BackendUnavailable` if one is late.
    """
    stream_id = stage.stream_id
    try:
        snapshots = await store.snapshots(stream_id, through=through, limit=_SNAPSHOTS) if use_snapshots else ()
        for snapshot in snapshots:
            try:
                found = await _from(store, actor, stage, snapshot, through, reaching, page_timeout)
            except SnapshotUnusable as error:
                logger.warning("%s: going to an older snapshot or to the first event: %s", stream_id, error)
                continue
            if found is not None:
                return found
        found = await _from(store, actor, stage, None, through, reaching, page_timeout)
    except UNFOLDABLE as error:
        raise unfoldable(stream_id, error) from error
    if found is None:
        raise RecoveryError(stream_id, "the first event is not the first")
    return found


async def _from(
    store: EventStore,
    actor: ReplicatedActor[Any],
    stage: Stage,
    snapshot: Snapshot | SnapshotUnusable | None,
    through: int | None,
    reaching: Sequence[Stamp],
    page_timeout: float,
) -> Found | None:
    """Build on a snapshot. None: it cannot be, because something belongs before it. Raises `SnapshotUnusable`."""
    history, heard = _begun(actor, snapshot)
    base = history.base
    # From the snapshot's own event on: where that is missing, so is more.
    version = max(base.version - 1, 0)
    entries: list[Entry] = []
    clock = base.clock
    async for recorded in _within_time(store, stage.stream_id, version, through, page_timeout):
        if recorded.version != version + 1:
            raise JournalCorrupt(
                f"the versions have a hole or a repeat: {recorded.version} follows {version}",
                stream_id=stage.stream_id,
                version=recorded.version,
            )
        version += 1
        entry = entry_of(recorded)
        clock = checked_next(clock, base.clock, entry, stage.stream_id)
        if base.clock[entry.stamp.origin] < entry.stamp.sequence:
            entries.append(entry)
    if version < base.version:
        raise RecoveryError(
            stage.stream_id,
            f"its snapshot is of version {base.version}, and the journal does not have that event: events are "
            "missing; restore the journal, or delete that snapshot if the journal is right",
        )
    if not history.reaches([*(entry.stamp for entry in entries), *reaching]):
        return None
    await extend(history, entries)
    stage.version = version
    return Found(history, version, heard, base.version)


def _begun(actor: ReplicatedActor[Any], snapshot: Snapshot | SnapshotUnusable | None) -> tuple[History, Heard]:
    """A history that holds what is in a snapshot, or nothing, and what others know. Raises `SnapshotUnusable`."""
    actor.state = actor.initial_state()
    if snapshot is None:
        return History(actor), {}
    if isinstance(snapshot, SnapshotUnusable):
        raise snapshot
    try:
        if snapshot.fingerprint != fingerprint_of(actor):
            raise SnapshotUnusable("it is of another schema of the state")
        base, heard = unpack_base(snapshot)
        return History(actor, base), heard
    except (SnapshotUnusable, ValueError, LookupError, TypeError, AttributeError) as error:
        raise SnapshotUnusable(str(error), stream_id=snapshot.stream_id, version=snapshot.version) from error


async def extend(history: History, entries: Sequence[Entry]) -> None:
    """Put events in their places part by part; in between the event loop serves others. Raises as `History.extend`."""
    in_order = sorted(entries)
    for start in range(0, len(in_order), _EVENTS_AT_ONCE):
        if start:
            await asyncio.sleep(0)
        history.extend(in_order[start : start + _EVENTS_AT_ONCE])


async def newer_entries(
    store: EventStore, history: History, stage: Stage, *, through: int | None = None, page_timeout: float
) -> Sequence[Entry]:
    """What the journal has behind the stage's version, up to version `through` if that is given."""
    entries: list[Entry] = []
    version, clock = stage.version, history.clock
    async for recorded in _within_time(store, stage.stream_id, version, through, page_timeout):
        version += 1
        if recorded.version != version:
            raise RecoveryError(stage.stream_id, f"the event at version {version} is missing")
        entry = entry_of(recorded)
        clock = checked_next(clock, history.clock, entry, stage.stream_id)
        entries.append(entry)
    return entries


def checked_next(clock: VectorClock, base: VectorClock, entry: Entry, stream_id: str) -> VectorClock:
    """The clock with one more event. Raises `JournalCorrupt` unless it is the next of its replica, or in the base."""
    origin, sequence, _, _ = entry.stamp
    if sequence <= base[origin]:
        return clock
    if sequence != clock[origin] + 1:
        raise JournalCorrupt(
            f"event {sequence} of replica {origin!r} follows its event {clock[origin]}",
            stream_id=stream_id,
            version=entry.version,
        )
    return clock.incremented(origin)


def entry_of(recorded: RecordedEvent) -> Entry:
    """A stored event as a history holds it. Raises as `stamp_of` does."""
    stamp = stamp_of(recorded)
    return Entry(
        stamp.key,
        stamp,
        recorded.event_id.bytes,
        recorded.version,
        recorded.type,
        recorded.schema_version,
        recorded.payload,
        recorded.checksum,
    )


def stamp_of(recorded: RecordedEvent) -> Stamp:
    """Where and after what a stored event was written. Raises `ReplicationChanged` for one without a stamp, and
    `JournalCorrupt` for a stamp that is damaged."""
    origin, sequence, clock = recorded.origin, recorded.origin_sequence, recorded.clock
    if origin is None and sequence is None and clock is None:
        raise ReplicationChanged(recorded.stream_id, recorded.version, is_replicated=True)
    try:
        if origin is None or sequence is None or clock is None:
            raise ValueError("there is but a part of it")
        return parse_stamp(origin, sequence, clock)
    except ValueError as error:
        raise JournalCorrupt(
            f"the event at version {recorded.version} has a damaged stamp: {error}",
            stream_id=recorded.stream_id,
            version=recorded.version,
            position=recorded.position,
        ) from error


# Snapshots


def fingerprint_of(actor: ReplicatedActor[Any]) -> str:
    """Names the schema of the state. A snapshot of a replicated actor holds more than the state."""
    return f"replicated:{actor.state_type.fingerprint}"


def pack_base(actor: ReplicatedActor[Any], stream_id: str, base: Base, heard: Heard) -> Snapshot:
    """A base that has a state as a snapshot: with its clock, its last event's place, and what others know."""
    header = {
        "clock": dict(base.clock.items()),
        "key": base.key,
        "heard": {replica: dict(clock.items()) for replica, clock in heard.items()},
    }
    data = b'{"replica":%b,"state":%b}' % (orjson.dumps(header), base.state or b"null")
    return new_snapshot(stream_id, base.version, fingerprint_of(actor), data)


def unpack_base(snapshot: Snapshot) -> tuple[Base, dict[str, VectorClock]]:
    """What `pack_base` packed. Raises `ValueError` and others for something else."""
    # The state's own JSON, byte for byte: numbers of more than 64 bits would not survive being read here.
    header, separator, state = snapshot.data.partition(b',"state":')
    if not separator:
        raise ValueError("it is no snapshot of a replicated actor")
    replica = orjson.loads(header + b"}")["replica"]
    time, origin, sequence = replica["key"]
    base = Base(state[:-1], VectorClock(replica["clock"]), (time, tuple(origin), sequence), snapshot.version)
    return base, {name: VectorClock(clock) for name, clock in replica["heard"].items()}


async def _within_time(
    store: EventStore, stream_id: str, after: int, through: int | None, page_timeout: float
) -> AsyncIterator[RecordedEvent]:
    while True:
        try:
            async with asyncio.timeout(page_timeout):
                page = [each async for each in store.read(stream_id, after=after, through=through, limit=_PAGE)]
        except TimeoutError as error:
            raise late_page(stream_id, page_timeout) from error
        for recorded in page:
            yield recorded
        if len(page) < _PAGE:
            return
        after = page[-1].version
