"""Records: events and snapshots as the bytes that Redis holds, and a group of batches as one script takes it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

from backends.records import time_of, uuid_of
from backends.redis_commands import packed_command
from backends.redis_connection import Argument
from backends.redis_tenant import RedisTenant
from backends.times import microseconds, nearest_time
from eventstore.backend import (
    Appended,
    AppendOutcome,
    Batch,
    EncodedEvent,
    EventPage,
    ReplicaFields,
    StoredSnapshot,
    StreamWrite,
    refusal,
)
from eventstore.codec import damaged, decode_metadata, verify_checksum
from eventstore.contract.archive import ArchivedEvent
from eventstore.contract.record_page import ID_BYTES
from eventstore.errors import (
    CommandForgotten,
    DuplicateCommand,
    DuplicateEventError,
    JournalCorrupt,
    PayloadTooLarge,
    StoreFenced,
)
from eventstore.events import RecordedEvent

MAX_VERSION = 2**53 - 1
"""Redis's Lua has no larger whole numbers."""

MAX_GROUP_BYTES = 256 * 1024 * 1024
"""Redis closes a connection that sends it much more at once."""

# What the script puts in front, position and time; then event id, epoch, checksum, schema version, bytes of the type
# (the highest bit set: a batch id follows the header; the next one set: then what a replica says of it), bytes of the
# metadata plus one (0: there is none).
_HEADER = struct.Struct(">QQ16sQQIHI")
_PLACE = struct.Struct(">QQ")
_GIVEN = struct.Struct(">16sQQIHI")
_REPLAYED = struct.Struct(">IHI")
_SIZES = slice(_HEADER.size - _REPLAYED.size, _HEADER.size)
_CHECKSUM_OF = itemgetter(slice(_SIZES.start - 8, _SIZES.start))
_WRITE = struct.Struct(">IqqII?")
_HAS_BATCH = 0x8000
_HAS_REPLICA = 0x4000
_MAX_TYPE_BYTES = _HAS_REPLICA - 1
# Bytes of the origin's name and of the clock, which follow; the origin's sequence, and whether it was concurrent.
_REPLICA = struct.Struct(">HIQ?")

_SNAPSHOT = struct.Struct(">QqQHHH")


class Group(NamedTuple):
    """A group of batches on its way to the script. `last_ids` has the id of each batch's last event, if any."""

    arguments: list[Argument]
    last_ids: list[bytes | None]


