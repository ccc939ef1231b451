"""Merging: events of other replicas, put by their actors where they belong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, cast

from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_cell import ReplicatedCell
from actors.replicas.replicated_recovery import stamp_of
from actors.replicas.source import Source
from actors.runtime import Runtime
from eventstore.errors import (
    BackendUnavailable,
    ConcurrencyError,
    DuplicateEventError,
    JournalLost,
    OutcomeUnknown,
    ReplicaRefused,
    ReplicationError,
    SchemaError,
    StoreClosed,
    StoreFenced,
)
from eventstore.events import RecordedEvent, stream_kind
from eventstore.store import EventStore
from eventstore.vector_clock import EMPTY, VectorClock

# So many actors have something merged at the same time.
_ACTORS_AT_ONCE = 32

# So many of a stream's newest events are looked at to find that all of what came is known.
_NEWEST = 20

# So often is something merged again that another process of this replica has overtaken.
_TRIES = 3

# Why nothing can be merged at all, by whichever actor it shows.
_OF_THE_STORE = (
    BackendUnavailable,
    JournalLost,
    OutcomeUnknown,
    ReplicaRefused,
    SchemaError,
    StoreClosed,
    StoreFenced,
)


class Merging:
    """Each actor has its events merged in their order, and many actors at the same time."""

    def __init__(self, runtime: Runtime, store: EventStore) -> None:
        self._runtime = runtime
        self._store = store

    async def merge(
        self, source: Source, actor: type[ReplicatedActor[Any]], events: Sequence[RecordedEvent]
    ) -> Mapping[str, Exception]:
        """Have events merged by their actors. Returns by which they could not be. Raises what is no single actor's."""
        streams: dict[str, list[RecordedEvent]] = {}
        for recorded in events:
            if stream_kind(recorded.stream_id) != actor.kind:
                raise ReplicationError(f"an event of {recorded.stream_id!r} came with those of {actor.kind!r}")
            if recorded.tenant != self._store.tenant:
                # Under the same id it has another actor.
                raise ReplicationError(f"an event of {recorded.stream_id!r} came that is another tenant's")
            streams.setdefault(recorded.stream_id, []).append(recorded)
        at_once = asyncio.Semaphore(_ACTORS_AT_ONCE)

        async def merge_one(stream_id: str, new: Sequence[RecordedEvent]) -> None:
            async with at_once:
                source.merged += await self._merge_stream(source.name, actor, stream_id, new)

        results = await asyncio.gather(
            *(merge_one(stream_id, new) for stream_id, new in streams.items()), return_exceptions=True
        )
        by_stream = dict(zip(streams, results, strict=True))
        failed = {
            stream_id: result
            for stream_id, result in by_stream.items()
            if isinstance(result, Exception) and not isinstance(result, _OF_THE_STORE) and self._runtime.is_open
        }
        rest = [
            result
            for stream_id, result in by_stream.items()
            if isinstance(result, BaseException) and stream_id not in failed
        ]
        for failure in sorted(rest, key=lambda each: not isinstance(each, ReplicaRefused)):
            raise failure
        return failed

    async def _merge_stream(
        self, source: str, actor: type[ReplicatedActor[Any]], stream_id: str, events: Sequence[RecordedEvent]
    ) -> int:
        stamps = [stamp_of(recorded) for recorded in events]
        clock = EMPTY
        for stamp in stamps:
            clock = clock.merge(stamp.clock)
        cell = self._runtime.live_cell(stream_id)
        if cell is None and (await self._newest(stream_id)).covers(clock):
            return 0  # All of it is known, and nobody in memory wants to know that they know.
        live = cast("ReplicatedCell", cell or self._runtime.cell_of(actor, stream_id))
        known = live.certain_clock
        merged = 0
        if known is None or not known.covers(clock) or live.differs(events, stamps):
            merged = await self._merge_into(live, events)
        live.hear(source, clock)
        for stamp in stamps:
            live.hear(stamp.origin, stamp.clock)
        live.heard_more()
        return merged

    async def _merge_into(self, cell: ReplicatedCell, events: Sequence[RecordedEvent]) -> int:
        for tries_left in reversed(range(_TRIES)):
            try:
                return await cell.merge(self._store, events, self._runtime.next_age())
            except (ConcurrencyError, DuplicateEventError):
                # Another process of this replica has stored something in between, or a part of this.
                if not tries_left:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def _newest(self, stream_id: str) -> VectorClock:
        """What the newest events of a stream know. It may know more, if one replica has not written for long."""
        clock = EMPTY
        async for recorded in self._store.read(stream_id, backwards=True, limit=_NEWEST):
            clock = clock.merge(stamp_of(recorded).clock)
        return clock
