"""Audits of the SQL databases: parts of a long log, what is not settled yet, statements in which nothing is a value."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from backends import audit_paging
from backends.audit_shape import Shape, texts_of
from backends.audit_sql import AuditSQL
from backends.conformance.auditing import paged, positions
from backends.conformance.commands import append_alone
from backends.conformance.events import Happened, Noted, collect, happened
from backends.conformance.fixtures import backend_of
from backends.postgres_audit_sql import PostgresAuditSQL
from backends.sqlite_audit_sql import SQLiteAuditSQL
from eventstore import EventFilter, EventStore, Metadata, NewEvent
from eventstore.auditing import audit_find
from eventstore.auditing.audit_find import find
from eventstore.backend import Expected, StreamWrite
from eventstore.codec import checksum_of, encode_batch
from eventstore.contract.audit_query import AuditPage, AuditQuery
from eventstore.contract.json_condition import JsonCondition
from eventstore.errors import JournalCorrupt

from .postgres_help import PATIENCE, unfinished_append

HOSTILE = "'\"; DROP TABLE journal_events; --"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/audit.db"
    return request.getfixturevalue("postgres_url")


@pytest.mark.parametrize("size", [1, 3, 7])
async def test_a_log_is_looked_through_part_by_part_and_nothing_is_lost_in_between(
    url: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_paging, "SCANNED_POSITIONS", size)
    async with EventStore.open(url) as store:
        await store.append("a", [NewEvent(each, metadata=Metadata(user="ann")) for each in happened(*range(20))])
        places = [recorded.position for recorded in await collect(store.read_all())]
        query = AuditQuery(payload=(JsonCondition.parse("/number>=3"), JsonCondition.parse("/number!=11")))
        expected = [place for number, place in enumerate(places) if number >= 3 and number != 11]
        for limit in (1, 2, 100):
            assert await paged(backend_of(store), query, limit, backwards=False) == expected
            assert await paged(backend_of(store), query, limit, backwards=True) == expected[::-1]
        everything = AuditQuery(after=places[1], through=places[17])
        assert await paged(backend_of(store), everything, 4, backwards=True) == places[17:1:-1]


async def test_streams_with_many_events_are_found_as_those_with_few(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from backends import sqlite_audit

    async with EventStore.open(url) as store:
        for number in range(12):
            await store.append(f"{'ab'[number % 2]}-{number % 3}", happened(number))
        places = [recorded.position for recorded in await collect(store.read_all())]
        query = AuditQuery(EventFilter(kinds=("a",)), payload=(JsonCondition.parse("/number>2"),))
        for few in (100, 3):
            monkeypatch.setattr(sqlite_audit, "_SORTED", few)
            for limit in (1, 2, 100):
                assert await paged(backend_of(store), query, limit, backwards=False) == places[4::2]
                assert await paged(backend_of(store), query, limit, backwards=True) == places[4::2][::-1]


async def test_an_audit_ends_where_the_log_ended_when_it_began(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several pages: what comes meanwhile can be seen by those behind the first alone.
    monkeypatch.setattr(audit_find, "_PAGE", 100)
    async with EventStore.open(url) as store:
        await store.append("a", happened(*range(450)))
        found = find(store, AuditQuery())
        seen = [await anext(found)]
        await store.append("a", happened(*range(10)))
        seen += [recorded async for recorded in found]
        assert [recorded.version for recorded in seen] == list(range(1, 451))


async def test_of_large_events_fewer_are_asked_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    audit_page = EventStore.audit_page

    async def noted(store: EventStore, query: AuditQuery, *, limit: int, **options: Any) -> AuditPage:
        asked.append(limit)
        return await audit_page(store, query, limit=limit, **options)

    monkeypatch.setattr(EventStore, "audit_page", noted)
    async with EventStore.open(url) as store:
        await store.append("a", [Noted(text="x" * 200_000) for _ in range(30)])
        await store.append("a", happened(*range(300)))
        found = [recorded.version async for recorded in find(store, AuditQuery())]
    assert found == list(range(1, 331))
    # A page asks for no more than 1 MiB of what the one before it had, and for twice as many at the most.
    assert asked[0] == 1000
    assert set(asked[1:4]) == {5}
    assert max(asked[1:]) > 100


@pytest.mark.parametrize("metadata", [b"[]", b"{},{}", b'{"of a version": "to come"}'])
async def test_metadata_that_nobody_can_read_is_named_when_its_turn_comes(url: str, metadata: bytes) -> None:
    async with EventStore.open(url) as store:
        events = list(encode_batch(happened(*range(200)), limit=1000))
        type_, schema_version, payload = events[149][1:4]
        checksum = checksum_of(type_, schema_version, payload, metadata)
        events[149] = events[149]._replace(metadata=metadata, checksum=checksum)
        await append_alone(backend_of(store), StreamWrite("a", Expected.ANY, tuple(events)))
        seen: list[int] = []
        with pytest.raises(JournalCorrupt, match=r"the event at version 150 is damaged \(its metadata: ") as damaged:
            async for recorded in find(store, AuditQuery()):
                seen.append(recorded.version)  # noqa: PERF401 - it is broken off
    assert (damaged.value.stream_id, damaged.value.version) == ("a", 150)
    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) > 100


@pytest.mark.parametrize("backwards", [False, True])
async def test_an_audit_does_not_pass_an_append_that_may_still_store_below(postgres_url: str, backwards: bool) -> None:
    async with EventStore.open(postgres_url) as writer, EventStore.open(postgres_url) as reader:
        await writer.append("before", happened(1))
        # It knows how far the log is settled now, and there is more by the time that it asks again.
        assert len(await collect(find(reader, AuditQuery()))) == 1
        async with unfinished_append(postgres_url, "held") as held:
            await writer.append("later", happened(2))
            asking = asyncio.create_task(collect(find(reader, AuditQuery(), backwards=backwards)))
            await asyncio.wait([asking], timeout=0.3)
            assert not asking.done()
            await held.execute("COMMIT")
            async with asyncio.timeout(PATIENCE):
                seen = [recorded.stream_id for recorded in await asking]
    assert seen == ["before", "held", "later"][:: -1 if backwards else 1]


async def test_metadata_that_comes_to_be_unreadable_later_is_found(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", [NewEvent(Happened(), metadata=Metadata(user="ann"))])
        query = AuditQuery(users=("ann",))
        first = await positions(store, query)
        odd = Metadata(user="ann", values={"note": "\0"})
        second = await store.append("a", [NewEvent(Happened(), metadata=odd)])
        assert await positions(store, query) == [*first, second.position]


@pytest.mark.parametrize("sql", [SQLiteAuditSQL(""), PostgresAuditSQL("journal", "")], ids=["sqlite", "postgres"])
def test_no_value_is_part_of_a_statement(sql: AuditSQL) -> None:
    keys = ("plain", HOSTILE)
    conditions = (
        JsonCondition.parse(f"/plain={HOSTILE}"),
        JsonCondition.parse(f"/plain<{HOSTILE}"),
        JsonCondition.parse(f"/plain*={HOSTILE}"),
        JsonCondition(keys),
    )
    texts = (HOSTILE,)
    query = AuditQuery(
        EventFilter(texts, texts, texts, texts),
        users=texts,
        correlation_ids=texts,
        causation_ids=texts,
        command_ids=texts,
        origins=texts,
        payload=conditions,
        metadata=conditions,
    )
    shape = Shape.of(query)
    statement = select(sql.events.c.position).where(*sql.conditions(shape))
    dialect = sqlite.dialect() if isinstance(sql, SQLiteAuditSQL) else postgresql.dialect()
    compiled = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    assert "DROP" not in str(compiled)
    assert HOSTILE in str(compiled.params)
    values = sql.parameters(query, shape)
    asked = {name for name, texts in texts_of(query).items() if texts}
    assert {name for name, value in values.items() if HOSTILE[2:] in str(value)} == asked
