"""Forking: the beginning of a stream, as a stream of another store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eventstore.backend import EncodedEvent, ReplicaFields, StreamWrite
from eventstore.codec import encode_metadata, encoded_event
from eventstore.errors import EventStoreError, JournalCorrupt
from eventstore.events import RecordedEvent
from eventstore.store import EventStore

_PAGE = 500


class ForkRefused(EventStoreError):
    """The beginning of the stream cannot be had, or there is something else in its place already."""


class Forked(NamedTuple):
    """The version up to which the other store has the stream now, and how many events were stored for that."""

    version: int
    events: int


async def fork(source: EventStore, target: EventStore, stream_id: str, *, through: int) -> Forked:
    """Store the events of a stream, up to a version, in another store.

    Payloads, metadata, the ids of events and batches, and what replicas have noted are as in the source, byte for byte.
    Positions, and the times at which the events were recorded, are the target's own: an append has no others. Where
    the target has a beginning of the stream already it goes on from there, so one that was interrupted is taken up
    again. Snapshots and the outcomes of commands stay behind.

    Raises `ForkRefused` if events were removed that the target has not got, its stream is another one, or it is the
    journal that it comes from.
    """
    if await _is_one_journal(source, target):
        raise ForkRefused(
            f"{target.url} is the journal that {stream_id!r} comes from, whatever their URLs: name another file"
        )
    done = await _version_in_common(source, target, stream_id, through)
    stored = 0
    while done < through:
        page = [recorded async for recorded in source.read(stream_id, after=done, through=through, limit=_PAGE)]
        if not page or page[0].version != done + 1:
            removed = (await source.head(stream_id)).truncated
            if removed > done:
                raise ForkRefused(
                    f"the events of {stream_id!r} up to version {removed} were removed: what they led to cannot be "
                    "forked"
                )
            raise JournalCorrupt(f"the event at version {done + 1} is missing", stream_id=stream_id, version=done + 1)
        await target.append_writes([StreamWrite(stream_id, done, _as_stored(page))])
        done, stored = page[-1].version, stored + len(page)
    return Forked(done, stored)


async def _is_one_journal(source: EventStore, target: EventStore) -> bool:
    # One that cannot tell is of a backend that the other is not of, or nothing can be told of either.
    if not (source.capabilities.archive and target.capabilities.archive):
        return source.url == target.url
    return await source.identity() == await target.identity()


async def _version_in_common(source: EventStore, target: EventStore, stream_id: str, through: int) -> int:
    version = await target.version(stream_id)
    if version == 0:
        return 0
    ends = [
        [one.event_id async for one in store.read(stream_id, after=version - 1, through=version)]
        for store in (source, target)
    ]
    if version > through or not ends[0] or ends[0] != ends[1]:
        raise ForkRefused(
            f"{target.url} has a stream {stream_id!r} already, at version {version}, which is no beginning of what is "
            "to be forked: choose another store"
        )
    return version


def _as_stored(page: Sequence[RecordedEvent]) -> list[EncodedEvent]:
    return [
        encoded_event(
            recorded.event_id.bytes,
            recorded.type,
            recorded.schema_version,
            recorded.payload,
            encode_metadata(recorded.metadata),
            recorded.batch_id.bytes,
        )._replace(replica=_replica_of(recorded))
        for recorded in page
    ]


def _replica_of(recorded: RecordedEvent) -> ReplicaFields | None:
    origin, sequence, clock = recorded.origin, recorded.origin_sequence, recorded.clock
    if origin is None or sequence is None or clock is None:
        return None
    return ReplicaFields(origin, sequence, clock, recorded.concurrent)
