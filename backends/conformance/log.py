"""The whole log: one order over all streams, filters, pages, times, and the list of streams."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from pydantic import JsonValue

from backends.conformance.cases import case
from backends.conformance.events import Charged, Happened, Noted, closing, collect, happened, numbers, tagged
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import EventFilter, StreamInfo
from eventstore.events import Metadata, NewEvent
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore

# In the order of their UTF-8 bytes; in UTF-16, in a locale's order or without regard to case it is another.
SORTED_IDS = ["A", "Z", "Z-1", "_", "a", "a-1", "a-10", "a-2", "aa", "\u00e9", "\uffff", "\U0001f600"]


class Log(StoreFixtures):
    @case("C184")
    async def test_the_log_gives_the_events_of_all_streams_as_they_were_appended(self, store: EventStore) -> None:
        for n in range(9):
            await store.append(f"s-{n % 4}", happened(n))
        assert await numbers(store.read_all()) == list(range(9))

    @case("C184")
    async def test_positions_rise(self, store: EventStore) -> None:
        for n in range(9):
            await store.append(f"s-{n % 4}", happened(n, n))
        positions = [record.position for record in await collect(store.read_all())]
        assert all(earlier < later for earlier, later in pairwise(positions))

    @case("C184")
    async def test_a_position_to_read_after_is_not_read_again(self, store: EventStore) -> None:
        acks = [await store.append("a", happened(n)) for n in range(5)]
        assert await numbers(store.read_all(after=acks[2].position)) == [3, 4]
        assert await numbers(store.read_all(after=acks[4].position)) == []
        assert await numbers(store.read_all(after=acks[4].position + 1000)) == []
        assert await numbers(store.read_all(after=2**62)) == []

    async def test_a_read_of_the_log_stops_at_its_limit(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        assert await numbers(store.read_all(limit=3)) == [1, 2, 3]
        assert await numbers(store.read_all(limit=3, page_size=2)) == [1, 2, 3]
        assert await numbers(store.read_all(limit=0)) == []

    @case("C186")
    @pytest.mark.parametrize("page_size", [1, 3, 150, 1000])
    async def test_the_size_of_pages_changes_nothing_in_the_log(self, store: EventStore, page_size: int) -> None:
        await store.append("a", happened(*range(75)))
        await store.append("b", happened(*range(75, 150)))
        assert await numbers(store.read_all(page_size=page_size)) == list(range(150))

    @case("C088")
    async def test_a_read_that_has_begun_ends_without_what_is_appended_later(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        async with closing(store.read_all()) as events:
            found = [(await anext(events)).json()["number"]]
            await store.append("a", happened(3))
            found += await numbers(events)
        assert found == [1, 2]

    @case("C187")
    async def test_the_last_events_come_in_rising_order(self, store: EventStore) -> None:
        await store.append("a", happened(*range(1, 11)))
        assert await numbers(store.read_all(last=3)) == [8, 9, 10]
        assert await numbers(store.read_all(last=10)) == list(range(1, 11))
        assert await numbers(store.read_all(last=0)) == []

    @case("C187")
    async def test_more_last_events_than_there_are_gives_all(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        assert await numbers(store.read_all(last=100)) == [1, 2, 3, 4, 5]

    @case("C187")
    async def test_the_last_events_are_counted_among_those_that_match(self, store: EventStore) -> None:
        for n in range(10):
            await store.append("even-1" if n % 2 == 0 else "odd-1", happened(n))
        assert await numbers(store.read_all(last=2, where=EventFilter(kinds=("even",)))) == [6, 8]

    async def test_an_empty_log_has_no_events(self, store: EventStore) -> None:
        assert await collect(store.read_all()) == []
        assert await collect(store.read_all(last=3)) == []
        page = await store.read_page()
        assert (list(page.events), page.position, page.is_end) == ([], 0, True)

    @case("C188")
    async def test_a_tag_finds_the_events_that_carry_it(self, store: EventStore) -> None:
        await store.append("a", [tagged(1, "x"), Happened(number=2), tagged(3, "y"), tagged(4, "x", "y")])
        assert await numbers(store.read_all(where=EventFilter(tags=("x",)))) == [1, 4]
        assert await numbers(store.read_all(where=EventFilter(tags=("y",)))) == [3, 4]

    @case("C188")
    async def test_a_tagged_event_comes_with_all_its_tags(self, store: EventStore) -> None:
        await store.append("a", [tagged(1, "x", "y")])
        [recorded] = await collect(store.read_all(where=EventFilter(tags=("y",))))
        assert recorded.metadata == Metadata(tags=("x", "y"))

    @case("C188")
    async def test_a_tag_is_read_after_a_position(self, store: EventStore) -> None:
        ack = await store.append("a", [tagged(1, "x")])
        await store.append("a", [Happened(number=2), tagged(3, "x")])
        assert await numbers(store.read_all(after=ack.position, where=EventFilter(tags=("x",)))) == [3]

    @case("C188")
    async def test_an_unknown_tag_finds_nothing(self, store: EventStore) -> None:
        await store.append("a", [tagged(1, "x"), tagged(2, "x%", "X", " x")])
        for tag in ("z", "", "%", "_", '"'):
            assert await numbers(store.read_all(where=EventFilter(tags=(tag,)))) == []

    @case("C188")
    @pytest.mark.parametrize("tag", ["X", "x y", 'say "x"', "back\\slash", "50%", "\u00e9", "\U0001f600", "[1,2]"])
    async def test_a_tag_is_compared_character_for_character(self, store: EventStore, tag: str) -> None:
        await store.append("a", [tagged(1, "x", "50", "e"), tagged(2, tag)])
        assert await numbers(store.read_all(where=EventFilter(tags=(tag,)))) == [2]

    @case("C188")
    async def test_a_tag_is_found_beside_what_a_database_may_not_parse(self, store: EventStore) -> None:
        odd: dict[str, JsonValue] = {"nul": "\0", "number": 2.0**1023}
        for number, tags in enumerate((("x",), ("y",), (), ("x", "y"), ())):
            await store.append("a", [NewEvent(Happened(number=number), metadata=Metadata(tags=tags, values=odd))])
        assert await numbers(store.read_all(where=EventFilter(tags=("x",)))) == [0, 3]
        assert await numbers(store.read_all(where=EventFilter(tags=("z", "nul")))) == []
        assert await numbers(store.read_all(last=1, where=EventFilter(tags=("y",)))) == [3]
        assert await numbers(store.read_all(last=2, where=EventFilter(tags=("x",)))) == [0, 3]
        assert await numbers(store.read_all(last=3, where=EventFilter(tags=("x", "y")))) == [0, 1, 3]

    @case("C188")
    async def test_tags_that_events_declare_are_found_beside_those_they_are_given(self, store: EventStore) -> None:
        given = Metadata(user="ann", tags=("x", "money"))
        ann, bob = Charged(number=1, customer="ann"), Charged(number=2, customer="bob")
        await store.append("a", [ann, NewEvent(bob, metadata=given), Happened(number=3)])
        assert await numbers(store.read_all(where=EventFilter(tags=("money",)))) == [1, 2]
        assert await numbers(store.read_all(where=EventFilter(tags=("customer-bob", "x")))) == [2]
        own = ("money", "charged", "customer-ann")
        assert [recorded.metadata async for recorded in store.read("a")] == [
            Metadata(tags=own),
            Metadata(user="ann", tags=("x", "money", "charged", "customer-bob")),
            None,
        ]

    async def test_a_tag_is_not_found_in_other_metadata(self, store: EventStore) -> None:
        metadata = Metadata(user="x", correlation_id="x", values={"tags": ["x"]})
        await store.append("a", [NewEvent(Happened(number=1), metadata=metadata)])
        assert await collect(store.read_all(where=EventFilter(tags=("x",)))) == []

    async def test_a_kind_is_what_stands_before_the_first_dash(self, store: EventStore) -> None:
        for n, stream_id in enumerate(["order-1", "orders-1", "order", "order-1-2", "Order-1", "-order", "orde_-1"]):
            await store.append(stream_id, happened(n))
        assert await numbers(store.read_all(where=EventFilter(kinds=("order",)))) == [0, 2, 3]
        assert await numbers(store.read_all(where=EventFilter(kinds=("orde_",)))) == [6]

    async def test_a_type_finds_its_events(self, store: EventStore) -> None:
        await store.append("a", [Happened(number=1), Noted(text=""), Happened(number=2)])
        assert await numbers(store.read_all(where=EventFilter(types=("conformance.happened",)))) == [1, 2]
        assert await collect(store.read_all(where=EventFilter(types=("conformance",)))) == []

    async def test_stream_ids_find_their_events(self, store: EventStore) -> None:
        for n, stream_id in enumerate(["a", "b", "c", "a"]):
            await store.append(stream_id, happened(n))
        assert await numbers(store.read_all(where=EventFilter(stream_ids=("a", "c", "unknown")))) == [0, 2, 3]

    async def test_a_filter_may_name_thousands_of_streams(self, store: EventStore) -> None:
        await store.append("s-7", happened(1))
        await store.append("other", happened(2))
        await store.append("s-1999", happened(3))
        where = EventFilter(stream_ids=tuple(f"s-{n}" for n in range(2000)))
        assert await numbers(store.read_all(where=where)) == [1, 3]

    async def test_one_value_of_each_field_must_match(self, store: EventStore) -> None:
        await store.append("a-1", [tagged(1, "x"), tagged(2, "y"), tagged(3, "z")])
        await store.append("b-1", [tagged(4, "x"), tagged(5, "z")])
        await store.append("c-1", [tagged(6, "x")])
        assert await numbers(store.read_all(where=EventFilter(kinds=("a", "b"), tags=("x", "y")))) == [1, 2, 4]
        assert await numbers(store.read_all(where=EventFilter(stream_ids=("a-1",), kinds=("b",)))) == []
        assert await numbers(store.read_all(where=EventFilter(types=("other",), tags=("x",)))) == []

    @case("C206")
    async def test_a_page_is_counted_through_events_that_do_not_match(self, store: EventStore) -> None:
        await store.append("a-1", happened(1, 2))
        ack = await store.append("b-1", happened(3))
        page = await store.read_page(where=EventFilter(kinds=("a",)))
        assert (len(page.events), page.position >= ack.position, page.is_end) == (2, True, True)

    @case("C206")
    async def test_a_filter_that_nothing_passes_still_comes_to_the_end(self, store: EventStore) -> None:
        ack = await store.append("a-1", happened(*range(20)))
        page = await store.read_page(where=EventFilter(kinds=("b",)), limit=3)
        for _ in range(20):
            page = await store.read_page(after=page.position, where=EventFilter(kinds=("b",)), limit=3)
        assert (page.position >= ack.position, page.is_end) == (True, True)

    @case("C206")
    async def test_whoever_continues_from_pages_misses_nothing(self, store: EventStore) -> None:
        position, found = 0, list[int]()
        for n in range(30):
            await store.append("a-1" if n % 3 == 0 else "b-1", happened(n))
            page = await store.read_page(after=position, limit=2, where=EventFilter(kinds=("a",)))
            position = page.position
            found += [record.json()["number"] for record in page.events]
        assert found == list(range(0, 30, 3))

    async def test_whoever_follows_the_log_beside_many_writers_misses_nothing(self, store: EventStore) -> None:
        appends = asyncio.gather(*(store.append(f"s-{n % 5}", happened(n, n)) for n in range(100)))
        position, seen = 0, list[tuple[int, str, int]]()
        for _ in range(10_000):
            # Asked before the read: what is appended during it may be on the next page.
            was_done = appends.done()
            page = await store.read_page(after=position, limit=7)
            position = page.position
            seen += [(record.position, record.stream_id, record.version) for record in page.events]
            if was_done and page.is_end:
                break
            await asyncio.sleep(0)
        await appends
        assert seen == [(r.position, r.stream_id, r.version) for r in await collect(store.read_all())]

    @case("C089")
    async def test_times_are_in_utc_and_of_now(self, store: EventStore) -> None:
        before = datetime.now(UTC) - timedelta(minutes=1)
        await store.append("a", happened(1))
        [recorded] = await collect(store.read("a"))
        assert recorded.recorded_at.utcoffset() == timedelta(0)
        assert before < recorded.recorded_at < before + timedelta(minutes=2)

    @case("C089")
    async def test_times_never_fall(self, store: EventStore) -> None:
        for n in range(50):
            await store.append(f"s-{n % 3}", happened(n))
        times = [record.recorded_at for record in await collect(store.read_all())]
        assert times == sorted(times)

    @case("C089")
    async def test_times_never_fall_when_the_clock_is_set_back(
        self, store: EventStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await _append_an_hour_ahead(store, monkeypatch)
        await store.append("b", happened(2))
        earlier, later = await collect(store.read_all())
        assert later.recorded_at >= earlier.recorded_at

    @case("C089")
    async def test_times_never_fall_when_the_clock_was_set_back_while_the_store_was_closed(
        self, store: EventStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await _append_an_hour_ahead(store, monkeypatch)
        async with reopened(store) as again:
            await again.append("b", happened(2))
            earlier, later = await collect(again.read_all())
        assert later.recorded_at >= earlier.recorded_at

    @case("C190")
    async def test_every_stream_is_listed_once(self, store: EventStore) -> None:
        await store.append("a", happened(*range(100)))
        await store.append("b", happened(1))
        await store.append("a", happened(1))
        assert await collect(store.streams()) == [StreamInfo("a", 101, 0), StreamInfo("b", 1, 0)]

    @case("C190")
    async def test_a_new_stream_is_listed_at_once(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        await collect(store.streams())
        await store.append("b", happened(1))
        assert [info.stream_id for info in await collect(store.streams())] == ["a", "b"]

    @case("C190")
    async def test_a_stream_that_is_only_a_snapshot_is_listed(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        await store.save_snapshot(new_snapshot("b", 3, "f", b"{}"))
        assert await collect(store.streams()) == [StreamInfo("a", 1, 0), StreamInfo("b", 0, 0)]

    @case("C190")
    async def test_a_stream_that_was_only_claimed_is_not_listed(self, store: EventStore) -> None:
        await store.claim("a")
        assert await collect(store.streams()) == []
        assert (await store.statistics()).streams == 0

    @case("C190")
    async def test_a_stream_whose_only_snapshot_was_deleted_is_not_listed(self, store: EventStore) -> None:
        await store.save_snapshot(new_snapshot("a", 3, "f", b"{}"))
        await store.delete_snapshots("a")
        assert await collect(store.streams()) == []
        assert (await store.statistics()).streams == 0

    @case("C190")
    @pytest.mark.parametrize("page_size", [1, 2, 5, 1000])
    async def test_streams_are_listed_in_the_order_of_their_bytes(self, store: EventStore, page_size: int) -> None:
        for stream_id in reversed(SORTED_IDS):
            await store.append(stream_id, happened(1))
        assert [info.stream_id for info in await collect(store.streams(page_size=page_size))] == SORTED_IDS

    @case("C190")
    async def test_streams_of_one_kind_are_listed_alone(self, store: EventStore) -> None:
        for stream_id in SORTED_IDS:
            await store.append(stream_id, happened(1))
        listed = await collect(store.streams(kind="a", page_size=2))
        assert [info.stream_id for info in listed] == ["a", "a-1", "a-10", "a-2"]
        assert await collect(store.streams(kind="unknown")) == []


async def _append_an_hour_ahead(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Append with this process's clock an hour ahead. Skips where the store's clock is another one."""
    ahead = time.time() + 3600
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: ahead)
        clock.setattr(time, "time_ns", lambda: int(ahead * 1e9))
        await store.append("a", happened(1))
    [recorded] = await collect(store.read("a"))
    if recorded.recorded_at < datetime.now(UTC) + timedelta(minutes=30):
        pytest.skip("the store's clock is not this process's: test with a clock of its own that it may jump")
