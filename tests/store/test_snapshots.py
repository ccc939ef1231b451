"""Packing snapshots: what a stored one may unpack to, whoever stored it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import zstandard

from eventstore import snapshots
from eventstore.errors import PayloadTooLarge, SnapshotUnusable
from eventstore.events import Snapshot
from eventstore.snapshots import COMPRESS_FROM_BYTES, JSON_ZSTD, pack, unpack

LIMIT = 16 * COMPRESS_FROM_BYTES


def snapshot(data: bytes) -> Snapshot:
    return Snapshot("Account-alice", 7, "f", data, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("size", [0, 1, COMPRESS_FROM_BYTES - 1, COMPRESS_FROM_BYTES, LIMIT])
def test_a_state_comes_back_whatever_its_size(size: int):
    given = snapshot(b"1" * size)
    stored = pack(given, limit=LIMIT)
    assert (stored.encoding == JSON_ZSTD) == (size >= COMPRESS_FROM_BYTES)
    assert unpack(stored, limit=LIMIT) == given


def test_a_state_over_the_limit_is_refused():
    with pytest.raises(PayloadTooLarge):
        pack(snapshot(b"1" * (LIMIT + 1)), limit=LIMIT)


def test_what_unpacks_to_more_than_the_limit_is_not_unpacked(monkeypatch: pytest.MonkeyPatch):
    stored = pack(snapshot(b"1" * 100 * LIMIT), limit=100 * LIMIT)
    assert len(stored.payload) < LIMIT
    # It would take the memory before anything could be said about it.
    monkeypatch.setattr(zstandard, "ZstdDecompressor", None)
    with pytest.raises(SnapshotUnusable, match=f"unpacks to more than {LIMIT} bytes"):
        unpack(stored, limit=LIMIT)


def test_what_does_not_say_to_how_much_it_unpacks_is_bounded_all_the_same():
    whole = pack(snapshot(b"1" * 100 * LIMIT), limit=100 * LIMIT)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"1" * 100 * LIMIT)
    assert zstandard.frame_content_size(unsized) == -1
    stored = whole._replace(payload=unsized)
    stored = stored._replace(checksum=snapshots._checksum(stored.stream_id, 7, "f", JSON_ZSTD, unsized))
    with pytest.raises(SnapshotUnusable):
        unpack(stored, limit=LIMIT)
