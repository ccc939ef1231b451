"""Audits: what a question to the whole log finds, page by page, whatever the events hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest

from backends.conformance.events import Happened, Noted, collect, happened, write
from backends.conformance.fixtures import StoreFixtures
from eventstore.audit import AuditQuery, find, totals
from eventstore.backend import Backend, EventFilter, ReplicaFields, StreamWrite
from eventstore.codec import encode_metadata, encoded_event, new_event_id
from eventstore.contract.json_condition import JsonCondition, Operator
from eventstore.events import Metadata, NewEvent, RecordedEvent
from eventstore.store import EventStore

PAYLOADS = (
    b'{"amount":50,"note":"plain"}',
    b'{"amount":50.0}',
    b'{"amount":"50"}',
    b'{"amount":9007199254740993}',
    b'{"amount":9007199254740992}',
    b'{"amount":-0.1,"note":"=1+1"}',
    b'{"amount":null}',
    b'{"a/b":{"m~n":[1,[2,{"x":"y"}]]}}',
    '{"note":"it\'s \\"quoted\\" \\\\ back; DROP TABLE -- é 🙂"}'.encode(),
    b'{"note":"nul \\u0000 here","amount":7}',
    b'{"amount":123456789012345678901234567890}',
    b'{"amount":true}',
    b'{"0":"key","list":["a","b",3,null,"50"]}',
    b'{"amount":1e400}',
    b'{"":{"":1}}',
    b"[1,2,3]",
    b'"text"',
    b'{"amount":0.30000000000000004}',
    b'{ "amount" :\t50 , "n\\u006fte":"escaped key" }',
    b'{"amount":50,"lone":"\\ud800"}',
)
WITH_AMOUNT = {0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 13, 17, 18, 19}

# By hand: which of the payloads pass.
IN_PAYLOADS: Mapping[str | JsonCondition, set[int]] = {
    "/amount": WITH_AMOUNT,
    "/amount=50": {0, 1, 18, 19},
    "/amount=5e1": {0, 1, 18, 19},
    "/amount!=50": WITH_AMOUNT - {0, 1, 18, 19},
    "/amount>50": {3, 4, 10, 13},
    "/amount>=50": {0, 1, 3, 4, 10, 13, 18, 19},
    "/amount<50": {5, 9, 17},
    "/amount<=9007199254740992": {0, 1, 4, 5, 9, 17, 18, 19},
    "/amount>9007199254740992": {3, 10, 13},
    "/amount=9007199254740993": {3},
    "/amount=123456789012345678901234567890": {10},
    "/amount=1e400": {13},
    "/amount>1e399": {13},
    "/amount=0.3": set(),
    "/amount=0.30000000000000004": {17},
    "/amount=-0.1": {5},
    '/amount="50"': {2},
    "/amount=null": {6},
    "/amount=true": {11},
    "/amount=1": set(),
    "/amount!=true": WITH_AMOUNT - {11},
    "/a~1b/m~0n/1/1/x=y": {7},
    "/a~1b/m~0n/0=1": {7},
    "/a~1b/m~0n/-1": set(),
    "/a~1b/m~0n/01": set(),
    "/a~1b/m~0n/2": set(),
    "#/a%2Fb": set(),
    "#/a~1b/m~0n": {7},
    "/0=key": {12},
    "/0=1": {15},
    "/0": {12, 15},
    "#=text": {16},
    "//=1": {14},
    "/note=plain": {0},
    "/note=escaped key": {18},
    "/note*=quoted": {8},
    "/note*=🙂": {8},
    "/note*==1": {5},
    "/note>p": {0},
    "/note<=it": {5, 18},
    "/list*=3": {12},
    "/list*=50": set(),
    '/list*="50"': {12},
    "/list*=null": {12},
    "/list/4=50": set(),
    JsonCondition(("note",), Operator.EQUAL, "nul \0 here"): {9},
    JsonCondition(("note",), Operator.CONTAINS, "\0"): {9},
    JsonCondition(("note\0",)): set(),
    # None of these leaves its place in the statement.
    "/note=' OR 1=1 --": set(),
    "/note') OR 1 --": set(),
    '/note"': set(),
    '/"note"': set(),
    "/note' || '": set(),
    "/{note}": set(),
    "/$.note": set(),
    "/*": set(),
}

# Longer than an entry of an index may be, and nothing that could be packed.
LONG = "".join(sha256(bytes([number])).hexdigest() for number in range(200))

NOTES: Sequence[Metadata | bytes | None] = (
    Metadata(user="ann", correlation_id="r1", tags=("a",)),
    Metadata(user="ann", correlation_id="r2", causation_id="e1", command_id="c1"),
    Metadata(user="bob\0"),
    Metadata(user='o"brien \\ \n é 🙂'),
    None,
    Metadata(values={"user": "ann", "correlation_id": "r1"}),
    Metadata(user="ann", values={"user": "x", "ip": "10.0.0.1", "n": 9007199254740993, "deep": {"a/b": [None, True]}}),
    Metadata(user="ann", tags=("a", "b"), values={"note": "\0"}),
    Metadata(user="user", correlation_id="correlation_id"),
    Metadata(user=""),
    b'{ "user" : "ann" }',
    b'{"user":"\\u0061nn"}',
    b'{"values":{"user":"zed"},"user":"ann"}',
    b'{"user":null,"values":{"user":"ann"}}',
    Metadata(user=f"{LONG}é", correlation_id=LONG),
    Metadata(command_id="c2"),
    b'{"command_id":"c3","user":"cat"}',
    b'{"command_id":"c4" ,"user":"cat"}',
    b'{"command_id":"c\\u0035"}',
)
ANN = {0, 1, 6, 7, 10, 11, 12}

# By hand, too.
IN_METADATA: Sequence[tuple[AuditQuery, set[int]]] = (
    (AuditQuery(users=("ann",)), ANN),
    (AuditQuery(users=("ann", "user")), {*ANN, 8}),
    (AuditQuery(users=("bob\0",)), {2}),
    (AuditQuery(users=("bob",)), set()),
    (AuditQuery(users=('o"brien \\ \n é 🙂',)), {3}),
    (AuditQuery(users=("",)), {9}),
    (AuditQuery(users=("zed",)), set()),
    (AuditQuery(users=("\x01",)), set()),
    (AuditQuery(users=("' OR ''='",)), set()),
    (AuditQuery(correlation_ids=("r1",)), {0}),
    (AuditQuery(correlation_ids=("r1", "r2")), {0, 1}),
    (AuditQuery(correlation_ids=("correlation_id",)), {8}),
    (AuditQuery(users=(f"{LONG}é",)), {14}),
    (AuditQuery(users=(f"{LONG}è", LONG)), set()),
    (AuditQuery(correlation_ids=(LONG,)), {14}),
    (AuditQuery(causation_ids=("e1",)), {1}),
    (AuditQuery(command_ids=("c1",)), {1}),
    (AuditQuery(command_ids=("c2",)), {15}),
    (AuditQuery(command_ids=("c5",)), {18}),
    (AuditQuery(users=("cat",)), {16, 17}),
    (AuditQuery(users=("ann",), correlation_ids=("r1",)), {0}),
    (AuditQuery(EventFilter(tags=("a",))), {0, 7}),
    (AuditQuery(EventFilter(tags=("b", "none"))), {7}),
    (AuditQuery(EventFilter(tags=("a",)), users=("ann",), correlation_ids=("r1",)), {0}),
    (AuditQuery(metadata=(JsonCondition.parse("/ip=10.0.0.1"),)), {6}),
    (AuditQuery(metadata=(JsonCondition.parse("/n=9007199254740993"),)), {6}),
    (AuditQuery(metadata=(JsonCondition.parse("/n=9007199254740992"),)), set()),
    (AuditQuery(metadata=(JsonCondition.parse("/deep/a~1b/1=true"),)), {6}),
    (AuditQuery(metadata=(JsonCondition.parse("/deep/a~1b/0=null"),)), {6}),
    (AuditQuery(metadata=(JsonCondition.parse("/user=ann"),)), {5, 13}),
    (AuditQuery(metadata=(JsonCondition.parse("/note"),)), {7}),
    (AuditQuery(metadata=(JsonCondition.parse("/tags"),)), set()),
)


async def positions(store: EventStore, query: AuditQuery, **options: Any) -> list[int]:
    return [recorded.position async for recorded in find(store, query, **options)]


async def paged(backend: Backend, query: AuditQuery, limit: int, *, backwards: bool) -> list[int]:
    """The same page by page, each call on its own."""
    found: list[int] = []
    cursor = None
    while True:
        page = await backend.audit_page(query, cursor=cursor, limit=limit, backwards=backwards)
        places = [recorded.position for recorded in page.events]
        assert len(places) <= limit
        found += places
        if page.is_end:
            return found
        cursor, query = page.position, page.rest


async def all_of(store: EventStore) -> list[RecordedEvent]:
    return await collect(store.read_all())


async def check(store: EventStore, backend: Backend, cases: Iterable[tuple[str, AuditQuery, set[int]]]) -> None:
    """Each query finds those events, given by their places in the log: in both directions, in pages of any size."""
    places = [recorded.position for recorded in await all_of(store)]
    wrong: list[str] = []
    for name, query, expected in cases:
        rising = [places[place] for place in sorted(expected)]
        for found, wanted in (
            (await positions(store, query), rising),
            (await positions(store, query, backwards=True), rising[::-1]),
            (await paged(backend, query, 2, backwards=False), rising),
            (await paged(backend, query, 3, backwards=True), rising[::-1]),
        ):
            if found != wanted:
                wrong.append(f"{name}: {[places.index(position) for position in found]}, not {sorted(expected)}")
    assert wrong == []


class Auditing(StoreFixtures):
    async def test_an_audit_finds_what_a_payload_has_at_a_place(self, store: EventStore, backend: Backend) -> None:
        await backend.append([[write("odd", *PAYLOADS)]])
        conditions = [
            (str(text), text if isinstance(text, JsonCondition) else JsonCondition.parse(text), expected)
            for text, expected in IN_PAYLOADS.items()
        ]
        cases = [(name, AuditQuery(payload=(condition,)), expected) for name, condition, expected in conditions]
        both = AuditQuery(payload=(JsonCondition.parse("/amount>=50"), JsonCondition.parse("/note")))
        await check(store, backend, [*cases, ("two conditions", both, {0, 18})])

    async def test_an_audit_finds_what_metadata_says(self, store: EventStore, backend: Backend) -> None:
        events = [
            encoded_event(new_event_id(), "t", 1, b"{}", encoded, bytes(16))
            for encoded in (note if isinstance(note, bytes) else encode_metadata(note) for note in NOTES)
        ]
        batches = [[StreamWrite("a", -1, [event._replace(batch_id=event.event_id)])] for event in events]
        await backend.append(batches)
        await check(store, backend, [(str(query), query, expected) for query, expected in IN_METADATA])

    async def test_metadata_is_found_where_every_database_can_read_all_of_it(
        self, store: EventStore, backend: Backend
    ) -> None:
        """As above, but without what keeps an index from being used."""
        for user in ("ann", "bob", "ann"):
            await store.append("a", [NewEvent(Happened(), metadata=Metadata(user=user, correlation_id=f"{user} 1"))])
        await check(
            store,
            backend,
            [
                ("user", AuditQuery(users=("ann",)), {0, 2}),
                ("two users", AuditQuery(users=("ann", "bob")), {0, 1, 2}),
                ("correlation", AuditQuery(correlation_ids=("bob 1",)), {1}),
                ("nobody", AuditQuery(users=("\0",)), set()),
            ],
        )

    async def test_a_text_that_stands_twice_in_metadata_is_found(self, store: EventStore, backend: Backend) -> None:
        fields: Mapping[str, Callable[[tuple[str, ...]], AuditQuery]] = {
            "user": lambda texts: AuditQuery(users=texts),
            "correlation_id": lambda texts: AuditQuery(correlation_ids=texts),
            "causation_id": lambda texts: AuditQuery(causation_ids=texts),
            "command_id": lambda texts: AuditQuery(command_ids=texts),
        }
        for name in fields:
            metadata = Metadata.model_validate({name: "x", "values": {name: "y"}})
            await store.append("a", [NewEvent(Happened(), metadata=metadata)])
        cases = [
            (name, query((text,)), {place} if text == "x" else set[int]())
            for place, (name, query) in enumerate(fields.items())
            for text in ("x", "y")
        ]
        await check(store, backend, cases)

    async def test_conditions_that_python_takes_for_equal_are_told_apart(
        self, store: EventStore, backend: Backend
    ) -> None:
        await backend.append([[write("odd", b'{"a":1}', b'{"a":true}', b'{"a":0}', b'{"a":false}')]])
        texts = ("/a=1", "/a=true", "/a=0", "/a=false")
        cases = [(text, AuditQuery(payload=(JsonCondition.parse(text),)), {place}) for place, text in enumerate(texts)]
        await check(store, backend, cases)

    async def test_queries_of_one_shape_find_what_each_asks_for(self, store: EventStore, backend: Backend) -> None:
        for index in range(6):
            user = Metadata(user="ab"[index % 2], tags=("cd"[index % 2],))
            event = happened(index)[0] if index % 3 else Noted(text="")
            await store.append(f"{'ef'[index % 2]}-{index}", [NewEvent(event, metadata=user)])
        even, odd = {0, 2, 4}, {1, 3, 5}
        cases: list[tuple[str, AuditQuery, set[int]]] = [
            ("user", AuditQuery(users=("a",)), even),
            ("another", AuditQuery(users=("b",)), odd),
            ("tag", AuditQuery(EventFilter(tags=("c",))), even),
            ("another tag", AuditQuery(EventFilter(tags=("d",))), odd),
            ("kind", AuditQuery(EventFilter(kinds=("e",))), even),
            ("another kind", AuditQuery(EventFilter(kinds=("f",))), odd),
            ("stream", AuditQuery(EventFilter(stream_ids=("e-4",))), {4}),
            ("another stream", AuditQuery(EventFilter(stream_ids=("f-5",))), {5}),
            ("type", AuditQuery(EventFilter(types=("conformance.noted",))), {0, 3}),
            ("another type", AuditQuery(EventFilter(types=("none",))), set()),
            ("user and kind", AuditQuery(EventFilter(kinds=("e",)), users=("a",)), even),
            ("user of another kind", AuditQuery(EventFilter(kinds=("f",)), users=("a",)), set()),
        ]
        await check(store, backend, cases)

    async def test_an_audit_finds_events_by_stream_kind_type_epoch_origin_and_position(
        self, store: EventStore, backend: Backend
    ) -> None:
        epoch = await store.claim("Order-1")
        for index in range(12):
            stream_id = ("Account-1", "Account-2", "Order-1")[index % 3]
            event = happened(index)[0] if index % 2 else Noted(text=str(index))
            await store.append(stream_id, [event])
        await backend.append([[write("Order-1", b"{}", epoch=epoch)]])
        own = write("Account-é", b"{}")
        from_afar = own.events[0]._replace(replica=ReplicaFields("eu", 1, b"{}", concurrent=False))
        await backend.append([[own._replace(events=[from_afar])]])
        places = [recorded.position for recorded in await all_of(store)]
        noted = {0, 2, 4, 6, 8, 10}
        accounts = {0, 1, 3, 4, 6, 7, 9, 10, 13}
        cases: list[tuple[str, AuditQuery, set[int]]] = [
            ("nothing asked", AuditQuery(), set(range(14))),
            ("kind", AuditQuery(EventFilter(kinds=("Account",))), accounts),
            ("two kinds", AuditQuery(EventFilter(kinds=("Account", "Order"))), set(range(14))),
            ("no kind", AuditQuery(EventFilter(kinds=("Account-1", "' OR 1=1"))), set()),
            ("stream", AuditQuery(EventFilter(stream_ids=("Account-2",))), {1, 4, 7, 10}),
            ("type", AuditQuery(EventFilter(types=("conformance.noted",))), noted),
            (
                "kind and type",
                AuditQuery(EventFilter(kinds=("Account",), types=("conformance.noted",))),
                noted & accounts,
            ),
            ("epoch", AuditQuery(epochs=(epoch,)), {12}),
            ("epochs", AuditQuery(epochs=(0, epoch)), set(range(14))),
            ("origin", AuditQuery(origins=("eu", "us")), {13}),
            ("no origin", AuditQuery(origins=("' --",)), set()),
            ("positions", AuditQuery(after=places[2], through=places[5]), {3, 4, 5}),
            (
                "kind and positions",
                AuditQuery(EventFilter(kinds=("Order",)), after=places[2], through=places[8]),
                {5, 8},
            ),
            ("nothing there", AuditQuery(after=places[-1]), set()),
        ]
        await check(store, backend, cases)

    async def test_an_audit_finds_events_by_time_to_the_microsecond(self, store: EventStore, backend: Backend) -> None:
        for number in range(6):
            await store.append("a", happened(number))
            await asyncio.sleep(0.002)
        times = [recorded.recorded_at for recorded in await all_of(store)]
        moment = timedelta(microseconds=1)

        def since(bound: Any) -> set[int]:
            return {place for place, time in enumerate(times) if time >= bound}

        everything = set(range(6))
        cases = [
            ("from", AuditQuery(recorded_from=times[2]), since(times[2])),
            ("just after", AuditQuery(recorded_from=times[2] + moment), since(times[2] + moment)),
            ("before", AuditQuery(recorded_before=times[3]), everything - since(times[3])),
            (
                "between",
                AuditQuery(recorded_from=times[1], recorded_before=times[4]),
                since(times[1]) - since(times[4]),
            ),
            ("never", AuditQuery(recorded_from=times[4], recorded_before=times[4]), set[int]()),
            ("later", AuditQuery(recorded_from=times[5] + timedelta(days=9)), set[int]()),
            (
                "and more",
                AuditQuery(
                    EventFilter(kinds=("a",)), recorded_from=times[1], payload=(JsonCondition.parse("/number>3"),)
                ),
                {4, 5},
            ),
        ]
        await check(store, backend, cases)

    async def test_pages_of_an_audit_neither_skip_nor_repeat_while_others_append(
        self, store: EventStore, backend: Backend
    ) -> None:
        writing = True

        async def append() -> None:
            number = 0
            while writing:
                await asyncio.gather(*(store.append(f"{'ab'[each % 2]}-{each}", happened(number)) for each in range(4)))
                number += 1

        writer = asyncio.ensure_future(append())
        try:
            query, cursor, seen = AuditQuery(EventFilter(kinds=("a",))), None, list[int]()
            while len(seen) < 100:
                page = await backend.audit_page(query, cursor=cursor, limit=7, backwards=False)
                seen += [recorded.position for recorded in page.events]
                cursor = page.position
                await asyncio.sleep(0)
            newest = await positions(store, query, backwards=True, limit=50)
        finally:
            writing = False
            await writer
        everything = await all_of(store)
        own = [recorded.position for recorded in everything if recorded.stream_id.startswith("a-")]
        assert seen == own[: len(seen)]
        first = own.index(newest[-1])
        assert newest[::-1] == own[first : first + 50]

    async def test_an_audit_can_go_on_behind_the_last_event_it_gave(self, store: EventStore) -> None:
        await store.append("a", happened(*range(10)))
        everything = [recorded.position for recorded in await all_of(store)]
        for backwards in (False, True):
            ordered = everything[::-1] if backwards else everything
            first = await positions(store, AuditQuery(), limit=4, backwards=backwards)
            rest = await positions(store, AuditQuery(), cursor=first[-1], backwards=backwards)
            assert (first, rest) == (ordered[:4], ordered[4:])

    @pytest.mark.parametrize("user", ["bob", "bob\0", "bo\\b"])
    async def test_totals_are_those_of_the_events_that_match(self, store: EventStore, user: str) -> None:
        for index in range(9):
            notes = Metadata(user=("ann", user)[index % 2]) if index % 3 else None
            await store.append(f"{'ab'[index % 2]}-{index % 4}", [NewEvent(Happened(number=index), metadata=notes)])
        events = await all_of(store)
        for query, chosen in (
            (AuditQuery(), events),
            (AuditQuery(EventFilter(kinds=("a",))), [each for each in events if each.stream_id.startswith("a-")]),
            (AuditQuery(users=("ann",)), [each for each in events if each.metadata and each.metadata.user == "ann"]),
            (AuditQuery(after=events[-1].position), []),
            (
                AuditQuery(recorded_before=events[4].recorded_at),
                [e for e in events if e.recorded_at < events[4].recorded_at],
            ),
        ):
            found = await totals(store, query, top=100)
            names = [each.metadata.user if each.metadata else None for each in chosen]
            assert found.events == len(chosen)
            assert found.payload_bytes == sum(len(each.payload) for each in chosen)
            assert found.metadata_bytes == sum(len(encode_metadata(each.metadata) or b"") for each in chosen)
            assert (found.first, found.last) == (
                (chosen[0].recorded_at, chosen[-1].recorded_at) if chosen else (None, None)
            )
            assert sum(found.hours.values()) == len(chosen)
            assert dict(found.streams) == _counted(each.stream_id for each in chosen)
            assert dict(found.types) == _counted(each.type for each in chosen)
            assert dict(found.users) == _counted(names)
            assert [count for _, count in found.streams] == sorted((count for _, count in found.streams), reverse=True)
            assert (await totals(store, query, top=1)).streams == found.streams[:1]


def _counted(names: Iterable[str | None]) -> dict[str | None, int]:
    counts: dict[str | None, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
