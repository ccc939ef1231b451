"""Ids: those of streams are compared byte for byte; those of events make a retry recognisable."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from backends.conformance.cases import case
from backends.conformance.events import collect, happened, identified, numbers, versions, write
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import Appended, Backend, Expected
from eventstore.codec import new_event_id
from eventstore.errors import DuplicateEventError, InvalidStreamId
from eventstore.store import Append, EventStore

# Each pair looks alike, or is equal to a database that folds, trims or normalises.
LOOK_ALIKE = {
    "case": ("Account-a", "account-a"),
    "accent": ("caf\u00e9", "cafe\u0301"),
    "no accent": ("caf\u00e9", "cafe"),
    "trailing space": ("a", "a "),
    "leading space": ("a", " a"),
    "sharp s": ("stra\u00dfe", "strasse"),
    "dotless i": ("I", "\u0131"),
    "width": ("A", "\uff21"),
    "joiner": ("ab", "a\u200db"),
    "number": ("1", "01"),
}

ODD_IDS = (
    "'",
    '"',
    "a'); --",
    "%",
    "a_b",
    "\\",
    "a/b?c#d",
    "a\nb",
    "\t",
    "null",
    "\U0001f600",
    "\uffff",
    "{}",
    "-",
)


class Ids(StoreFixtures):
    @case("C097")
    @pytest.mark.parametrize("stream_id", ["", "a\0b", "\ud83d"], ids=["empty", "NUL", "half a pair"])
    async def test_an_id_that_cannot_name_a_stream_is_refused(self, store: EventStore, stream_id: str) -> None:
        with pytest.raises(InvalidStreamId):
            await store.append(stream_id, happened(1))
        with pytest.raises(InvalidStreamId):
            await collect(store.read(stream_id))
        assert await collect(store.streams()) == []

    @case("C098")
    @pytest.mark.parametrize("size", [1, 255, 1024])
    async def test_an_id_of_up_to_the_longest_length_names_a_stream(self, store: EventStore, size: int) -> None:
        await store.append("x" * size, happened(1))
        assert await numbers(store.read("x" * size)) == [1]
        assert [info.stream_id for info in await collect(store.streams())] == ["x" * size]

    @case("C098")
    async def test_the_length_of_an_id_is_counted_in_bytes(self, store: EventStore) -> None:
        await store.append("\u00e9" * 512, happened(1))
        with pytest.raises(InvalidStreamId):
            await store.append("\u00e9" * 513, happened(1))

    @case("C098")
    async def test_an_id_over_the_longest_length_is_refused(self, store: EventStore) -> None:
        with pytest.raises(InvalidStreamId):
            await store.append("x" * 1025, happened(1))
        assert await collect(store.streams()) == []

    async def test_long_ids_that_differ_at_the_end_are_two_streams(self, store: EventStore) -> None:
        await store.append("x" * 1023 + "a", happened(1))
        await store.append("x" * 1023 + "b", happened(2), expected_version=0)
        assert await numbers(store.read("x" * 1023 + "b")) == [2]

    @pytest.mark.parametrize(("one", "another"), LOOK_ALIKE.values(), ids=LOOK_ALIKE)
    async def test_ids_that_look_alike_are_two_streams(self, store: EventStore, one: str, another: str) -> None:
        await store.append_batch([Append(one, happened(1), 0), Append(another, happened(2), 0)])
        assert await numbers(store.read(one)) == [1]
        assert await numbers(store.read(another)) == [2]

    async def test_an_id_may_hold_any_character(self, store: EventStore) -> None:
        for n, stream_id in enumerate(ODD_IDS):
            await store.append(stream_id, happened(n), expected_version=0)
        for n, stream_id in enumerate(ODD_IDS):
            assert [(r.stream_id, r.json()) for r in await collect(store.read(stream_id))] == [
                (stream_id, {"number": n})
            ]

    @case("C038")
    async def test_the_identical_batch_is_answered_with_its_original_place(self, store: EventStore) -> None:
        events = [identified(1, uuid4()), identified(2, uuid4())]
        original = await store.append("a", events, expected_version=0)
        await store.append("a", happened(3))
        again = await store.append("a", events, expected_version=0)
        assert again == Appended(original.position, (2,), is_duplicate=True)

    @case("C038")
    async def test_the_identical_batch_is_not_stored_again(self, store: EventStore) -> None:
        events = [identified(1, uuid4()), identified(2, uuid4())]
        for _ in range(3):
            await store.append("a", events, expected_version=0)
        assert await numbers(store.read("a")) == [1, 2]
        assert await numbers(store.read_all()) == [1, 2]

    @case("C039")
    async def test_one_early_event_sent_again_is_answered_with_its_original_place(self, store: EventStore) -> None:
        first = identified(0, uuid4())
        original = await store.append("a", [first], expected_version=0)
        for n in range(1, 6):
            await store.append("a", happened(n))
        for expected in (Expected.ANY, 0):
            again = await store.append("a", [first], expected_version=expected)
            assert again == Appended(original.position, (1,), is_duplicate=True)
        assert await versions(store.read("a")) == [1, 2, 3, 4, 5, 6]

    async def test_an_identical_batch_over_several_streams_is_answered_with_its_original_place(
        self, store: EventStore
    ) -> None:
        batch = [
            Append("a", [identified(1, uuid4()), identified(2, uuid4())], 0),
            Append("b", [identified(3, uuid4())], 0),
            Append("a", [identified(4, uuid4())], 2),
        ]
        original = await store.append_batch(batch)
        await store.append("a", happened(5))
        assert await store.append_batch(batch) == Appended(original.position, (2, 1, 3), is_duplicate=True)

    async def test_the_identical_batch_is_recognised_after_the_store_was_closed_and_opened(
        self, store: EventStore
    ) -> None:
        events = [identified(1, uuid4()), identified(2, uuid4())]
        original = await store.append("a", events, expected_version=0)
        async with reopened(store) as again:
            assert await again.append("a", events, expected_version=0) == original._replace(is_duplicate=True)
            assert await again.version("a") == 2

    async def test_the_identical_batch_is_recognised_by_another_store(
        self, store: EventStore, other: EventStore
    ) -> None:
        events = [identified(1, uuid4())]
        original = await store.append("a", events, expected_version=0)
        assert await other.append("a", events, expected_version=0) == original._replace(is_duplicate=True)

    async def test_the_identical_batch_twice_in_one_group_is_stored_once(
        self, store: EventStore, backend: Backend
    ) -> None:
        batch = [write("a", b"1", b"2", expected=0)]
        first, second = await backend.append([batch, batch])
        assert isinstance(first, Appended)
        assert second == first._replace(is_duplicate=True)
        assert await versions(store.read("a")) == [1, 2]

    @case("C054")
    async def test_a_batch_that_is_stored_in_part_is_refused(self, store: EventStore) -> None:
        stored = identified(1, uuid4())
        await store.append("a", [stored])
        with pytest.raises(DuplicateEventError):
            await store.append("a", [stored, identified(2, uuid4())])
        assert await numbers(store.read("a")) == [1]

    async def test_a_stored_event_at_the_end_of_a_batch_refuses_it(self, store: EventStore) -> None:
        stored = identified(1, uuid4())
        await store.append("a", [stored])
        with pytest.raises(DuplicateEventError):
            await store.append_batch([Append("b", happened(2)), Append("a", [stored])])
        assert await store.version("b") == 0

    async def test_an_id_that_is_stored_in_another_stream_is_refused(self, store: EventStore) -> None:
        taken = uuid4()
        await store.append("a", [identified(1, taken)])
        with pytest.raises(DuplicateEventError) as refused:
            await store.append("b", [identified(1, taken)])
        assert (refused.value.stream_id, UUID(refused.value.event_id)) == ("b", taken)
        assert await store.version("b") == 0

    async def test_stored_events_in_another_order_are_refused(self, store: EventStore) -> None:
        first, second = identified(1, uuid4()), identified(2, uuid4())
        await store.append("a", [first, second])
        with pytest.raises(DuplicateEventError):
            await store.append("a", [second, first])
        assert await numbers(store.read("a")) == [1, 2]

    async def test_stored_events_of_two_streams_in_another_order_are_refused(self, store: EventStore) -> None:
        one, another = Append("a", [identified(1, uuid4())]), Append("b", [identified(2, uuid4())])
        await store.append_batch([one, another])
        with pytest.raises(DuplicateEventError):
            await store.append_batch([another, one])

    async def test_stored_events_with_one_left_out_between_them_are_refused(self, store: EventStore) -> None:
        first, second, third = (identified(n, uuid4()) for n in (1, 2, 3))
        await store.append("a", [first, second, third])
        with pytest.raises(DuplicateEventError):
            await store.append("a", [first, third])

    async def test_a_refused_batch_names_the_first_of_its_events_that_are_stored(self, store: EventStore) -> None:
        events = [identified(n, uuid4()) for n in range(5)]
        await store.append("a", [events[1], events[3]])
        with pytest.raises(DuplicateEventError) as refused:
            await store.append_batch([Append("b", events[:3]), Append("a", events[3:])])
        assert (refused.value.stream_id, refused.value.event_id) == ("b", str(events[1].event_id))

    async def test_an_event_that_is_stored_in_the_same_group_is_refused_elsewhere(self, backend: Backend) -> None:
        same = new_event_id()
        outcomes = await backend.append([[write("a", b"1", ids=[same])], [write("b", b"1", ids=[same])]])
        assert [type(outcome) for outcome in outcomes] == [Appended, DuplicateEventError]
