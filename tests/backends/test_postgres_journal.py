"""The journal in Postgres itself: what it refuses, and the views that SQL may rest on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from backends.conformance.events import collect, happened, numbers, tagged, write
from eventstore import EventStore, JournalCorrupt
from eventstore.backend import EventFilter
from eventstore.events import Metadata, NewEvent

from .postgres_help import backend_of, connected, execute, fetch


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE journal_events SET type = 'forged'", "never changed"),
        ("UPDATE journal_events SET type = type WHERE version = 1", "never changed"),
        ("DELETE FROM journal_events", "only removed by truncation"),
        ("DELETE FROM journal_events WHERE version = 3", "only removed by truncation"),
        ("TRUNCATE journal_events", "only removed by truncation"),
        ("TRUNCATE journal_events CASCADE", "only removed by truncation"),
        (
            "INSERT INTO journal_events SELECT * FROM journal_events WHERE version = 1 "
            "ON CONFLICT (position) DO UPDATE SET type = 'forged'",
            "never changed",
        ),
        ("WITH gone AS (DELETE FROM journal_events RETURNING 1) SELECT * FROM gone", "only removed by truncation"),
    ],
)
async def test_the_owner_cannot_change_or_remove_an_event_by_mistake(
    postgres_url: str, statement: str, says: str
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1, 2, 3))
        before = await collect(store.read_all())
        with pytest.raises(asyncpg.RestrictViolationError, match=says):
            await execute(postgres_url, statement)
        assert await collect(store.read_all()) == before


@pytest.mark.parametrize(
    ("stream", "through", "is_open"),
    [("a", 2, True), ("b", 3, True), ("a", 3, False)],
    ids=["too short", "another stream's", "closed"],
)
async def test_a_removal_that_does_not_cover_the_event_keeps_it(
    postgres_url: str, stream: str, through: int, is_open: bool
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1, 2, 3))
        await store.append("b", happened(1, 2, 3))
    async with connected(postgres_url) as connection:
        await connection.execute(
            "INSERT INTO journal_removals (stream, through, reason, is_open, recorded_at) "
            "SELECT id, $2, 'test', $3, 1 FROM journal_streams WHERE stream_id = $1",
            stream,
            through,
            is_open,
        )
        with pytest.raises(asyncpg.RestrictViolationError, match="only removed by truncation"):
            await connection.execute(
                "DELETE FROM journal_events e USING journal_streams s "
                "WHERE s.id = e.stream AND s.stream_id = 'a' AND e.version = 3"
            )


async def test_the_door_is_closed_behind_a_truncation_and_says_what_was_removed(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1, 2, 3))
        await store.truncate("a", 2, reason="the user asked")
    removals = await fetch(postgres_url, "SELECT through, removed, log_end, reason, is_open FROM journal_removals")
    assert removals == [(2, 2, 3, "the user asked", False)]
    with pytest.raises(asyncpg.RestrictViolationError):
        await execute(postgres_url, "DELETE FROM journal_events")


async def test_the_triggers_hold_whatever_the_search_path(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1, 2))
        for statement in ("DELETE FROM public.journal_events", "UPDATE public.journal_events SET type = 'x'"):
            with pytest.raises(asyncpg.RestrictViolationError):
                await execute(postgres_url, f"SET search_path = pg_catalog; {statement}")


# Views


async def test_events_can_be_queried_as_json(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("Account-1", [tagged(7, "x"), *happened(8)])
        recorded = await collect(store.read_all())
    columns = (
        "position, tenant, stream_id, kind, version, type, schema_version, payload ->> 'number', payload_text, "
        "metadata -> 'tags' ->> 0, event_id, batch_id, epoch, recorded_at"
    )
    rows = await fetch(postgres_url, f"SELECT {columns} FROM v_events ORDER BY position")
    assert [row[:10] for row in rows] == [
        (1, "", "Account-1", "Account", 1, "conformance.happened", 1, "7", '{"number":7}', "x"),
        (2, "", "Account-1", "Account", 2, "conformance.happened", 1, "8", '{"number":8}', None),
    ]
    assert [row[10:] for row in rows] == [(r.event_id, r.batch_id, 0, r.recorded_at) for r in recorded]
    matching = "SELECT version FROM v_events WHERE payload @> '{\"number\": 8}' AND stream_id = 'Account-1'"
    assert await fetch(postgres_url, matching) == [(2,)]


@pytest.mark.parametrize(
    "payload",
    [rb'{"a":"\u0000"}', rb'{"a":"\ud83d"}', b'{"a":1e200000}', b"[" * 100_000 + b"]" * 100_000],
    ids=["NUL", "half a pair", "huge number", "deep"],
)
async def test_what_jsonb_cannot_hold_is_null_beside_its_text_and_spoils_no_query(
    postgres_url: str, payload: bytes
) -> None:
    async with EventStore.open(postgres_url) as store:
        await backend_of(store).append([[write("a", payload, b'{"a":"b"}')]])
    rows = await fetch(postgres_url, "SELECT payload, payload_text FROM v_events ORDER BY position")
    assert [row[0] for row in rows] == [None, '{"a": "b"}']
    assert rows[0][1] == payload.decode()


async def test_times_of_the_views_are_exact_to_the_microsecond(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
    moments = [1, 999_999, 1_767_225_599_999_999, 1_792_345_678_901_234, 4_102_444_799_123_457]
    query = "SELECT to_timestamp(0) + m * interval '1 microsecond' FROM unnest($1::bigint[]) m"
    found = [row[0] for row in await fetch(postgres_url, query, moments)]
    assert [int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1_000_000 + 0.5) for moment in found] == (
        moments
    )


async def test_streams_can_be_queried(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("Account-1", happened(1, 2, 3))
        await store.truncate("Account-1", 2, reason="test")
        await store.claim("Account-1")
    columns = "tenant, stream_id, kind, version, truncated, epoch, created_at <= now()"
    assert await fetch(postgres_url, f"SELECT {columns} FROM v_streams") == [
        ("", "Account-1", "Account", 3, 2, 1, True)
    ]


async def test_the_views_of_sqlite_hold_the_same(postgres_url: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    batch = [write("Account-1", b'{"a":1}', rb'{"a":"\u0000"}', ids=[bytes(range(16)), bytes(range(16, 32))])]
    for url in (postgres_url, f"sqlite:///{path}"):
        async with EventStore.open(url) as store:
            await store._backend.append([batch])
            await store.claim("Account-1")
            await store.truncate("Account-1", 1, reason="test")
    events = (
        "SELECT position, tenant, stream_id, kind, version, type, schema_version, payload_text, metadata_text, "
        "CAST(event_id AS text), CAST(batch_id AS text), epoch FROM v_events ORDER BY position"
    )
    streams = "SELECT tenant, stream_id, kind, version, truncated, epoch FROM v_streams"
    times = "SELECT recorded_at FROM v_events UNION ALL SELECT created_at FROM v_streams"
    with closing(sqlite3.connect(path)) as connection:
        for query in (events, streams):
            assert connection.execute(query).fetchall() == await fetch(postgres_url, query)
        assert connection.execute("SELECT json_type(payload) FROM v_events").fetchall() == [("object",)]
        for (text,), (moment,) in zip(connection.execute(times), await fetch(postgres_url, times), strict=True):
            assert abs((datetime.fromisoformat(text) - moment).total_seconds()) < 60


async def test_tags_are_found_in_metadata_that_jsonb_cannot_hold(postgres_url: str) -> None:
    def noted(number: int, *tags: str) -> NewEvent:
        metadata = Metadata(tags=tags, values={"text": "\0"})
        return NewEvent(happened(number)[0], metadata=metadata)

    async with EventStore.open(postgres_url) as store:
        await store.append("a", [noted(1, "x"), noted(2, "y"), tagged(3, "x"), tagged(4, "y"), *happened(5)])
        where = EventFilter(tags=("x",))
        assert await numbers(store.read_all(where=where)) == [1, 3]
        assert await numbers(store.read_all(where=where, page_size=1)) == [1, 3]


async def test_streams_are_listed_by_their_bytes_whatever_the_locale(postgres_url: str) -> None:
    names = ["b", "A", "a", "B", "_", "é", "z", "\U0001f600", "\uffff"]
    async with EventStore.open(postgres_url) as store:
        for name in names:
            await store.append(name, happened(1))
        listed = [info.stream_id async for info in store.streams(page_size=2)]
    assert listed == sorted(names, key=str.encode)


async def test_a_damaged_row_is_named_and_spoils_no_other_stream(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1, 2))
        await store.append("b", happened(3))
        await execute(
            postgres_url,
            "ALTER TABLE journal_events DISABLE TRIGGER journal_events_no_update; "
            "UPDATE journal_events SET metadata = '{\"tags\":7}' WHERE position = 2; "
            "ALTER TABLE journal_events ENABLE TRIGGER journal_events_no_update",
        )
        with pytest.raises(JournalCorrupt) as damaged:
            await collect(store.read("a"))
        assert (damaged.value.stream_id, damaged.value.version) == ("a", 2)
        assert await numbers(store.read("b")) == [3]
