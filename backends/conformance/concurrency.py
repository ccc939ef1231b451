"""Optimistic concurrency: an append is stored only if the stream is as its writer expects."""

from __future__ import annotations

import asyncio

import pytest

from backends.conformance.cases import case
from backends.conformance.events import collect, happened, numbers, versions
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import Appended, Expected
from eventstore.errors import ConcurrencyError
from eventstore.store import Append, EventStore


class Concurrency(StoreFixtures):
    @case("C029")
    async def test_no_stream_is_met_by_an_unknown_stream(self, store: EventStore) -> None:
        ack = await store.append("a", happened(1), expected_version=Expected.NO_STREAM)
        assert ack.versions == (1,)

    @case("C029")
    async def test_no_stream_refuses_a_stream_that_exists(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        with pytest.raises(ConcurrencyError) as refused:
            await store.append("a", happened(2), expected_version=Expected.NO_STREAM)
        assert (refused.value.stream_id, refused.value.expected, refused.value.actual) == ("a", 0, 1)

    @case("C030")
    async def test_stream_exists_is_met_by_a_stream_at_any_version(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        ack = await store.append("a", happened(3), expected_version=Expected.STREAM_EXISTS)
        assert ack.versions == (3,)

    @case("C030")
    async def test_stream_exists_refuses_an_unknown_stream(self, store: EventStore) -> None:
        with pytest.raises(ConcurrencyError) as refused:
            await store.append("a", happened(1), expected_version=Expected.STREAM_EXISTS)
        assert (refused.value.stream_id, refused.value.expected, refused.value.actual) == ("a", "STREAM_EXISTS", 0)

    @case("C031")
    async def test_the_right_version_is_accepted(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        ack = await store.append("a", happened(6), expected_version=5)
        assert ack.versions == (6,)

    @case("C031")
    @pytest.mark.parametrize("expected", [0, 1, 4, 6, 2**31])
    async def test_any_other_version_is_refused(self, store: EventStore, expected: int) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        with pytest.raises(ConcurrencyError) as refused:
            await store.append("a", happened(6), expected_version=expected)
        assert (refused.value.stream_id, refused.value.expected, refused.value.actual) == ("a", expected, 5)

    @case("C031")
    async def test_a_version_is_refused_where_there_is_no_stream(self, store: EventStore) -> None:
        with pytest.raises(ConcurrencyError) as refused:
            await store.append("a", happened(1), expected_version=1)
        assert refused.value.actual == 0

    @case("C031", "C050")
    async def test_a_refused_append_stores_nothing(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        with pytest.raises(ConcurrencyError):
            await store.append("a", happened(2, 3), expected_version=4)
        assert await numbers(store.read("a")) == [1]
        assert await numbers(store.read_all()) == [1]
        assert await store.version("a") == 1

    @case("C050")
    async def test_a_refused_append_creates_no_stream(self, store: EventStore) -> None:
        with pytest.raises(ConcurrencyError):
            await store.append("a", happened(1), expected_version=3)
        assert await collect(store.streams()) == []

    @case("C050")
    async def test_a_refused_append_leaves_no_hole_in_the_versions(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        with pytest.raises(ConcurrencyError):
            await store.append("a", happened(2, 3), expected_version=4)
        assert (await store.append("a", happened(4), expected_version=1)).versions == (2,)

    @case("C050")
    async def test_the_events_of_a_refused_append_can_be_appended_again(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        events = happened(2, 3)
        with pytest.raises(ConcurrencyError):
            await store.append("a", events, expected_version=0)
        assert not (await store.append("a", events, expected_version=1)).is_duplicate

    @case("C032")
    async def test_any_is_met_by_a_new_stream_and_by_an_old_one(self, store: EventStore) -> None:
        acks = [await store.append("a", happened(n), expected_version=Expected.ANY) for n in (1, 2)]
        assert [ack.versions for ack in acks] == [(1,), (2,)]

    async def test_an_append_of_no_events_is_refused_at_another_version(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        with pytest.raises(ConcurrencyError):
            await store.append("a", [], expected_version=2)

    async def test_the_version_of_one_stream_is_not_that_of_another(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3))
        assert (await store.append("b", happened(1), expected_version=0)).versions == (1,)

    @case("C035")
    async def test_one_of_four_writers_with_the_same_expectation_wins(self, store: EventStore) -> None:
        await store.append("a", happened(0))
        outcomes = await asyncio.gather(
            *(store.append("a", happened(n, n), expected_version=1) for n in range(1, 5)), return_exceptions=True
        )
        assert sum(isinstance(outcome, Appended) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, ConcurrencyError) for outcome in outcomes) == 3
        assert await versions(store.read("a")) == [1, 2, 3]

    @case("C036")
    async def test_fifty_writers_without_an_expectation_all_succeed(self, store: EventStore) -> None:
        acks = await asyncio.gather(*(store.append("a", happened(n)) for n in range(50)))
        assert sorted(ack.versions[0] for ack in acks) == list(range(1, 51))
        assert await versions(store.read("a")) == list(range(1, 51))
        assert sorted(await numbers(store.read("a"))) == list(range(50))

    @case("C035")
    async def test_one_of_two_stores_with_the_same_expectation_wins(self, store: EventStore, other: EventStore) -> None:
        await store.append("a", happened(0))
        await other.append("a", happened(1), expected_version=1)
        with pytest.raises(ConcurrencyError):
            await store.append("a", happened(2), expected_version=1)
        assert await numbers(other.read("a")) == [0, 1]

    @case("C036")
    async def test_two_stores_that_write_one_stream_leave_no_hole(self, store: EventStore, other: EventStore) -> None:
        await asyncio.gather(*(s.append("a", happened(n)) for n in range(10) for s in (store, other)))
        assert await versions(store.read("a")) == list(range(1, 21))

    async def test_expectations_hold_after_the_store_was_closed_and_opened(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        async with reopened(store) as again:
            with pytest.raises(ConcurrencyError) as refused:
                await again.append_batch([Append("a", happened(3), 1)])
        assert refused.value.actual == 2
