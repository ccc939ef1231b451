"""Leaves: what of an event is hashed, and the list of them that is kept with a seal.

A leaf names the event's place in the log and in its stream, and the digest of all else. So the list can tell which
event is missing without holding what it said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from struct import Struct, error
from typing import NamedTuple

from eventstore.events import RecordedEvent
from eventstore.evidence.merkle import leaf_hash

_DIGEST_BYTES = 32
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)

# Another thing, or another form of it, begins otherwise.
_CONTENT = b"eventstore event 1\0"
_NUMBER = Struct(">q")
_SIZE = Struct(">Q")
_NUMBERS = Struct(">qqq")

_MAX_VARINT_BYTES = 10


class Leaf(NamedTuple):
    """One event as it was sealed."""

    position: int
    tenant: str
    stream_id: str
    version: int
    digest: bytes

    @property
    def hash(self) -> bytes:
        """The leaf's hash in the tree. Raises `struct.error` for numbers of more than 64 bits."""
        position, tenant, stream_id, version, digest = self
        return leaf_hash(
            b"".join((_NUMBER.pack(position), _sized(tenant), _sized(stream_id), _NUMBER.pack(version), digest))
        )


def leaf_of(recorded: RecordedEvent) -> Leaf:
    """The leaf of an event as it is stored. Raises `ValueError` for one that holds what no journal has written."""
    return Leaf(recorded.position, recorded.tenant, recorded.stream_id, recorded.version, content_digest(recorded))


def content_digest(recorded: RecordedEvent) -> bytes:
    """SHA-256 over all of an event but its place: it is the same wherever a copy of the event stands.

    Texts and bytes come after their lengths, and what may be absent after a byte that says whether it is, so that no
    two events have one encoding.
    """
    try:
        encoded = b"".join(
            (
                _CONTENT,
                _sized(recorded.type),
                _NUMBER.pack(recorded.schema_version),
                _bytes(recorded.payload),
                _optional(recorded.metadata_bytes),
                recorded.event_id.bytes,
                recorded.batch_id.bytes,
                _NUMBERS.pack(recorded.epoch, _microseconds(recorded.recorded_at), recorded.checksum),
                _optional(None if recorded.origin is None else recorded.origin.encode()),
                _optional(None if recorded.origin_sequence is None else _NUMBER.pack(recorded.origin_sequence)),
                _optional(recorded.clock),
                b"\1" if recorded.concurrent else b"\0",
            )
        )
    except (error, TypeError, AttributeError, UnicodeError) as reason:
        raise ValueError(f"it holds what no journal has written: {reason}") from reason
    return sha256(encoded).digest()


def pack_leaves(leaves: Iterable[Leaf]) -> bytes:
    """The list as it is stored: the streams' ids once each, then for each event the distance to the position before,
    the stream, the version and the digest."""
    places: dict[tuple[str, str], int] = {}
    entries = bytearray()
    position = 0
    for leaf in leaves:
        stream = places.setdefault((leaf.tenant, leaf.stream_id), len(places))
        for number in (leaf.position - position, stream, leaf.version):
            _append_varint(entries, number)
        entries += leaf.digest
        position = leaf.position
    streams = bytearray()
    _append_varint(streams, len(places))
    for names in places:
        for name in names:
            encoded = name.encode()
            _append_varint(streams, len(encoded))
            streams += encoded
    return bytes(streams + entries)


def unpack_leaves(packed: bytes) -> Sequence[Leaf]:
    """The list that `pack_leaves` has made. Raises `ValueError` for anything else."""
    streams: list[tuple[str, str]] = []
    count, at = _varint(packed, 0)
    for _ in range(min(count, len(packed))):
        tenant, at = _text(packed, at)
        stream_id, at = _text(packed, at)
        streams.append((tenant, stream_id))
    leaves: list[Leaf] = []
    position = 0
    while at < len(packed):
        distance, at = _varint(packed, at)
        stream, at = _varint(packed, at)
        version, at = _varint(packed, at)
        digest = packed[at : at + _DIGEST_BYTES]
        at += _DIGEST_BYTES
        if at > len(packed) or stream >= len(streams) or distance < 1:
            raise ValueError("it is not a list of leaves")
        position += distance
        leaves.append(Leaf(position, *streams[stream], version, digest))
    return leaves


def _sized(text: str) -> bytes:
    return _bytes(text.encode())


def _bytes(data: bytes) -> bytes:
    return _SIZE.pack(len(data)) + data


def _optional(data: bytes | None) -> bytes:
    return b"\0" if data is None else b"\1" + _bytes(data)


# Events of one commit, which are read together, have the same.
@lru_cache(maxsize=64)
def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH_START) // timedelta(microseconds=1)


def _append_varint(data: bytearray, number: int) -> None:
    if number < 0:
        raise ValueError(f"a list of leaves holds no number below 0, such as {number}")
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    # Nearly all are below 128.
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    number = 0
    for index, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise ValueError("it is not a list of leaves")


def _text(data: bytes, at: int) -> tuple[str, int]:
    size, at = _varint(data, at)
    if at + size > len(data):
        raise ValueError("it is not a list of leaves")
    return data[at : at + size].decode(), at + size
