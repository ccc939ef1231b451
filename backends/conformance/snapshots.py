"""Snapshots: the newest is the one of the highest version, and comes back as it was saved."""

from __future__ import annotations

from datetime import UTC, datetime
from random import Random

import pytest

from backends.conformance.cases import case
from backends.conformance.events import collect, happened
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import Backend, Load, Loaded, StoredSnapshot
from eventstore.errors import PayloadTooLarge, SnapshotUnusable
from eventstore.events import Snapshot
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore


def _snapshot(version: int, *, stream_id: str = "a", data: bytes = b"{}") -> Snapshot:
    return new_snapshot(stream_id, version, "fingerprint", data)


def _stored(version: int, *, encoding: str = "json", payload: bytes = b"{}", epoch: int = 0) -> StoredSnapshot:
    taken = datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
    return StoredSnapshot("a", version, "fingerprint", encoding, payload, bytes(range(16)), taken, epoch)


async def _save(store: EventStore, *versions: int, keep: int = 10) -> None:
    for version in versions:
        await store.save_snapshot(_snapshot(version), keep=keep)


async def _versions(store: EventStore, *, through: int | None = None, limit: int = 10) -> list[int]:
    found = await store.snapshots("a", through=through, limit=limit)
    return [snapshot.version for snapshot in found if isinstance(snapshot, Snapshot)]


async def schemas(store: EventStore) -> list[tuple[int, str]]:
    """The snapshots of stream "a", the newest first: version and schema."""
    found = await store.snapshots("a", limit=10)
    return [(snapshot.version, snapshot.fingerprint) for snapshot in found if isinstance(snapshot, Snapshot)]


