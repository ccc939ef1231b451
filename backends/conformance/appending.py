"""Appending: what is stored is what was given, numbered without holes, and acknowledged once it is there."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from backends.conformance.cases import case
from backends.conformance.events import (
    Colour,
    Described,
    Happened,
    Listed,
    Noted,
    Place,
    Unwritable,
    collect,
    happened,
    numbers,
    tagged,
    versions,
    write,
)
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import Appended, Backend, EventFilter, Load
from eventstore.errors import EventEncodeError, StoreClosed
from eventstore.events import Metadata, NewEvent
from eventstore.store import EventStore

DESCRIBED = Described(
    amount=Decimal("10.10"),
    at=datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
    id=UUID(int=7),
    colour=Colour.RED,
    place=Place(street="Main St"),
    pair=(1, "one"),
    data=bytes(range(256)),
    share=0.1,
)

# JSON that a database with a JSON type of its own would write in another way.
ODD_JSON = {
    "spaces": b'{ "b" : 1,\r\n\t"a" : 2 }',
    "repeated key": b'{"a":1,"a":2}',
    "escapes": rb'{"a":"\u0041\/\u00e9"}',
    "half a pair": rb'{"a":"\ud83d"}',
    "escaped NUL": rb'{"a":"\u0000"}',
    "zeros": b'{"a":1.0,"b":-0.0,"c":1E2,"d":1e+02}',
    "many digits": b'{"a":123456789012345678901234567890,"b":0.1000000000000000055511151231257827}',
    "out of range": b'{"a":1e400}',
    "no object": b'[null,true,"x",[],{}]',
    "one string": b'"x"',
    "null": b"null",
}


class Appending(StoreFixtures):
    @case("C001")
    async def test_appends_are_acknowledged_with_their_versions(self, store: EventStore) -> None:
        acks = [await store.append("a", events) for events in (happened(1), happened(2), happened(3), happened(4, 5))]
        assert [ack.versions for ack in acks] == [(1,), (2,), (3,), (5,)]

    @case("C001")
    async def test_events_come_back_equal_and_in_order(self, store: EventStore) -> None:
        for events in (happened(1), happened(2), happened(3), happened(4, 5)):
            await store.append("a", events)
        recorded = await collect(store.read("a"))
        assert [record.version for record in recorded] == [1, 2, 3, 4, 5]
        assert [store.decode(record) for record in recorded] == happened(1, 2, 3, 4, 5)

    async def test_an_acknowledgement_names_the_position_of_the_last_event(self, store: EventStore) -> None:
        ack = await store.append("a", happened(1, 2))
        assert [record.position for record in await collect(store.read_all())][-1] == ack.position

    async def test_a_first_append_is_no_duplicate(self, store: EventStore) -> None:
        assert not (await store.append("a", happened(1))).is_duplicate

    @case("C002", "C057")
    async def test_an_append_of_no_events_succeeds_at_the_current_version(self, store: EventStore) -> None:
        assert await store.append("a", []) == Appended(0, (0,))
        await store.append("a", happened(1, 2))
        assert await store.append("a", [], expected_version=2) == Appended(0, (2,))

    @case("C002", "C057")
    async def test_an_append_of_no_events_creates_no_stream(self, store: EventStore) -> None:
        await store.append("a", [])
        assert await collect(store.streams()) == []
        assert await collect(store.read_all()) == []

    @case("C002")
    async def test_an_append_of_no_events_takes_no_version_and_no_position(self, store: EventStore) -> None:
        before = await store.append("a", happened(1))
        for _ in range(3):
            await store.append("a", [])
        after = await store.append("a", happened(2))
        assert (after.versions, after.position) == ((2,), before.position + 1)

    async def test_an_empty_batch_stores_nothing(self, store: EventStore) -> None:
        assert await store.append_batch([]) == Appended(0, ())

    @case("C003")
    async def test_a_later_append_continues_the_versions(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        await store.append("a", happened(6, 7, 8))
        assert await versions(store.read("a", after=5)) == [6, 7, 8]

    @case("C004")
    async def test_versions_start_at_one_in_every_stream(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        assert (await store.append("b", happened(1))).versions == (1,)

    @case("C004")
    async def test_positions_start_at_one(self, store: EventStore) -> None:
        assert (await store.append("a", happened(1))).position == 1

    @case("C005")
    async def test_a_batch_has_one_time(self, store: EventStore) -> None:
        await store.append("a", happened(*range(10)))
        assert len({record.recorded_at for record in await collect(store.read("a"))}) == 1

    @case("C005")
    async def test_a_batch_is_named_by_its_first_event(self, store: EventStore) -> None:
        await store.append("a", happened(*range(10)))
        recorded = await collect(store.read("a"))
        assert {record.batch_id for record in recorded} == {recorded[0].event_id}

    async def test_separate_appends_are_separate_batches(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        await store.append("a", happened(2))
        first, second = await collect(store.read("a"))
        assert first.batch_id != second.batch_id

    @case("C005", "C026")
    async def test_each_event_of_a_batch_has_the_tags_given_to_it(self, store: EventStore) -> None:
        await store.append("a", [tagged(1, "x"), tagged(2, "y", "z"), Happened(number=3), Noted(text="4")])
        metadata = [record.metadata for record in await collect(store.read("a"))]
        assert metadata == [Metadata(tags=("x",)), Metadata(tags=("y", "z")), None, None]

    @case("C006")
    async def test_metadata_comes_back_equal(self, store: EventStore) -> None:
        given = Metadata(
            correlation_id="k",
            causation_id="c",
            command_id="d",
            user="ünï",
            traceparent="00-1-2-01",
            tags=("x", "y"),
            values={"nested": {"list": [1, None, "é"]}, "flag": True},
        )
        await store.append("a", [NewEvent(Happened(), metadata=given)])
        [recorded] = await collect(store.read("a"))
        assert recorded.metadata == given

    @case("C006")
    async def test_absent_metadata_comes_back_as_absent_and_empty_as_empty(self, store: EventStore) -> None:
        await store.append("a", [Happened(), NewEvent(Happened(), metadata=Metadata())])
        assert [record.metadata for record in await collect(store.read("a"))] == [None, Metadata()]

    @case("C007")
    async def test_correlation_and_causation_of_one_event_are_not_those_of_the_next(self, store: EventStore) -> None:
        linked = Metadata(correlation_id="k", causation_id="c")
        await store.append("a", [NewEvent(Happened(), metadata=linked), NewEvent(Happened(), metadata=Metadata())])
        found = [record.metadata for record in await collect(store.read("a"))]
        assert [(m.correlation_id, m.causation_id) for m in found if m] == [("k", "c"), (None, None)]

    @case("C008")
    async def test_an_event_keeps_the_id_it_was_given(self, store: EventStore) -> None:
        given = uuid4()
        await store.append("a", [NewEvent(Happened(), event_id=given)])
        [recorded] = await collect(store.read("a"))
        assert recorded.event_id == given

    @case("C008")
    async def test_events_without_an_id_get_one_each(self, store: EventStore) -> None:
        await store.append("a", happened(*range(50)))
        await store.append("b", happened(*range(50)))
        assert len({record.event_id for record in await collect(store.read_all())}) == 100

    @case("C009")
    async def test_a_rich_event_comes_back_equal(self, store: EventStore) -> None:
        await store.append("a", [DESCRIBED])
        [recorded] = await collect(store.read("a"))
        assert store.decode(recorded) == DESCRIBED

    async def test_numbers_that_json_does_not_have_come_back(self, store: EventStore) -> None:
        shares = (math.inf, -math.inf, math.nan)
        await store.append("a", [DESCRIBED.model_copy(update={"share": share}) for share in shares])
        decoded = [store.decode(record) for record in await collect(store.read("a"))]
        assert [repr(event.share) for event in decoded if isinstance(event, Described)] == ["inf", "-inf", "nan"]

    @case("C010")
    async def test_an_event_that_cannot_be_written_leaves_no_hole(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        with pytest.raises(EventEncodeError):
            await store.append("a", [Happened(number=2), Unwritable(value=object())])
        await store.append("a", happened(3))
        assert await versions(store.read("a")) == [1, 2]
        assert await numbers(store.read("a")) == [1, 3]

    @case("C012")
    async def test_events_are_stored_under_their_names_and_schema_versions(self, store: EventStore) -> None:
        await store.append("a", [Happened(), Noted(text=""), DESCRIBED])
        assert [(record.type, record.schema_version) for record in await collect(store.read("a"))] == [
            ("conformance.happened", 1),
            ("conformance.noted", 1),
            ("conformance.described", 3),
        ]

    @case("C018")
    @pytest.mark.parametrize(
        "text",
        [
            "\U0001f469\u200d\U0001f680\U0001f600",
            "\u202eשלום مرحبا",
            "e\u0301 é A\u030a Å ﬁ",
            "\0\x01\x7f\u2028\ufeff",
        ],
        ids=["emoji", "right to left", "combining", "control"],
    )
    async def test_text_comes_back_as_it_was(self, store: EventStore, text: str) -> None:
        await store.append("a", [Noted(text=text)])
        [recorded] = await collect(store.read("a"))
        assert store.decode(recorded) == Noted(text=text)

    @pytest.mark.parametrize("payload", ODD_JSON.values(), ids=ODD_JSON)
    async def test_a_payload_comes_back_byte_for_byte(self, backend: Backend, payload: bytes) -> None:
        await backend.append([[write("a", payload)]])
        page = await backend.read_stream("a", after=0, through=None, limit=1, backwards=False)
        assert [record.payload for record in page.events] == [payload]

    @pytest.mark.parametrize("payload", ODD_JSON.values(), ids=ODD_JSON)
    async def test_a_payload_is_loaded_byte_for_byte(self, store: EventStore, backend: Backend, payload: bytes) -> None:
        await backend.append([[write("a", payload)]])
        loaded = await store.load(Load("a"))
        assert [stored for *_, stored, _ in loaded.events] == [payload]

    @case("C019")
    async def test_an_event_of_a_mebibyte_is_stored(self, store: EventStore) -> None:
        event = Noted(text="x\u00e9" * (2**20 // 3))
        await store.append("a", [event])
        [recorded] = await collect(store.read("a"))
        assert store.decode(recorded) == event

    @case("C023")
    async def test_a_batch_of_a_thousand_events_is_one_append(self, store: EventStore) -> None:
        ack = await store.append("a", happened(*range(1000)))
        assert ack.versions == (1000,)
        recorded = await collect(store.read("a"))
        assert [record.version for record in recorded] == list(range(1, 1001))
        assert len({record.batch_id for record in recorded}) == 1

    @case("C025")
    async def test_what_is_acknowledged_is_seen_by_another_store(self, store: EventStore, other: EventStore) -> None:
        await store.append("a", happened(1))
        assert await numbers(other.read("a")) == [1]
        assert await numbers(other.read_all()) == [1]

    async def test_events_are_there_after_the_store_was_closed_and_opened(self, store: EventStore) -> None:
        await store.append("a", [tagged(1, "x"), DESCRIBED])
        before = await collect(store.read_all())
        async with reopened(store) as again:
            assert await collect(again.read_all()) == before

    async def test_versions_and_positions_continue_after_the_store_was_closed(self, store: EventStore) -> None:
        before = await store.append("a", happened(1, 2))
        async with reopened(store) as again:
            after = await again.append("a", happened(3), expected_version=2)
        assert after.versions == (3,)
        assert after.position > before.position

    @case("C028")
    async def test_an_event_is_stored_as_it_was_at_the_call(self, store: EventStore) -> None:
        event = Listed(items=["kept"])
        append = store.append("a", [event])
        event.items.append("too late")
        await append
        [recorded] = await collect(store.read("a"))
        assert store.decode(recorded) == Listed(items=["kept"])

    async def test_a_cancelled_append_is_settled_when_its_caller_goes_on(self, store: EventStore) -> None:
        append = asyncio.create_task(store.append("a", happened(1)))
        await asyncio.sleep(0)
        append.cancel()
        with pytest.raises(asyncio.CancelledError):
            await append
        assert await store.version("a") == 1

    async def test_closing_finishes_the_appends_in_flight(self, store: EventStore) -> None:
        appends = [asyncio.create_task(store.append(f"a-{n}", happened(n))) for n in range(20)]
        await asyncio.sleep(0)
        async with reopened(store) as again:
            acks = await asyncio.gather(*appends)
            stored = {record.position for record in await collect(again.read_all())}
        assert {ack.position for ack in acks} == stored

    async def test_a_closed_store_refuses_to_append_and_to_read(self, store: EventStore) -> None:
        await store.close()
        with pytest.raises(StoreClosed):
            await store.append("a", happened(1))
        with pytest.raises(StoreClosed):
            await collect(store.read("a"))

    async def test_a_closed_backend_refuses_by_itself(self, store: EventStore, backend: Backend) -> None:
        await store.close()
        with pytest.raises(StoreClosed):
            await backend.append([[write("a", b"1")]])
        with pytest.raises(StoreClosed):
            await backend.read_all(after=0, limit=1, where=EventFilter())

    async def test_closing_twice_does_nothing(self, store: EventStore) -> None:
        await store.close()
        await store.close()

    async def test_statistics_count_streams_events_and_positions(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2))
        ack = await store.append("b", happened(3))
        counted = await store.statistics()
        assert (counted.streams, counted.events, counted.last_position) == (2, 3, ack.position)
