"""Packing snapshots: compressed when large, with a checksum over everything that names them."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from hashlib import blake2b

import zstandard

from eventstore.backend import StoredSnapshot
from eventstore.errors import PayloadTooLarge, SnapshotUnusable
from eventstore.events import Snapshot

JSON = "json"
JSON_ZSTD = "json+zstd"

COMPRESS_FROM_BYTES = 4096
_ZSTD_LEVEL = 3


def pack(snapshot: Snapshot, *, limit: int, epoch: int = 0) -> StoredSnapshot:
    """Make a snapshot storable. Raises `PayloadTooLarge` if its JSON is over the limit."""
    if len(snapshot.data) > limit:
        raise PayloadTooLarge(f"the snapshot of {snapshot.stream_id!r}", len(snapshot.data), limit)
    encoding, payload = JSON, snapshot.data
    if len(payload) >= COMPRESS_FROM_BYTES:
        encoding, payload = JSON_ZSTD, zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(payload)
    stream_id, version, fingerprint, _, recorded_at = snapshot
    checksum = _checksum(stream_id, version, fingerprint, encoding, payload)
    return StoredSnapshot(stream_id, version, fingerprint, encoding, payload, checksum, recorded_at, epoch)


def unpack(stored: StoredSnapshot, *, limit: int) -> Snapshot:
    """The snapshot as it was packed. Raises `SnapshotUnusable` when it is damaged or in an encoding of newer code."""
    stream_id, version, fingerprint, encoding, payload, checksum, recorded_at, _ = stored
    try:
        if checksum != _checksum(stream_id, version, fingerprint, encoding, payload):
            raise SnapshotUnusable("it does not match its checksum", stream_id=stream_id, version=version)
        match encoding:
            case "json":
                data = payload
            case "json+zstd":
                # The library takes the size that the frame's header claims, whatever the limit says.
                if zstandard.frame_content_size(payload) > limit:
                    raise SnapshotUnusable(
                        f"it unpacks to more than {limit} bytes", stream_id=stream_id, version=version
                    )
                data = zstandard.ZstdDecompressor().decompress(payload, max_output_size=limit)
            case _:
                raise SnapshotUnusable(f"its encoding is {encoding!r}", stream_id=stream_id, version=version)
    except (zstandard.ZstdError, TypeError) as error:
        # TypeError: a database that lets any value stand in any column gave something else than bytes.
        raise SnapshotUnusable(f"it cannot be unpacked: {error}", stream_id=stream_id, version=version) from error
    return Snapshot(stream_id, version, fingerprint, data, recorded_at)


def unpacked(stored: StoredSnapshot, *, limit: int) -> Snapshot | SnapshotUnusable:
    """The same, and a damaged one as its error."""
    try:
        return unpack(stored, limit=limit)
    except SnapshotUnusable as error:
        return error


def new_snapshot(stream_id: str, version: int, fingerprint: str, data: bytes) -> Snapshot:
    """A snapshot taken now."""
    return Snapshot(stream_id, version, fingerprint, data, datetime.now(UTC))


def _checksum(stream_id: str, version: int, fingerprint: str, encoding: str, payload: bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for part in (stream_id.encode(), str(version).encode(), fingerprint.encode(), encoding.encode(), payload):
        # Lengths first: two different snapshots never hash the same bytes.
        digest.update(struct.pack(">Q", len(part)))
        digest.update(part)
    return digest.digest()