class Snapshots(StoreFixtures):
    @case("C124")
    async def test_an_unknown_stream_has_no_snapshot(self, store: EventStore) -> None:
        await store.save_snapshot(_snapshot(1, stream_id="b"))
        assert list(await store.snapshots("a")) == []

    @case("C125", "C126")
    async def test_a_bound_below_all_snapshots_gives_none(self, store: EventStore) -> None:
        await _save(store, 11, 12, 13, 14, 15)
        assert await _versions(store, through=10) == []

    @case("C127")
    async def test_the_newest_comes_first(self, store: EventStore) -> None:
        await _save(store, 11, 12, 13, 14, 15)
        assert await _versions(store) == [15, 14, 13, 12, 11]
        assert await _versions(store, limit=1) == [15]

    @case("C127")
    async def test_the_newest_is_that_of_the_highest_version_whenever_it_was_saved(self, store: EventStore) -> None:
        await _save(store, 9, 100, 10)
        assert await _versions(store) == [100, 10, 9]

    @case("C128")
    async def test_a_bound_gives_the_newest_up_to_it(self, store: EventStore) -> None:
        await _save(store, 11, 12, 13, 14, 15)
        assert await _versions(store, through=13, limit=1) == [13]
        assert await _versions(store, through=13) == [13, 12, 11]

    @case("C132")
    async def test_snapshots_up_to_a_bound_are_deleted_and_the_next_newer_stays(self, store: EventStore) -> None:
        await _save(store, 11, 12, 13, 14, 15)
        assert await store.delete_snapshots("a", through=13) == 3
        assert await _versions(store) == [15, 14]
        assert await _versions(store, through=13) == []

    async def test_a_bound_below_all_snapshots_deletes_none(self, store: EventStore) -> None:
        await _save(store, 11, 12)
        assert await store.delete_snapshots("a", through=10) == 0
        assert await _versions(store) == [12, 11]

    async def test_all_snapshots_of_one_stream_are_deleted_without_a_bound(self, store: EventStore) -> None:
        await _save(store, 11, 12)
        await store.save_snapshot(_snapshot(1, stream_id="b"))
        assert await store.delete_snapshots("a") == 2
        assert await store.delete_snapshots("a") == 0
        assert await store.delete_snapshots("unknown") == 0
        assert len(await store.snapshots("b")) == 1

    @case("C134")
    async def test_a_snapshot_saved_again_at_its_version_is_replaced(self, store: EventStore) -> None:
        await store.save_snapshot(_snapshot(5, data=b'"old"'))
        await store.save_snapshot(_snapshot(5, data=b'"new"'))
        assert [s.data for s in await store.snapshots("a") if isinstance(s, Snapshot)] == [b'"new"']

    @case("C135")
    async def test_a_snapshot_of_ten_kilobytes_comes_back_equal(self, store: EventStore) -> None:
        snapshot = _snapshot(5, data=_noise(10_000))
        await store.save_snapshot(snapshot)
        assert list(await store.snapshots("a")) == [snapshot]

    @case("C135")
    async def test_a_snapshot_of_the_largest_size_comes_back_equal(self, url: str) -> None:
        async with EventStore.open(url, max_payload_bytes=8192) as store:
            snapshot = _snapshot(5, data=_noise(store.max_snapshot_bytes))
            await store.save_snapshot(snapshot)
            assert list(await store.snapshots("a")) == [snapshot]

    @case("C135")
    async def test_a_snapshot_over_the_largest_size_is_refused(self, url: str) -> None:
        async with EventStore.open(url, max_payload_bytes=8192) as store:
            with pytest.raises(PayloadTooLarge):
                await store.save_snapshot(_snapshot(5, data=_noise(store.max_snapshot_bytes + 1)))
            assert list(await store.snapshots("a")) == []

    @case("C136")
    async def test_a_snapshot_comes_back_with_its_fingerprint_and_time(self, store: EventStore) -> None:
        taken = datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
        await store.save_snapshot(Snapshot("a", 5, "schema-1/é", b'{ "a": 1.0 }', taken))
        assert list(await store.snapshots("a")) == [Snapshot("a", 5, "schema-1/é", b'{ "a": 1.0 }', taken)]

    @case("C136")
    @pytest.mark.parametrize(
        "snapshot",
        [_stored(1), _stored(2, encoding="newer/1"), _stored(3, payload=bytes(range(256))), _stored(4, epoch=7)],
        ids=["json", "an encoding of newer code", "bytes", "an epoch"],
    )
    async def test_a_stored_snapshot_comes_back_as_it_was_given(
        self, backend: Backend, snapshot: StoredSnapshot
    ) -> None:
        await backend.save_snapshot(snapshot, keep=2)
        assert list(await backend.read_snapshots("a", through=None, limit=10)) == [snapshot]
        assert [getattr(loaded, "snapshot", None) for loaded in await backend.load([Load("a")])] == [snapshot]

    async def test_a_damaged_snapshot_is_given_as_its_error_beside_the_others(
        self, store: EventStore, backend: Backend
    ) -> None:
        await _save(store, 1)
        await backend.save_snapshot(_stored(2, payload=b"damaged"), keep=10)
        newest, older = await store.snapshots("a")
        assert isinstance(newest, SnapshotUnusable)
        assert (newest.stream_id, newest.version) == ("a", 2)
        assert isinstance(older, Snapshot)

    async def test_only_the_newest_are_kept(self, store: EventStore) -> None:
        await _save(store, 1, 2, 3, 4, 5, keep=2)
        assert await _versions(store) == [5, 4]

    async def test_the_newest_are_kept_by_version_and_not_by_time(self, store: EventStore) -> None:
        await _save(store, 8, 9)
        assert not await store.save_snapshot(_snapshot(3), keep=2)
        assert await _versions(store) == [9, 8]
        assert await store.save_snapshot(_snapshot(8), keep=2)

    async def test_where_no_events_were_removed_only_the_newest_stay(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3))
        for version, schema in ((1, "one"), (2, "two"), (3, "two")):
            await store.save_snapshot(new_snapshot("a", version, schema, b"{}"), keep=2)
        assert await schemas(store) == [(3, "two"), (2, "two")]

    async def test_what_one_stream_keeps_is_not_counted_for_another(self, store: EventStore) -> None:
        await _save(store, 1, 2)
        await store.save_snapshot(_snapshot(9, stream_id="b"), keep=1)
        assert await _versions(store) == [2, 1]

    async def test_a_snapshot_is_there_after_the_store_was_closed_and_opened(self, store: EventStore) -> None:
        snapshot = _snapshot(5)
        await store.save_snapshot(snapshot)
        async with reopened(store) as again:
            assert list(await again.snapshots("a")) == [snapshot]

    async def test_a_snapshot_is_no_event(self, store: EventStore) -> None:
        await _save(store, 5)
        assert await store.version("a") == 0
        assert await collect(store.read_all()) == []
        assert (await store.append("a", happened(1), expected_version=0)).versions == (1,)

    async def test_statistics_count_snapshots(self, store: EventStore) -> None:
        await _save(store, 1, 2)
        assert (await store.statistics()).snapshots == 2

    async def test_a_load_gives_the_newest_snapshot_and_the_events_behind_it(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        await _save(store, 2, 3)
        loaded = await store.load(Load("a"))
        assert loaded.snapshot is not None
        assert (loaded.snapshot.version, _event_versions(loaded), loaded.version) == (3, [4, 5], 5)

    async def test_a_load_is_limited_by_the_events_behind_the_snapshot(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        await _save(store, 3)
        loaded = await store.load(Load("a", limit=1))
        assert _event_versions(loaded) == [4]

    async def test_a_load_without_snapshots_gives_the_events_alone(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3))
        await _save(store, 2)
        loaded = await store.load(Load("a", use_snapshot=False))
        assert (loaded.snapshot, _event_versions(loaded)) == (None, [1, 2, 3])

    @pytest.mark.parametrize(("after", "events"), [(3, [4, 5]), (4, [5])])
    async def test_a_load_passes_over_a_snapshot_that_is_not_above_its_start(
        self, store: EventStore, after: int, events: list[int]
    ) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        await _save(store, 3)
        loaded = await store.load(Load("a", after=after))
        assert (loaded.snapshot, _event_versions(loaded)) == (None, events)

    async def test_a_load_takes_a_snapshot_above_its_start(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        await _save(store, 3)
        loaded = await store.load(Load("a", after=2))
        assert loaded.snapshot is not None
        assert _event_versions(loaded) == [4, 5]

    async def test_a_load_gives_a_snapshot_ahead_of_the_journal_as_it_is(self, store: EventStore) -> None:
        await _save(store, 7)
        loaded = await store.load(Load("a"))
        assert loaded.snapshot is not None
        assert (loaded.snapshot.version, list(loaded.events), loaded.version) == (7, [], 0)


def _noise(size: int) -> bytes:
    """JSON text of a size that compresses badly."""
    return b'"' + Random(1).randbytes(size).hex()[: size - 2].encode() + b'"'  # noqa: S311


def _event_versions(loaded: Loaded) -> list[int]:
    return [version for version, *_ in loaded.events]
