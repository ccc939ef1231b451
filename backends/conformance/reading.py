"""Reading one stream: ranges, both directions, pages, and what rebuilding a state needs."""

from __future__ import annotations

import asyncio

import pytest

from backends.conformance.cases import case
from backends.conformance.events import closing, collect, happened, numbers, tagged, versions, write
from backends.conformance.fixtures import StoreFixtures
from eventstore.backend import NO_EVENTS, Backend, EncodedEvent, EventFilter, Load, Loaded, StreamWrite
from eventstore.codec import checksum_of, encoded_event, new_event_id
from eventstore.errors import InvalidArgument, JournalCorrupt, StoreClosed
from eventstore.store import Append, EventStore

PATIENCE = 20.0


async def _filled(store: EventStore, count: int = 5) -> None:
    await store.append("a", happened(*range(1, count + 1)))


class Reading(StoreFixtures):
    @case("C069")
    async def test_a_read_gives_the_whole_stream(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a")) == [1, 2, 3, 4, 5]
        assert await store.version("a") == 5

    @case("C070")
    async def test_a_read_starts_after_a_version(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", after=2)) == [3, 4, 5]

    @case("C071")
    async def test_a_read_goes_through_a_version(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", through=3)) == [1, 2, 3]

    @case("C072")
    async def test_a_read_stops_at_its_limit(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", limit=3)) == [1, 2, 3]

    @case("C073")
    async def test_a_range_holds_its_upper_end_and_not_its_lower_one(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", after=1, through=3)) == [2, 3]

    @case("C074")
    async def test_a_limit_cuts_a_range(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", after=1, through=5, limit=2)) == [2, 3]

    @case("C075")
    async def test_a_range_of_one_gives_one_event(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", after=1, through=2)) == [2]

    @case("C076")
    async def test_a_limit_of_one_gives_the_first_of_a_range(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", after=1, through=4, limit=1)) == [2]

    @case("C077")
    async def test_a_limit_of_none_gives_nothing(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", after=1, through=4, limit=0)) == []

    @case("C078")
    async def test_a_range_that_ends_before_it_starts_gives_nothing(self, store: EventStore) -> None:
        await _filled(store)
        assert await versions(store.read("a", after=2, through=2)) == []
        assert await versions(store.read("a", after=4, through=1)) == []

    @case("C071", "C072", "C077", "C078")
    @pytest.mark.parametrize(
        ("after", "through", "limit"), [(0, 3, 10), (0, None, 3), (1, 4, 0), (2, 2, 10), (4, 1, 10), (9, None, 10)]
    )
    async def test_a_page_tells_the_version_of_the_stream_whatever_its_range(
        self, store: EventStore, backend: Backend, after: int, through: int | None, limit: int
    ) -> None:
        await _filled(store)
        page = await backend.read_stream("a", after=after, through=through, limit=limit, backwards=False)
        assert (page.version, page.truncated) == (5, 0)

    @case("C079", "C083")
    @pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
    async def test_an_unknown_stream_is_empty_at_version_zero(self, store: EventStore, backwards: bool) -> None:
        await store.append("b", happened(1))
        assert await versions(store.read("a", backwards=backwards)) == []
        assert await store.version("a") == 0

    @case("C079")
    async def test_reading_creates_no_stream(self, store: EventStore) -> None:
        await versions(store.read("a"))
        await store.version("a")
        await store.load(Load("a"))
        assert await collect(store.streams()) == []

    @case("C080")
    async def test_a_range_before_the_first_and_one_behind_the_last_event_are_empty(self, store: EventStore) -> None:
        await _filled(store, 3)
        assert await versions(store.read("a", after=0, through=0)) == []
        assert await versions(store.read("a", after=3, through=3)) == []
        assert await versions(store.read("a", after=3, through=9)) == []

    async def test_a_range_may_reach_beyond_both_ends(self, store: EventStore) -> None:
        await _filled(store, 3)
        assert await versions(store.read("a", after=0, through=2**40)) == [1, 2, 3]

    async def test_a_number_that_no_database_holds_counts_as_the_nearest_that_it_does(self, store: EventStore) -> None:
        await _filled(store, 3)
        below, above = -(2**70), 2**70
        assert await versions(store.read("a", after=below, through=above)) == [1, 2, 3]
        assert len((await store.read_page(after=below, limit=above)).events) == 3
        assert dict((await store.moved(after=below, limit=above)).versions) == {"a": 3}
        assert list(await store.snapshots("a", through=above, limit=above)) == []
        assert await store.delete_snapshots("a", through=above) == 0
        assert await store.forget_commands("a", keep=above) == 0

    async def test_a_page_of_less_than_nothing_is_refused(self, store: EventStore) -> None:
        with pytest.raises(InvalidArgument):
            await store.read_page(limit=-1)

    @case("C081")
    @pytest.mark.parametrize(
        ("after", "through", "limit", "expected"),
        [
            (0, None, 2, [5, 4]),
            (0, None, None, [5, 4, 3, 2, 1]),
            (0, 3, 2, [3, 2]),
            (2, None, None, [5, 4, 3]),
            (2, 4, None, [4, 3]),
            (0, 9, 1, [5]),
            (5, None, 2, []),
            (0, 0, 2, []),
        ],
        ids=["the end", "all", "the middle", "after", "a range", "beyond the end", "past the end", "past the start"],
    )
    async def test_a_stream_is_read_backwards(
        self, store: EventStore, after: int, through: int | None, limit: int | None, expected: list[int]
    ) -> None:
        await _filled(store)
        found = await versions(store.read("a", after=after, through=through, limit=limit, backwards=True))
        assert found == expected

    @case("C082")
    @pytest.mark.parametrize("page_size", [1, 2, 3, 1000])
    async def test_the_size_of_pages_changes_nothing(self, store: EventStore, page_size: int) -> None:
        await _filled(store)
        assert await versions(store.read("a", page_size=page_size)) == [1, 2, 3, 4, 5]
        assert await versions(store.read("a", page_size=page_size, limit=4)) == [1, 2, 3, 4]
        assert await versions(store.read("a", page_size=page_size, backwards=True)) == [5, 4, 3, 2, 1]
        assert await versions(store.read("a", page_size=page_size, after=1, through=4, backwards=True)) == [4, 3, 2]
        assert await versions(store.read("a", page_size=page_size, after=5)) == []

    async def test_a_stream_holds_its_own_events_alone(self, store: EventStore) -> None:
        for n in range(3):
            await store.append("a", happened(n))
            await store.append("b", happened(n))
        assert {record.stream_id for record in await collect(store.read("a"))} == {"a"}

    async def test_a_record_read_from_its_stream_is_the_one_read_from_the_log(self, store: EventStore) -> None:
        await _filled(store)
        assert await collect(store.read("a")) == await collect(store.read_all())

    async def test_a_crowd_of_readers_is_served(self, store: EventStore) -> None:
        await _filled(store)
        async with asyncio.timeout(PATIENCE):
            found = await asyncio.gather(*(versions(store.read("a", page_size=2)) for _ in range(200)))
        assert found == [[1, 2, 3, 4, 5]] * 200

    async def test_cancelled_readers_leave_the_others(self, store: EventStore) -> None:
        await _filled(store)
        reads = [asyncio.create_task(versions(store.read("a", page_size=1))) for _ in range(60)]
        await asyncio.sleep(0.002)
        for read in reads[::2]:
            read.cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*reads[::2], return_exceptions=True)
            assert await asyncio.gather(*reads[1::2]) == [[1, 2, 3, 4, 5]] * 30
            assert await versions(store.read("a")) == [1, 2, 3, 4, 5]

    async def test_readers_at_work_are_not_left_waiting_when_the_store_is_closed(self, store: EventStore) -> None:
        await _filled(store)
        reads = [asyncio.create_task(versions(store.read("a", page_size=1))) for _ in range(30)]
        await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            await store.close()
            outcomes = await asyncio.gather(*reads, return_exceptions=True)
        assert all(outcome == [1, 2, 3, 4, 5] or isinstance(outcome, StoreClosed) for outcome in outcomes)

    async def test_a_load_gives_what_replay_needs(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        loaded = await store.load(Load("a"))
        assert (loaded.snapshot, loaded.version, loaded.truncated) == (None, 2, 0)
        expected = checksum_of("conformance.happened", 1, b'{"number":2}', None)
        assert list(loaded.events)[1:] == [(2, "conformance.happened", 1, b'{"number":2}', expected)]

    async def test_a_load_gives_each_event_what_is_its_own_whatever_stands_beside_it(
        self, store: EventStore, backend: Backend
    ) -> None:
        # One type as long as another, then a shorter one; alone and in batches; with and without metadata.
        kinds = [("one.kind", 1, None), ("two.kind", 1, None), ("two.kind", 2, b'{"user":"u"}'), ("short", 1, None)]
        order = [0, 0, 1, 1, 0, 1, 2, 2, 1, 3, 3, 0, 2, 0, 3]
        sizes = [1, 1, 2, 1, 3, 2, 4, 1]
        stored: list[tuple[int, str, int, bytes, int]] = []
        for size in (*sizes, *sizes):
            events: list[EncodedEvent] = []
            for version in range(len(stored) + 1, len(stored) + size + 1):
                type_, schema_version, metadata = kinds[order[(version - 1) % len(order)]]
                own, payload = new_event_id(), b'{"number":%d}' % version
                batch_id = events[0].event_id if events else own
                events.append(encoded_event(own, type_, schema_version, payload, metadata, batch_id))
                stored.append((version, type_, schema_version, payload, events[-1].checksum))
            await backend.append([[StreamWrite("a", stored[-1][0] - size, events)]])
        for after in (0, 1, 4, 11, 29):
            assert list((await store.load(Load("a", after))).events) == stored[after:]

    async def test_the_checksum_of_an_event_is_stored_with_it(self, store: EventStore) -> None:
        await store.append("a", [tagged(7, "x"), *happened(8)])
        expected = [
            checksum_of("conformance.happened", 1, b'{"number":7}', b'{"tags":["x"]}'),
            checksum_of("conformance.happened", 1, b'{"number":8}', None),
        ]
        assert [recorded.checksum for recorded in await collect(store.read("a"))] == expected
        assert [recorded.checksum for recorded in await collect(store.read_all())] == expected
        assert [checksum for *_, checksum in (await store.load(Load("a"))).events] == expected

    @pytest.mark.parametrize("bit", [0, 31, 32, 62])
    async def test_a_checksum_comes_back_bit_for_bit(self, store: EventStore, backend: Backend, bit: int) -> None:
        await backend.append([[_altered(write("a", b"1"), bit)]])
        loaded = await store.load(Load("a"))
        assert [checksum for *_, checksum in loaded.events] == [
            checksum_of("conformance.happened", 1, b"1", None) ^ 1 << bit
        ]

    @pytest.mark.parametrize("bit", [0, 31, 32, 62])
    async def test_an_event_that_does_not_match_its_checksum_is_named_by_who_reads_it(
        self, store: EventStore, backend: Backend, bit: int
    ) -> None:
        await store.append("a", happened(1))
        await backend.append([[_altered(write("a", b"2"), bit), write("b", b"3")]])
        for read in (store.read("a"), store.read("a", backwards=True), store.read_all()):
            with pytest.raises(JournalCorrupt, match="version 2 is damaged") as caught:
                await collect(read)
            assert (caught.value.stream_id, caught.value.version, caught.value.position) == ("a", 2, 2)
        # It is in nobody's way who does not read it.
        assert await versions(store.read("a", through=1)) == [1]
        assert await versions(store.read("b")) == [1]
        assert await versions(store.read_all(after=2)) == [1]
        assert await store.version("a") == 2

    async def test_the_log_can_be_read_past_damaged_events(self, store: EventStore, backend: Backend) -> None:
        for number in range(1, 41):
            stream_id = "b" if number % 5 == 0 else "a"
            written = write(stream_id, b'{"number":%d}' % number)
            await backend.append([[_altered(written, 3) if number in (1, 2, 15, 16, 40) else written]])
        damage: list[JournalCorrupt] = []
        seen = await numbers(store.read_all(on_damage=damage.append))
        assert seen == [number for number in range(1, 41) if number not in (1, 2, 15, 16, 40)]
        assert [error.position for error in damage] == [1, 2, 15, 16, 40]
        assert [error.stream_id for error in damage] == ["a", "a", "b", "a", "b"]
        of_b = store.read_all(where=EventFilter(kinds=("b",)), page_size=3, on_damage=lambda _: None)
        assert await numbers(of_b) == [5, 10, 20, 25, 30, 35]
        assert await numbers(store.read_all(after=10, limit=6, on_damage=lambda _: None)) == [11, 12, 13, 14, 17, 18]
        async with closing(store.subscribe(page_size=4, on_damage=lambda _: None)) as events:
            assert [(await anext(events)).json()["number"] for _ in range(len(seen))] == seen

    async def test_a_load_starts_after_a_version_and_stops_at_its_limit(self, store: EventStore) -> None:
        await _filled(store)
        loaded = await store.load(Load("a", after=1, limit=2))
        assert _versions(loaded) == [2, 3]
        assert loaded.version == 5

    async def test_a_load_of_nothing_new_tells_the_version(self, store: EventStore) -> None:
        await _filled(store)
        loaded = await store.load(Load("a", after=5))
        assert (_versions(loaded), loaded.version) == ([], 5)

    async def test_a_load_of_an_unknown_stream_is_empty(self, store: EventStore) -> None:
        loaded = await store.load(Load("a"))
        assert list(loaded.events) == []
        assert loaded._replace(events=NO_EVENTS) == Loaded(None, NO_EVENTS, 0, 0)

    async def test_many_loads_are_answered_in_their_order(self, store: EventStore, backend: Backend) -> None:
        for n in range(1, 6):
            await store.append(f"s-{n}", happened(*range(n)))
        loads = [Load("s-5"), Load("unknown"), Load("s-1"), Load("s-3", after=1), Load("s-3", limit=1), Load("s-5")]
        answers = [answer for answer in await backend.load(loads) if isinstance(answer, Loaded)]
        assert [_versions(answer) for answer in answers] == [
            [1, 2, 3, 4, 5],
            [],
            [1],
            [2, 3],
            [1],
            [1, 2, 3, 4, 5],
        ]

    async def test_a_thousand_loads_are_answered(self, store: EventStore, backend: Backend) -> None:
        await store.append_batch([Append(f"s-{n}", happened(n)) for n in range(0, 1000, 2)])
        answers = await backend.load([Load(f"s-{n}") for n in range(1000)])
        assert [answer.version for answer in answers if isinstance(answer, Loaded)] == [1, 0] * 500

    async def test_events_that_are_large_together_are_read_whole(self, store: EventStore, backend: Backend) -> None:
        # More than a driver or a server may want to hold in one reply.
        payloads = [b'"%d%s"' % (n % 10, b"x" * 2**20) for n in range(24)]
        for payload in payloads:
            await backend.append([[write("a", payload)]])
        # A page of a stream that is not full says that the stream ends there.
        page = await backend.read_stream("a", after=0, through=None, limit=23, backwards=False)
        assert [record.payload for record in page.events] == payloads[:23]
        assert [record.payload for record in await collect(store.read("a", backwards=True))] == payloads[::-1]
        assert [record.payload for record in await collect(store.read_all())] == payloads
        loaded, small = await backend.load([Load("a"), Load("b")])
        assert isinstance(loaded, Loaded)
        # A load may bring less than its limit. Who wants more goes on behind it.
        assert 0 < len(loaded.events) <= 24
        assert (_versions(loaded), loaded.version) == (list(range(1, len(loaded.events) + 1)), 24)
        assert isinstance(small, Loaded)

    async def test_a_load_of_none_is_answered(self, backend: Backend) -> None:
        assert list(await backend.load([])) == []


def _altered(written: StreamWrite, bit: int) -> StreamWrite:
    """The write with a bit of its event's checksum changed."""
    (event,) = written.events
    return written._replace(events=[event._replace(checksum=event.checksum ^ 1 << bit)])


def _versions(loaded: Loaded) -> list[int]:
    return [version for version, *_ in loaded.events]