def packed_group(tenant: RedisTenant, batches: Sequence[Batch]) -> Group:
    """Raises `PayloadTooLarge`, before anything is sent, for more than one command can carry."""
    streams: dict[str, int] = {}
    plan: list[bytes] = []
    commands: list[Argument] = []
    records: list[Argument] = []
    event_ids: list[bytes] = []
    last_ids: list[bytes | None] = []
    size = 0
    for batch in batches:
        count = len(event_ids)
        remaining = len(batch)
        for stream_id, expected, events, epoch, outcomes in batch:
            remaining -= 1
            stream = streams.get(stream_id)
            if stream is None:
                stream = streams[stream_id] = len(streams) + 1
            expected = min(expected, MAX_VERSION)
            owner = -1 if epoch is None else epoch
            plan.append(_WRITE.pack(stream, expected, owner, len(events), len(outcomes), not remaining))
            for event in events:
                record = _packed(event, epoch or 0)
                size += len(record)
                records.append(record)
                event_ids.append(event[0])
            for outcome in outcomes:
                packed = packed_command(outcome)
                size += len(packed)
                commands += (stream, outcome.command_id.encode(), packed)
        last_ids.append(event_ids[-1] if len(event_ids) > count else None)
    if size > MAX_GROUP_BYTES:
        raise PayloadTooLarge("the batch", size, MAX_GROUP_BYTES)
    has_distinct_ids = len(set(event_ids)) == len(event_ids)
    ids = [tenant.name(stream_id) for stream_id in streams]
    sizes = (len(ids), len(commands) // 3)
    return Group([int(has_distinct_ids), b"".join(plan), *sizes, *ids, *commands, *records], last_ids)


def outcomes_of(batches: Sequence[Batch], reply: Sequence[Any]) -> list[AppendOutcome]:
    """The script's reply as outcomes, one for each batch."""
    outcomes: list[AppendOutcome] = []
    at = 0
    for batch in batches:
        if not batch:
            # The script does not get to see it.
            outcomes.append(Appended(0, ()))
            continue
        kind: int = reply[at]
        first: int = reply[at + 1]
        if kind < 2:
            end = at + 2 + len(batch)
            outcomes.append(Appended(first, tuple(reply[at + 2 : end]), kind == 1))
            at = end
        else:
            outcomes.append(_refused(batch[first], kind, reply[at + 2], batch, reply[-1]))
            at += 3
    return outcomes


def recorded(tenant: str, stream_id: str, version: int, record: bytes) -> RecordedEvent:
    """A stored record as it is read. Raises `JournalCorrupt`."""
    position = None
    try:
        position, time, event_id, epoch, checksum, schema_version, type_bytes, metadata_bytes = _HEADER.unpack_from(
            record
        )
        at = _HEADER.size
        identity = batch = uuid_of(event_id)
        if type_bytes & _HAS_BATCH:
            batch = uuid_of(record[at : at + ID_BYTES])
            at += ID_BYTES
        origin, sequence, clock, concurrent = None, None, None, False
        if type_bytes & _HAS_REPLICA:
            (origin, sequence, clock, concurrent), at = _replica(record, at)
        start = at + (type_bytes & _MAX_TYPE_BYTES)
        metadata = None
        payload = start
        if metadata_bytes:
            payload = start + metadata_bytes - 1
            metadata = record[start:payload]
        if payload > len(record):
            raise ValueError("it is cut off")
        name, data = record[at:start].decode(), record[payload:]
        verify_checksum(checksum, name, schema_version, data, metadata)
        return RecordedEvent(
            position,
            stream_id,
            version,
            name,
            schema_version,
            data,
            decode_metadata(metadata),
            identity,
            batch,
            epoch,
            time_of(time),
            checksum,
            tenant,
            origin,
            sequence,
            clock,
            concurrent,
            metadata,
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise damaged(error, stream_id=stream_id, version=version, position=position, tenant=tenant) from error


def archived(tenant: str, stream_id: str, version: int, record: bytes) -> ArchivedEvent:
    """A stored record as it is. Raises `JournalCorrupt` where its parts cannot be told from each other."""
    try:
        position, time, event_id, epoch, checksum, schema_version, type_bytes, metadata_bytes = _HEADER.unpack_from(
            record
        )
        at = _HEADER.size
        batch_id = event_id
        if type_bytes & _HAS_BATCH:
            batch_id = record[at : at + ID_BYTES]
            at += ID_BYTES
        replica = None
        if type_bytes & _HAS_REPLICA:
            fields, at = _replica(record, at)
            replica = ReplicaFields(*fields)
        start = at + (type_bytes & _MAX_TYPE_BYTES)
        payload = start + metadata_bytes - 1 if metadata_bytes else start
        metadata = record[start:payload] if metadata_bytes else None
        event = EncodedEvent(
            event_id, record[at:start].decode(), schema_version, record[payload:], metadata, batch_id, checksum, replica
        )
    except (struct.error, ValueError) as error:
        raise damaged(error, stream_id=stream_id, version=version, tenant=tenant) from error
    return ArchivedEvent(position, tenant, stream_id, version, event, epoch, time)


def restored(event: ArchivedEvent) -> bytes:
    """The record of an event that has its place already."""
    return _PLACE.pack(event.position, event.recorded_at) + _packed(event.event, event.epoch)


def replayed(stream_id: str, version: int, records: Sequence[bytes]) -> EventPage:
    """Stored records, of which the first has a version, as replay needs them. Raises `JournalCorrupt`."""
    types: list[str] = []
    schema_versions: list[int] = []
    payloads: list[bytes] = []
    layouts: dict[bytes, _Layout] = {}
    names: dict[bytes, str] = {}
    first = _SIZES.start
    head = b""
    end = payload = schema_version = 0
    type_ = ""
    try:
        for record in records:
            # Most are like the one before: alone in a batch as that was, or of the same batch.
            if record[first:end] != head or not head:
                sizes = record[_SIZES]
                layout = layouts.get(sizes)
                if layout is None:
                    layout = _layout(record, *_REPLAYED.unpack(sizes))
                    if layout.is_of_all:
                        layouts[sizes] = layout
                start, end, payload, schema_version, is_of_all = layout
                head = record[first:end] if is_of_all else b""
                name = record[start:end]
                type_ = names.get(name) or names.setdefault(name, name.decode())
            if payload > len(record):
                raise ValueError("it is cut off")
            types.append(type_)
            schema_versions.append(schema_version)
            payloads.append(record[payload:])
    except (struct.error, ValueError) as error:
        raise damaged(error, stream_id=stream_id, version=version + len(payloads)) from error
    count = len(records)
    checksums = struct.unpack(f">{count}Q", b"".join(map(_CHECKSUM_OF, records)))
    return EventPage(range(version, version + count), types, schema_versions, payloads, list(checksums))


def is_of_replica(record: bytes) -> bool:
    """Whether a stored record, which is whole, has what a replica says of it."""
    _, type_bytes, _ = _REPLAYED.unpack(record[_SIZES])
    return bool(type_bytes & _HAS_REPLICA)


class _Layout(NamedTuple):
    """Where a record has its name and its payload. With a replica's part in it, that says nothing of others."""

    start: int
    end: int
    payload: int
    schema_version: int
    is_of_all: bool


def _layout(record: bytes, schema_version: int, type_bytes: int, metadata_bytes: int) -> _Layout:
    start = _HEADER.size + (ID_BYTES if type_bytes & _HAS_BATCH else 0)
    if type_bytes & _HAS_REPLICA:
        _, start = _replica(record, start)
    end = start + (type_bytes & _MAX_TYPE_BYTES)
    payload = end + metadata_bytes - 1 if metadata_bytes else end
    return _Layout(start, end, payload, schema_version, not type_bytes & _HAS_REPLICA)


def packed_snapshot(snapshot: StoredSnapshot) -> bytes:
    texts = (snapshot.fingerprint.encode(), snapshot.encoding.encode(), snapshot.checksum)
    time = microseconds(snapshot.recorded_at)
    header = _SNAPSHOT.pack(snapshot.version, time, snapshot.epoch, *map(len, texts))
    return b"".join((header, *texts, snapshot.payload))


def unpacked_snapshot(stream_id: str, packed: bytes) -> StoredSnapshot:
    """A damaged text comes out damaged: then the checksum does not match, and whoever reads it has older ones.

    Raises `JournalCorrupt` for one that is cut off.
    """
    try:
        version, time, epoch, *sizes = _SNAPSHOT.unpack_from(packed)
        parts: list[bytes] = []
        at = _SNAPSHOT.size
        for size in sizes:
            parts.append(packed[at : at + size])
            at += size
        fingerprint, encoding, checksum = parts
        return StoredSnapshot(
            stream_id,
            version,
            fingerprint.decode(errors="replace"),
            encoding.decode(errors="replace"),
            packed[at:],
            checksum,
            nearest_time(time),
            epoch,
        )
    except struct.error as error:
        raise JournalCorrupt(f"a stored snapshot is damaged: {error}", stream_id=stream_id) from error


def _packed(event: EncodedEvent, epoch: int) -> bytes:
    event_id, type_, schema_version, payload, metadata, batch_id, checksum, replica = event
    name = type_.encode()
    size = len(name)
    if size > _MAX_TYPE_BYTES:
        raise PayloadTooLarge("an event's stored name", size, _MAX_TYPE_BYTES)
    if replica is not None:
        # Few events have it: all of what comes before the name goes in its place.
        size |= _HAS_REPLICA
        origin, sequence, clock, concurrent = replica
        encoded = origin.encode()
        name = b"".join((_REPLICA.pack(len(encoded), len(clock), sequence, concurrent), encoded, clock, name))
    # Most events are the first of their batch.
    if batch_id == event_id:
        if metadata is None:
            return _GIVEN.pack(event_id, epoch, checksum, schema_version, size, 0) + name + payload
        return b"".join(
            (_GIVEN.pack(event_id, epoch, checksum, schema_version, size, len(metadata) + 1), name, metadata, payload)
        )
    given = _GIVEN.pack(
        event_id, epoch, checksum, schema_version, size | _HAS_BATCH, 0 if metadata is None else len(metadata) + 1
    )
    return b"".join((given, batch_id, name, metadata or b"", payload))


def _replica(record: bytes, at: int) -> tuple[tuple[str, int, bytes, bool], int]:
    """What a replica says of an event, and where that ends in the record."""
    origin_bytes, clock_bytes, sequence, concurrent = _REPLICA.unpack_from(record, at)
    origin = at + _REPLICA.size
    clock = origin + origin_bytes
    end = clock + clock_bytes
    return (record[origin:clock].decode(), sequence, record[clock:end], concurrent), end


def _refused(write: StreamWrite, kind: int, detail: int, batch: Batch, last: Any) -> AppendOutcome:
    refused: AppendOutcome | None
    match kind:
        case 7:
            refused = StoreFenced(write.stream_id, last.decode())
        case 2:
            refused = refusal(write._replace(epoch=None), detail, 0)
        case 3:
            refused = refusal(write, 0, detail)
        case 5:
            refused = DuplicateCommand(write.stream_id, write.commands[detail].command_id)
        case 6:
            refused = CommandForgotten(write.stream_id, write.commands[detail].command_id)
        case _:
            events = [event for each in batch for event in each.events]
            refused = DuplicateEventError(write.stream_id, str(UUID(bytes=events[detail].event_id)))
    if refused is None:
        raise JournalCorrupt("the server refused a write that its own reply allows", stream_id=write.stream_id)
    return refused
