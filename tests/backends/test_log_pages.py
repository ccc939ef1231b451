"""A page of the log comes by column: it says what its rows say one by one, and whatever is odd is told as there."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from backends import log_columns, postgres_reading, sqlite_log
from backends.conformance.events import write
from backends.log_columns import LogColumns
from backends.postgres import PostgresBackend
from backends.sqlite import SQLiteBackend
from eventstore import EventStore, JournalCorrupt, Metadata
from eventstore.backend import Claim, EncodedEvent, EventFilter, Expected, LogPage, ReplicaFields, StreamWrite
from eventstore.codec import encode_metadata, encoded_event, new_event_id
from eventstore.contract.audit_query import AuditQuery
from eventstore.contract.record_page import RecordPage

from .postgres_help import execute

MIB = 1024 * 1024


@pytest.fixture(params=["sqlite", "postgres_url"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    is_sqlite = request.param == "sqlite"
    return f"sqlite:///{tmp_path}/journal.db" if is_sqlite else str(request.getfixturevalue(request.param))


@pytest_asyncio.fixture
async def backend(url: str) -> AsyncIterator[SQLiteBackend | PostgresBackend]:
    async with EventStore.open(url) as store:
        assert isinstance(store._backend, SQLiteBackend | PostgresBackend)
        yield store._backend


def event(number: int, *, type_: str = "a", tags: tuple[str, ...] = (), batch: bytes = b"") -> EncodedEvent:
    event_id = new_event_id()
    notes = encode_metadata(Metadata(user=f"u{number}", tags=tags)) if tags else None
    return encoded_event(event_id, type_, 1 + number % 2, b'{"n":%d}' % number, notes, batch or event_id)


async def stored(backend: SQLiteBackend | PostgresBackend, *writes: StreamWrite) -> None:
    for outcome in await backend.append([[each] for each in writes]):
        assert not isinstance(outcome, Exception), outcome


async def all_kinds(backend: SQLiteBackend | PostgresBackend) -> None:
    """Events that differ in every column."""
    first = new_event_id()
    await stored(
        backend,
        StreamWrite("kind-a", Expected.ANY, [event(1), event(2, type_="bb", tags=("x",)), event(3, tags=("y", "ü"))]),
        StreamWrite("kind-\x1e,\u2028", Expected.ANY, [event(4), event(5, batch=first), event(6, batch=first)]),
        StreamWrite("other", Expected.ANY, [event(7)]),
    )
    [epoch] = await backend.claim([Claim("owned-1")])
    assert isinstance(epoch, int)
    await stored(backend, StreamWrite("owned-1", Expected.ANY, [event(8), event(9, tags=("x",))], epoch))
    replica = ReplicaFields("paris", 7, b'{"paris":7}', True)
    await stored(backend, StreamWrite("kind-b", Expected.ANY, [event(10)._replace(replica=replica), event(11)]))


async def by_column(backend: SQLiteBackend | PostgresBackend, where: EventFilter, after: int, limit: int) -> LogPage:
    return await backend.read_all(after=after, limit=limit, where=where)


async def by_row(
    backend: SQLiteBackend | PostgresBackend, where: EventFilter, after: int, limit: int, patch: pytest.MonkeyPatch
) -> LogPage:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("not by column")

    with patch.context() as patched:
        patched.setattr(sqlite_log, "_columns", refuse)
        patched.setattr(postgres_reading, "log_columns", refuse)
        return await backend.read_all(after=after, limit=limit, where=where)


@pytest.mark.parametrize(
    "where",
    [
        EventFilter(),
        EventFilter(kinds=("kind",)),
        EventFilter(types=("bb", "nobody's")),
        EventFilter(kinds=("kind", "owned"), tags=("x",)),
        EventFilter(stream_ids=("other", "kind-\x1e,\u2028")),
    ],
)
async def test_columns_and_rows_say_the_same(
    backend: SQLiteBackend | PostgresBackend, where: EventFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_kinds(backend)
    for after, limit in ((0, 500), (0, 1), (3, 4), (8, 2), (10, 10), (11, 10), (99, 10)):
        found = await by_column(backend, where, after, limit)
        expected = await by_row(backend, where, after, limit, monkeypatch)
        assert list(found.events) == list(expected.events)
        assert found[1:] == expected[1:]
        assert [type(record.event_id) for record in found.events] == [type(r.event_id) for r in expected.events]
        # Pages that are filtered by the reader itself come as rows.
        assert not found.events or isinstance(found.events, RecordPage) or where.tags


@pytest.mark.parametrize("at_once", [1, 3, 64])
async def test_an_audit_has_the_same_records_however_many_are_made_at_once(
    backend: SQLiteBackend | PostgresBackend, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_kinds(backend)
    expected = await by_row(backend, EventFilter(), 0, 500, monkeypatch)
    monkeypatch.setattr(log_columns, "_AT_ONCE", at_once)
    page = await backend.audit_page(AuditQuery(), cursor=None, limit=500, backwards=False)
    assert list(page.events) == list(expected.events)
    assert list((await by_column(backend, EventFilter(), 0, 500)).events) == list(expected.events)


async def test_where_sqlite_does_not_string_blobs_together_ids_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "_PROBED", b"something else")
    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db") as store:
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        await all_kinds(backend)
        found = await by_column(backend, EventFilter(), 0, 500)
        assert isinstance(found.events, RecordPage)
        assert list(found.events) == list((await by_row(backend, EventFilter(), 0, 500, monkeypatch)).events)


async def test_a_page_of_records_that_nobody_looks_at_makes_none(
    backend: SQLiteBackend | PostgresBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_kinds(backend)
    made: list[int] = []
    make = LogColumns._records

    def counted(self: LogColumns, *arguments: Any) -> Any:
        made.append(len(self.types))
        return make(self, *arguments)

    monkeypatch.setattr(LogColumns, "_records", counted)
    page = await by_column(backend, EventFilter(), 0, 500)
    assert isinstance(page.events, RecordPage)
    assert (page.events.payloads[0], len(page.events), made) == (b'{"n":1}', 11, [])
    assert [record.payload for record in page.events] == list(page.events.payloads)
    assert made == [11]
    # Who goes through them keeps none; who asks for one by its place has all of them kept.
    assert (page.events[0].position, page.events[10].position, made) == (1, 11, [11, 11])


async def test_a_page_that_is_too_large_for_one_answer_comes_in_parts(tmp_path: Path) -> None:
    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db") as store:
        backend = store._backend
        sizes = [MIB] * 20 + [17 * MIB] + [1]
        for size in sizes:
            payload = b'"%b"' % (b"x" * size)
            await backend.append([[write("a", payload)]])
        found: list[int] = []
        after, is_end = 0, False
        while not is_end:
            page = await backend.read_all(after=after, limit=500, where=EventFilter())
            assert sum(len(record.payload) for record in page.events) <= 18 * MIB
            found += [len(record.payload) - 2 for record in page.events]
            after, is_end = page.position, page.is_end
        assert found == sizes


async def test_a_control_character_where_none_can_be_is_damage_of_that_event(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        backend = store._backend
        assert isinstance(backend, PostgresBackend)
        await all_kinds(backend)
        await execute(postgres_url, "ALTER TABLE journal_events DISABLE TRIGGER USER")
        await execute(postgres_url, "UPDATE journal_events SET payload = payload || chr(30) || '{}' WHERE position = 4")
        with pytest.raises(JournalCorrupt) as raised:
            await backend.read_all(after=0, limit=500, where=EventFilter())
        assert (raised.value.stream_id, raised.value.version, raised.value.position) == ("kind-\x1e,\u2028", 1, 4)
        assert len((await backend.read_all(after=4, limit=500, where=EventFilter())).events) == 7
        await execute(postgres_url, f"UPDATE journal_events SET recorded_at = {2**63 - 1} WHERE position = 2")
        with pytest.raises(JournalCorrupt) as raised:
            await backend.read_all(after=1, limit=1, where=EventFilter())
        assert raised.value.position == 2


@pytest.mark.parametrize("column", ["origin = 'rome'", "origin_sequence = 3", "clock = '{}'", "concurrent = true"])
async def test_what_somebody_has_put_into_one_of_a_replicas_columns_is_seen(
    backend: SQLiteBackend | PostgresBackend, url: str, column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await all_kinds(backend)
    before = list((await by_column(backend, EventFilter(), 0, 500)).events)
    statement = f"UPDATE journal_events SET {column} WHERE position = 2"
    if isinstance(backend, SQLiteBackend):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.execute("DROP TRIGGER journal_events_no_update")
            connection.execute(statement)
    else:
        await execute(url, f"ALTER TABLE journal_events DISABLE TRIGGER USER; {statement}")
    found = await by_column(backend, EventFilter(), 0, 500)
    assert isinstance(found.events, RecordPage)
    assert list(found.events) == list((await by_row(backend, EventFilter(), 0, 500, monkeypatch)).events)
    assert [one.position for one, old in zip(found.events, before, strict=True) if one != old] == [2]


@pytest.mark.parametrize("column", ["payload", "type", "checksum", "metadata"])
async def test_what_sqlite_holds_as_a_blob_where_the_journal_writes_none_is_damage(tmp_path: Path, column: str) -> None:
    path = tmp_path / "journal.db"
    async with EventStore.open(f"sqlite:///{path}") as store:
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        await all_kinds(backend)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DROP TRIGGER journal_events_no_update")
            statement = f"UPDATE journal_events SET {column} = CAST({column} AS BLOB) WHERE {column} IS NOT NULL"
            connection.execute(statement)
            ((first,),) = connection.execute(f"SELECT min(position) FROM journal_events WHERE {column} IS NOT NULL")
        with pytest.raises(JournalCorrupt) as raised:
            await backend.read_all(after=0, limit=500, where=EventFilter())
        assert raised.value.position == first
