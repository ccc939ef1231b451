"""Batches: all or nothing, over one stream or several; and groups of batches, which share a commit and no fate."""

from __future__ import annotations

from itertools import pairwise

import pytest

from backends.conformance.cases import case
from backends.conformance.events import collect, happened, numbers, versions, write
from backends.conformance.fixtures import StoreFixtures
from eventstore.backend import Appended, AppendOutcome, Backend, Expected
from eventstore.codec import new_event_id
from eventstore.errors import ConcurrencyError, DuplicateEventError
from eventstore.store import Append, EventStore


class Batches(StoreFixtures):
    @case("C058")
    async def test_a_batch_over_interleaved_streams_stands_in_the_log_as_given(self, store: EventStore) -> None:
        await store.append_batch(
            [Append("a", happened(1, 2)), Append("b", happened(3)), Append("a", happened(4)), Append("b", happened(5))]
        )
        recorded = await collect(store.read_all())
        assert [(record.stream_id, record.version, record.json()["number"]) for record in recorded] == [
            ("a", 1, 1),
            ("a", 2, 2),
            ("b", 1, 3),
            ("a", 3, 4),
            ("b", 2, 5),
        ]

    @case("C058")
    async def test_a_batch_is_acknowledged_with_the_version_after_each_write(self, store: EventStore) -> None:
        ack = await store.append_batch(
            [Append("a", happened(1, 2)), Append("b", happened(3)), Append("a", happened(4))]
        )
        assert ack.versions == (2, 1, 3)

    @case("C058")
    async def test_a_stream_that_occurs_again_is_expected_as_the_batch_has_left_it(self, store: EventStore) -> None:
        ack = await store.append_batch(
            [Append("a", happened(1, 2), 0), Append("b", happened(3), 0), Append("a", happened(4), 2)]
        )
        assert ack.versions == (2, 1, 3)

    @case("C058")
    async def test_a_stream_that_occurs_again_is_refused_at_its_version_before_the_batch(
        self, store: EventStore
    ) -> None:
        with pytest.raises(ConcurrencyError):
            await store.append_batch([Append("a", happened(1), 0), Append("a", happened(2), 0)])
        assert await collect(store.read_all()) == []

    @case("C058")
    async def test_a_batch_over_several_streams_has_one_time(self, store: EventStore) -> None:
        await store.append_batch([Append("a", happened(1)), Append("b", happened(2)), Append("a", happened(3))])
        assert len({record.recorded_at for record in await collect(store.read_all())}) == 1

    @case("C058")
    async def test_a_batch_is_not_split_by_other_writers(self, store: EventStore, backend: Backend) -> None:
        batch = [write("a", b"1"), write("b", b"2"), write("a", b"3")]
        await backend.append([[write("x", b"0")], batch, [write("a", b"4")], [write("b", b"5")]])
        assert [record.payload for record in await collect(store.read_all())] == [b"0", b"1", b"2", b"3", b"4", b"5"]

    @case("C059")
    async def test_a_wrong_version_is_named_with_its_stream(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        await store.append("b", happened(1, 2, 3))
        with pytest.raises(ConcurrencyError) as refused:
            await store.append_batch([Append("a", happened(3), 2), Append("b", happened(4), 2)])
        assert (refused.value.stream_id, refused.value.expected, refused.value.actual) == ("b", 2, 3)

    @case("C059")
    @pytest.mark.parametrize("refused_write", [0, 1, 2])
    async def test_one_refused_write_refuses_the_whole_batch(self, store: EventStore, refused_write: int) -> None:
        appends = [Append(stream_id, happened(1), 0) for stream_id in ("a", "b", "c")]
        appends[refused_write] = appends[refused_write]._replace(expected_version=7)
        with pytest.raises(ConcurrencyError):
            await store.append_batch(appends)
        assert await collect(store.read_all()) == []
        assert await collect(store.streams()) == []

    async def test_a_batch_may_rest_on_a_stream_that_it_does_not_write(self, store: EventStore) -> None:
        await store.append("read", happened(1))
        ack = await store.append_batch([Append("read", [], 1), Append("a", happened(1), 0)])
        assert ack.versions == (1, 1)

    async def test_a_batch_is_refused_when_a_stream_it_only_read_has_moved(self, store: EventStore) -> None:
        await store.append("read", happened(1, 2))
        with pytest.raises(ConcurrencyError):
            await store.append_batch([Append("a", happened(1), 0), Append("read", [], 1)])
        assert await store.version("a") == 0

    @case("C054")
    async def test_a_batch_whose_first_version_is_taken_stores_nothing(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        with pytest.raises(ConcurrencyError):
            await store.append("a", happened(1, 2), expected_version=0)
        assert await numbers(store.read("a")) == [1]

    @case("C055")
    async def test_an_id_twice_in_one_batch_is_refused(self, store: EventStore, backend: Backend) -> None:
        same = new_event_id()
        [outcome] = await backend.append([[write("a", b"1", b"2", ids=[same, same])]])
        assert isinstance(outcome, DuplicateEventError)
        assert await collect(store.read_all()) == []

    @case("C055")
    async def test_an_id_twice_over_two_streams_of_one_batch_is_refused(
        self, store: EventStore, backend: Backend
    ) -> None:
        same = new_event_id()
        [outcome] = await backend.append([[write("a", b"1", ids=[same]), write("b", b"2", ids=[same])]])
        assert isinstance(outcome, DuplicateEventError)
        assert await collect(store.streams()) == []

    async def test_every_batch_of_a_group_has_its_own_outcome(self, backend: Backend) -> None:
        outcomes = await backend.append(
            [
                [write("a", b"1", expected=0)],
                [write("b", b"2", expected=9)],
                [write("c", b"3", expected=0)],
                [write("d", b"4", expected=Expected.STREAM_EXISTS)],
            ]
        )
        assert [type(outcome) for outcome in outcomes] == [Appended, ConcurrencyError, Appended, ConcurrencyError]

    async def test_a_loser_never_fails_its_neighbours(self, store: EventStore, backend: Backend) -> None:
        outcomes = await backend.append(
            [[write("a", str(n).encode(), expected=1000 if n % 3 == 1 else Expected.ANY)] for n in range(60)]
        )
        stored = [n for n in range(60) if n % 3 != 1]
        assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Appended)] == stored
        recorded = await collect(store.read("a"))
        assert [int(record.payload) for record in recorded] == stored
        assert [record.version for record in recorded] == list(range(1, 41))

    async def test_a_duplicate_never_fails_its_neighbours(self, store: EventStore, backend: Backend) -> None:
        taken = new_event_id()
        await backend.append([[write("a", b"1", ids=[taken])]])
        outcomes = await backend.append([[write("b", b"2")], [write("c", b"3", ids=[taken])], [write("d", b"4")]])
        assert [type(outcome) for outcome in outcomes] == [Appended, DuplicateEventError, Appended]
        assert [record.payload for record in await collect(store.read_all())] == [b"1", b"2", b"4"]

    async def test_a_batch_sees_those_before_it_in_its_group(self, backend: Backend) -> None:
        outcomes = await backend.append([[write("a", b"1", b"2", expected=0)], [write("a", b"3", expected=2)]])
        assert [_versions(outcome) for outcome in outcomes] == [(2,), (3,)]

    async def test_the_first_of_two_equal_expectations_in_a_group_wins(
        self, store: EventStore, backend: Backend
    ) -> None:
        first, second = await backend.append([[write("a", b"1", expected=0)], [write("a", b"2", expected=0)]])
        assert _versions(first) == (1,)
        assert isinstance(second, ConcurrencyError)
        assert second.actual == 1
        assert await versions(store.read("a")) == [1]

    async def test_what_a_loser_would_have_written_is_not_seen_by_the_next_batch(self, backend: Backend) -> None:
        loser = [write("a", b"1", b"2", expected=0), write("b", b"3", expected=5)]
        _, outcome = await backend.append([loser, [write("a", b"4", expected=0)]])
        assert _versions(outcome) == (1,)

    async def test_the_ids_of_a_loser_are_free_for_the_next_batch(self, backend: Backend) -> None:
        event_id = new_event_id()
        outcomes = await backend.append(
            [[write("a", b"1", expected=5, ids=[event_id])], [write("a", b"1", expected=0, ids=[event_id])]]
        )
        assert _versions(outcomes[1]) == (1,)

    async def test_batches_of_a_group_stand_in_the_log_in_order(self, store: EventStore, backend: Backend) -> None:
        outcomes = await backend.append([[write(f"s-{n % 7}", str(n).encode())] for n in range(100)])
        positions = [outcome.position for outcome in outcomes if isinstance(outcome, Appended)]
        assert len(positions) == 100
        assert all(earlier < later for earlier, later in pairwise(positions))
        recorded = await collect(store.read_all())
        assert [(record.position, int(record.payload)) for record in recorded] == [
            (position, n) for n, position in enumerate(positions)
        ]

    async def test_a_group_in_which_all_lose_stores_nothing(self, store: EventStore, backend: Backend) -> None:
        outcomes = await backend.append([[write("a", b"1", expected=1)], [write("b", b"2", expected=2)]])
        assert all(isinstance(outcome, ConcurrencyError) for outcome in outcomes)
        assert await collect(store.streams()) == []

    async def test_a_batch_without_events_has_an_outcome_among_others(self, backend: Backend) -> None:
        outcomes = await backend.append(
            [[write("a", b"1")], [write("a", expected=1)], [write("a", expected=0)], [], [write("a", b"2")]]
        )
        assert [_versions(outcome) for outcome in outcomes] == [(1,), (1,), None, (), (2,)]

    async def test_a_large_group_is_stored_whole(self, store: EventStore, backend: Backend) -> None:
        outcomes = await backend.append([[write(f"s-{n % 100}", b"1", b"2", b"3")] for n in range(700)])
        assert [_versions(outcome) for outcome in outcomes] == [(3 * (n // 100 + 1),) for n in range(700)]
        assert (await store.statistics()).events == 2100

    async def test_a_group_of_none_is_stored(self, backend: Backend) -> None:
        assert list(await backend.append([])) == []


def _versions(outcome: AppendOutcome) -> tuple[int, ...] | None:
    return outcome.versions if isinstance(outcome, Appended) else None
