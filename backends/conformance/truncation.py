"""Truncation: events go, their versions and positions are never used again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.conformance.cases import case
from backends.conformance.events import collect, happened, numbers, versions, write
from backends.conformance.fixtures import StoreFixtures, reopened
from backends.conformance.snapshots import schemas
from eventstore.backend import Appended, Backend, Expected, Load, StreamInfo
from eventstore.contract.checkpoint import Checkpoint, DeadLetter, partition_of
from eventstore.errors import ConcurrencyError, DeadLetterWaits, JournalCorrupt, ProjectionBehind, RetentionRefused
from eventstore.events import Snapshot
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore

MAX_VERSION = 2**63 - 1


async def _truncated(store: EventStore, through: int) -> Appended:
    """Five events, of which those up to a version are removed. Returns where the last one stood."""
    ack = await store.append("a", happened(1, 2, 3, 4, 5))
    await store.truncate("a", through, reason="test")
    return ack


class Truncation(StoreFixtures):
    @case("C104")
    async def test_truncated_events_are_gone(self, store: EventStore) -> None:
        await _truncated(store, 3)
        assert await versions(store.read("a")) == [4, 5]
        assert await numbers(store.read("a")) == [4, 5]

    @case("C104")
    async def test_truncated_events_are_gone_from_the_log(self, store: EventStore) -> None:
        await _truncated(store, 3)
        await store.append("b", happened(6))
        assert await numbers(store.read_all()) == [4, 5, 6]
        assert await numbers(store.read_all(page_size=1)) == [4, 5, 6]
        assert await numbers(store.read_all(last=2)) == [5, 6]

    @pytest.mark.parametrize("is_log", [True, False])
    async def test_what_is_removed_while_it_is_read_page_by_page_does_not_come(
        self, store: EventStore, is_log: bool
    ) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        reading = store.read_all(page_size=2) if is_log else store.read("a", page_size=2)
        found = [(await anext(reading)).version]
        await store.truncate("a", 4, reason="test")
        assert found + await versions(reading) == [1, 2, 5]

    async def test_what_is_removed_while_it_is_read_backwards_does_not_come(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        reading = store.read("a", backwards=True, page_size=2)
        found = [(await anext(reading)).version]
        await store.truncate("a", 4, reason="test")
        assert found + await versions(reading) == [5, 4]

    async def test_truncation_tells_how_many_events_it_removed(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        assert await store.truncate("a", 2, reason="test") == 2
        assert await store.truncate("a", 2, reason="test") == 0
        assert await store.truncate("a", 1, reason="test") == 0
        assert await store.truncate("a", 4, reason="test") == 2

    @case("C105")
    async def test_the_version_stays_and_the_next_event_gets_the_next_number(self, store: EventStore) -> None:
        await _truncated(store, 3)
        assert await store.version("a") == 5
        assert (await store.append("a", happened(6), expected_version=5)).versions == (6,)

    @case("C106")
    async def test_a_stream_without_any_event_left_keeps_its_version(self, store: EventStore) -> None:
        await _truncated(store, MAX_VERSION)
        assert await versions(store.read("a")) == []
        assert await store.version("a") == 5
        assert (await store.append("a", happened(6), expected_version=5)).versions == (6,)
        assert await versions(store.read("a")) == [6]

    async def test_the_position_of_a_removed_event_is_not_used_again(self, store: EventStore) -> None:
        last = await _truncated(store, 5)
        assert (await store.append("b", happened(1))).position > last.position

    async def test_neither_versions_nor_positions_are_used_again_after_a_restart(self, store: EventStore) -> None:
        last = await _truncated(store, 5)
        async with reopened(store) as again:
            ack = await again.append("a", happened(6), expected_version=5)
        assert ack.versions == (6,)
        assert ack.position > last.position

    async def test_a_truncated_stream_still_exists(self, store: EventStore) -> None:
        await _truncated(store, 5)
        with pytest.raises(ConcurrencyError) as refused:
            await store.append("a", happened(6), expected_version=Expected.NO_STREAM)
        assert refused.value.actual == 5
        await store.append("a", happened(6), expected_version=Expected.STREAM_EXISTS)

    @pytest.mark.parametrize("through", [3, MAX_VERSION])
    @pytest.mark.parametrize(
        ("expected", "holds"),
        [(5, True), (Expected.STREAM_EXISTS, True), (Expected.ANY, True), (Expected.NO_STREAM, False), (2, False)],
    )
    async def test_what_is_asserted_of_a_truncated_stream_counts_its_removed_events(
        self, store: EventStore, backend: Backend, through: int, expected: int, holds: bool
    ) -> None:
        await _truncated(store, through)
        asserted = write("a", expected=expected)
        alone, beside = await backend.append([[asserted], [write("b", b"1", expected=0), asserted]])

        for answer in (alone, beside):
            assert isinstance(answer, Appended if holds else ConcurrencyError)
            if isinstance(answer, ConcurrencyError):
                assert (answer.stream_id, answer.expected, answer.actual) == ("a", expected, 5)
            else:
                assert isinstance(answer, Appended)
                assert answer.versions[-1] == 5
        assert await store.version("b") == int(holds)
        assert await store.version("a") == 5

    async def test_an_assertion_is_compared_with_what_another_store_has_truncated(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        await store.append("a", happened(1, 2))
        await store.append("b", happened(1))
        await other.truncate("a", 2, reason="test")
        kept, refused = await backend.append(
            [
                [write("b", b"2", expected=1), write("a", expected=2)],
                [write("b", b"3", expected=2), write("a", expected=0)],
            ]
        )
        assert isinstance(kept, Appended)
        assert isinstance(refused, ConcurrencyError)
        assert await store.version("b") == 2

    @case("C107", "C108", "C109", "C110")
    @pytest.mark.parametrize(
        ("after", "through", "expected"),
        [(2, None, [4, 5]), (0, 2, []), (0, 3, []), (3, None, [4, 5]), (0, 4, [4]), (1, 5, [4, 5])],
    )
    async def test_a_range_gives_what_is_left_of_it(
        self, store: EventStore, after: int, through: int | None, expected: list[int]
    ) -> None:
        await _truncated(store, 3)
        assert await versions(store.read("a", after=after, through=through)) == expected
        assert await versions(store.read("a", after=after, through=through, page_size=1)) == expected
        assert await versions(store.read("a", after=after, through=through, backwards=True)) == expected[::-1]
        assert await store.version("a") == 5

    @case("C110")
    async def test_a_limit_counts_the_events_that_are_left(self, store: EventStore) -> None:
        await _truncated(store, 3)
        assert await versions(store.read("a", limit=1)) == [4]
        assert await versions(store.read("a", limit=1, backwards=True)) == [5]

    @case("C111")
    async def test_truncation_above_the_version_is_clipped_to_it(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        assert await store.truncate("a", 7, reason="test") == 2
        assert await store.version("a") == 2
        assert await collect(store.streams()) == [StreamInfo("a", 2, 2)]
        await store.append("a", happened(3))
        assert await versions(store.read("a")) == [3]

    @case("C111")
    async def test_truncation_of_an_unknown_stream_removes_nothing(self, store: EventStore) -> None:
        assert await store.truncate("a", 3, reason="test") == 0
        assert await store.version("a") == 0
        assert await collect(store.streams()) == []

    async def test_truncation_through_nothing_removes_nothing(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        assert await store.truncate("a", 0, reason="test") == 0
        assert await versions(store.read("a")) == [1]

    async def test_truncation_leaves_other_streams(self, store: EventStore) -> None:
        await store.append("b", happened(1, 2))
        await _truncated(store, 5)
        assert await versions(store.read("b")) == [1, 2]

    async def test_what_a_projection_has_not_passed_stays(self, store: EventStore, backend: Backend) -> None:
        positions = [(await store.append("a-1", happened(number))).position for number in (1, 2, 3)]
        await backend.change_checkpoints([Checkpoint("reader", 1, kinds=("b", "a"), position=positions[1]).stored()])
        with pytest.raises(ProjectionBehind, match="'a-1' cannot be truncated, nothing was removed") as behind:
            await backend.truncate("a-1", 3, reason="test")
        refused = behind.value
        assert (refused.projection, refused.position, refused.wanted) == ("reader", positions[1], positions[2])
        assert await versions(store.read("a-1")) == [1, 2, 3]
        assert await backend.truncate("a-1", 2, reason="test") == 2

    @pytest.mark.parametrize(
        "other",
        [
            Checkpoint("reader", 1, kinds=("b",)),
            Checkpoint("reader", 1, tenants=("somebody",)),
            Checkpoint("reader", 1, partition=1 - partition_of("a-1", 2), partitions=2),
        ],
        ids=["of another kind", "of another tenant", "of another partition"],
    )
    async def test_a_projection_that_does_not_want_the_events_keeps_none(
        self, store: EventStore, backend: Backend, other: Checkpoint
    ) -> None:
        await store.append("a-1", happened(1, 2))
        await backend.change_checkpoints([other.stored()])
        assert await backend.truncate("a-1", 2, reason="test") == 2

    async def test_a_projection_keeps_what_is_of_its_partition(self, store: EventStore, backend: Backend) -> None:
        await store.append("a-1", happened(1, 2))
        parts = [Checkpoint("reader", 1, partition=number, partitions=2) for number in (0, 1)]
        for part in parts:
            await backend.change_checkpoints([part.stored()])
        with pytest.raises(ProjectionBehind):
            await backend.truncate("a-1", 2, reason="test")

    async def test_a_damaged_checkpoint_lets_nothing_go(self, store: EventStore, backend: Backend) -> None:
        await store.append("a-1", happened(1, 2))
        await backend.change_checkpoints([Checkpoint("reader", 1).stored()._replace(state=b"[]")])
        with pytest.raises(JournalCorrupt, match="the checkpoint of projection 'reader' version 1 is damaged"):
            await backend.truncate("a-1", 2, reason="test")
        assert await versions(store.read("a-1")) == [1, 2]

    async def test_the_event_of_a_dead_letter_stays_until_it_is_none(self, store: EventStore, backend: Backend) -> None:
        positions = [(await store.append("a-1", happened(number))).position for number in (1, 2, 3)]
        letters = (
            DeadLetter(positions[0], "b-1", 1, "happened", "another stream's", 1, ""),
            DeadLetter(positions[0], "a-1", 1, "happened", "another tenant's", 1, "", "somebody"),
            DeadLetter(positions[1], "a-1", 2, "happened", "ValueError", 1, ""),
        )
        reader = Checkpoint("reader", 1, kinds=("a",), position=positions[2], letters=letters)
        assert await backend.change_checkpoints([reader.stored()])
        with pytest.raises(DeadLetterWaits, match="'a-1' cannot be truncated, nothing was removed") as waits:
            await backend.truncate("a-1", 3, reason="test")
        refused = waits.value
        assert (refused.projection, refused.position, refused.wanted) == ("reader", positions[2], positions[1])
        assert (refused.stream_id, refused.version) == ("a-1", 2)
        assert f"eventstore dead-letters purge URL reader {positions[1]}" in str(refused)
        assert await versions(store.read("a-1")) == [1, 2, 3]
        assert await backend.truncate("a-1", 1, reason="test") == 1
        assert await backend.change_checkpoints([replace(reader, revision=1, letters=letters[:2]).stored()])
        assert await backend.truncate("a-1", 3, reason="test") == 2

    async def test_where_a_state_is_to_be_rebuilt_its_snapshot_must_be_there(
        self, store: EventStore, backend: Backend
    ) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        await store.save_snapshot(new_snapshot("a", 2, "one", b"{}"))
        await store.save_snapshot(new_snapshot("a", 4, "two", b"{}"))
        for through, schema in ((3, "one"), (5, "two"), (MAX_VERSION, "two"), (1, "none")):
            with pytest.raises(RetentionRefused, match=f"nothing of 'a' may go: .* '{schema}'"):
                await backend.truncate("a", through, reason="test", fingerprint=schema)
        assert await versions(store.read("a")) == [1, 2, 3, 4, 5]
        assert await backend.truncate("a", 1, reason="test", fingerprint="one") == 1
        assert await backend.truncate("a", 2, reason="test", fingerprint="one") == 1
        assert await backend.truncate("a", 4, reason="test", fingerprint="two") == 2
        # Nothing would go.
        assert await backend.truncate("a", 4, reason="test", fingerprint="one") == 0
        assert await versions(store.read("a")) == [5]

    async def test_truncation_leaves_snapshots(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3))
        await store.save_snapshot(new_snapshot("a", 2, "f", b"{}"))
        await store.truncate("a", 3, reason="test")
        assert len(await store.snapshots("a")) == 1

    async def test_a_list_of_streams_tells_how_far_they_are_truncated(self, store: EventStore) -> None:
        await _truncated(store, 3)
        assert await collect(store.streams()) == [StreamInfo("a", 5, 3)]

    async def test_a_load_tells_how_far_a_stream_is_truncated(self, store: EventStore) -> None:
        await _truncated(store, 3)
        loaded = await store.load(Load("a"))
        assert ([version for version, *_ in loaded.events], loaded.version, loaded.truncated) == ([4, 5], 5, 3)

    async def test_a_load_is_limited_by_the_events_that_are_left(self, store: EventStore) -> None:
        await _truncated(store, 3)
        loaded = await store.load(Load("a", limit=1))
        assert [version for version, *_ in loaded.events] == [4]

    async def test_truncation_may_be_repeated_as_the_stream_grows(self, store: EventStore) -> None:
        for n in range(1, 6):
            await store.append("a", happened(n))
            await store.truncate("a", n, reason="test")
        ack = await store.append("a", happened(6), expected_version=5)
        assert ack.versions == (6,)
        assert await numbers(store.read_all()) == [6]

    async def test_statistics_tell_the_last_position_though_its_event_is_gone(self, store: EventStore) -> None:
        last = await _truncated(store, 5)
        counted = await store.statistics()
        assert (counted.streams, counted.events, counted.last_position) == (1, 0, last.position)

    async def test_statistics_count_the_events_that_are_left(self, store: EventStore) -> None:
        last = await _truncated(store, 3)
        counted = await store.statistics()
        assert (counted.streams, counted.events, counted.last_position) == (1, 2, last.position)

    @pytest.mark.parametrize("is_owned", [False, True])
    async def test_of_each_schema_the_newest_stays_that_stands_for_removed_events(
        self, store: EventStore, is_owned: bool
    ) -> None:
        # Other code could not rebuild the state any more.
        await store.append("a", happened(1, 2, 3, 4, 5, 6, 7, 8, 9))
        epoch = await store.claim("a") if is_owned else None
        for version, schema in ((2, "gone"), (4, "one"), (5, "two"), (6, "one")):
            await store.save_snapshot(new_snapshot("a", version, schema, b"{}"), keep=10, epoch=epoch)
        await store.truncate("a", 4, reason="test", epoch=epoch)
        for version in (7, 8, 9):
            await store.save_snapshot(new_snapshot("a", version, "three", b"{}"), keep=2, epoch=epoch)
        assert await schemas(store) == [(9, "three"), (8, "three"), (6, "one"), (5, "two")]
        # It has served its turn as soon as more events are gone.
        await store.truncate("a", 6, reason="test", epoch=epoch)
        await store.save_snapshot(new_snapshot("a", 9, "three", b"[]"), keep=2, epoch=epoch)
        assert await schemas(store) == [(9, "three"), (8, "three"), (6, "one")]

    @pytest.mark.parametrize("is_owned", [False, True])
    async def test_one_that_stands_for_removed_events_is_not_replaced_by_one_of_another_schema(
        self, store: EventStore, is_owned: bool
    ) -> None:
        await store.append("a", happened(1, 2, 3))
        epoch = await store.claim("a") if is_owned else None
        await store.save_snapshot(new_snapshot("a", 3, "one", b"{}"), epoch=epoch)
        assert await store.save_snapshot(new_snapshot("a", 3, "two", b"{}"), epoch=epoch)
        assert await schemas(store) == [(3, "two")]
        await store.truncate("a", 3, reason="test", epoch=epoch)
        assert not await store.save_snapshot(new_snapshot("a", 3, "one", b"[1]"), epoch=epoch)
        assert await schemas(store) == [(3, "two")]
        assert (await store.statistics()).snapshots == 1
        assert await store.save_snapshot(new_snapshot("a", 3, "two", b"[]"), epoch=epoch)
        assert [each.data for each in await store.snapshots("a") if isinstance(each, Snapshot)] == [b"[]"]

    async def test_a_save_that_does_not_replace_another_schemas_snapshot_lets_older_ones_go(
        self, store: EventStore
    ) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5, 6))
        for version, schema in ((2, "gone"), (6, "one")):
            await store.save_snapshot(new_snapshot("a", version, schema, b"{}"))
        await store.truncate("a", 4, reason="test")
        await store.save_snapshot(new_snapshot("a", 6, "two", b"{}"), keep=1)
        assert await schemas(store) == [(6, "one")]
        assert (await store.statistics()).snapshots == 1

    @pytest.mark.parametrize("is_owned", [False, True])
    async def test_one_that_is_not_stored_takes_no_older_one_of_its_schema_away(
        self, store: EventStore, is_owned: bool
    ) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        epoch = await store.claim("a") if is_owned else None
        for version, schema in ((3, "one"), (4, "two"), (5, "two")):
            await store.save_snapshot(new_snapshot("a", version, schema, b"{}"), keep=3, epoch=epoch)
        await store.truncate("a", 3, reason="test", epoch=epoch)
        await store.save_snapshot(new_snapshot("a", 5, "one", b"[]"), keep=2, epoch=epoch)
        assert await schemas(store) == [(5, "two"), (4, "two"), (3, "one")]
