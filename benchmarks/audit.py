"""Audit: questions to a whole journal, against the same SQL by hand (row 23)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import UTC, datetime
from typing import Any, NamedTuple

import asyncpg
import orjson
from uuid_utils import uuid7

from backends.tables import MAY_HAVE_LABEL, sqlite_label
from benchmarks import servers
from benchmarks.harness import MILLISECONDS, READ_ONLY, Goal, Plan, Ratio, Side, compared, interleaved, progress
from eventstore import EventFilter, EventStore
from eventstore.audit import find
from eventstore.codec import checksum_of
from eventstore.contract.audit_query import AuditQuery

_GOAL = Goal(3, 2, is_upper_limit=True)
_STREAMS = 2_000
_LIMIT = 500
_START = 1_700_000_000_000_000
_STEP = 1_000_000

_COLUMNS = (
    "e.position, s.stream_id, e.version, e.type, e.schema_version, e.payload, e.metadata, e.event_id, e.batch_id, "
    "e.epoch, e.recorded_at, e.checksum, s.tenant, e.origin, e.origin_sequence, e.clock, e.concurrent"
)
_METADATA = 6
_EVENTS = "journal_events e JOIN journal_streams s ON s.id = e.stream"
_EVENT_COLUMNS = (
    "position", "stream", "version", "type", "schema_version", "payload", "metadata", "event_id", "epoch",
    "recorded_at", "checksum",
)  # fmt: skip


class Question(NamedTuple):
    """One question, as a query, and as a condition by hand, for SQLite and for Postgres."""

    name: str
    query: AuditQuery
    sqlite: str
    postgres: str


def _questions(count: int) -> list[Question]:
    # Each answer is `_LIMIT` events, or all there are, from the middle of the journal or from all over it.
    middle = _START + count // 2 * _STEP
    start, end = (datetime.fromtimestamp(second, UTC) for second in (middle // _STEP, middle // _STEP + 400))
    user, correlation = "user-77", f"request-{count // 400}"
    in_time = f"e.recorded_at >= {middle} AND e.recorded_at < {middle + 400 * _STEP}"
    return [
        Question("stream", AuditQuery(EventFilter(stream_ids=("Order-77",))), *["s.stream_id = 'Order-77'"] * 2),
        Question("kind", AuditQuery(EventFilter(kinds=("Rare",))), *["s.kind = 'Rare'"] * 2),
        Question("type", AuditQuery(EventFilter(types=("rare",))), *["e.type = 'rare'"] * 2),
        Question("user", AuditQuery(users=(user,)), *_labelled("user", user)),
        Question(
            "correlation id", AuditQuery(correlation_ids=(correlation,)), *_labelled("correlation_id", correlation)
        ),
        Question("time", AuditQuery(recorded_from=start, recorded_before=end), in_time, in_time),
    ]


def _labelled(name: str, value: str) -> tuple[str, str]:
    """By the indexes that the journal has, whose conditions are repeated, as our side does it: to look into each
    event's JSON takes 200 ms."""
    on_sqlite = f"{sqlite_label(name)} = '{value}' AND metadata IS NOT NULL"
    on_postgres = f"journal_label(metadata, '{name}') = '{value}' AND ({MAY_HAVE_LABEL})"
    return on_sqlite, on_postgres


async def on_sqlite(plan: Plan) -> list[Ratio]:
    """Row 23: the first events that match, as the library gives them / as rows of the same SQL by hand."""
    path = plan.directory / "audit.db"
    count = _count(plan)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(EventStore.open(f"sqlite:///{path}"))
        progress(f"  making a journal of {count:,} events")
        connection = stack.enter_context(closing(sqlite3.connect(path)))
        with connection:
            connection.executemany(
                "INSERT INTO journal_streams (id, stream_id, kind, created_at) VALUES (?, ?, ?, 1)", _streams()
            )
            names, places = ", ".join(_EVENT_COLUMNS), ", ".join("?" * len(_EVENT_COLUMNS))
            connection.executemany(f"INSERT INTO journal_events ({names}) VALUES ({places})", _events(count))

        async def by_hand(statement: str) -> list[Any]:
            return connection.execute(statement).fetchall()

        return await _rows("SQLite", count, store, by_hand, plan)


async def on_postgres(plan: Plan) -> list[Ratio]:
    count = _count(plan)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(servers.postgres())
        connection = await stack.enter_async_context(_connected(servers.dsn_of(url)))
        progress(f"  making a journal of {count:,} events")
        columns = ("id", "stream_id", "kind", "created_at")
        await connection.copy_records_to_table(
            "journal_streams", records=((*row, 1) for row in _streams()), columns=columns
        )
        await connection.copy_records_to_table("journal_events", records=_events(count), columns=_EVENT_COLUMNS)
        await connection.execute(f"SELECT setval('journal_events_position_seq', {count})")
        await connection.execute("VACUUM ANALYZE")
        store = await stack.enter_async_context(EventStore.open(url))

        async def by_hand(statement: str) -> list[Any]:
            return list(await connection.fetch(statement))

        return await _rows("Postgres", count, store, by_hand, plan)


async def _rows(
    database: str, count: int, store: EventStore, by_hand: Callable[[str], Awaitable[list[Any]]], plan: Plan
) -> list[Ratio]:
    ratios: list[Ratio] = []
    for letter, question in zip("abcdef", _questions(count), strict=True):
        condition = question.sqlite if database == "SQLite" else question.postgres
        # Without the sign SQLite walks through the whole log for the events of one stream.
        place = "+e.position" if database == "SQLite" and question.name == "stream" else "e.position"
        statement = f"SELECT {_COLUMNS} FROM {_EVENTS} WHERE {condition} ORDER BY {place} LIMIT {_LIMIT}"

        async def ours(query: AuditQuery = question.query) -> list[int]:
            return [recorded.position async for recorded in find(store, query, limit=_LIMIT)]

        async def theirs(statement: str = statement) -> list[int]:
            rows = await by_hand(statement)
            # Our side has read the metadata, and leaves the payload as it is stored.
            for row in rows:
                if row[_METADATA] is not None:
                    orjson.loads(row[_METADATA])
            return [row[0] for row in rows]

        found = await ours()
        assert found == await theirs(), f"{question.name}: both sides answer alike"
        sides = [
            Side(f"audit by {question.name}, {len(found)} events", READ_ONLY, _repeated(ours)),
            Side("the same SQL by hand", READ_ONLY, _repeated(theirs)),
        ]
        figures = await interleaved(sides, plan)
        what = f"{database}, {count:,} events: audit by {question.name} / the same SQL by hand"
        ratios.append(compared(f"23{letter}", what, sides, figures, MILLISECONDS, _GOAL))
    return ratios


def _repeated(ask: Callable[[], Awaitable[Any]]) -> Callable[[float], Awaitable[float]]:
    async def measured(seconds: float) -> float:
        start, asked = time.perf_counter(), 0
        while not asked or time.perf_counter() - start < seconds / 4:
            await ask()
            asked += 1
        return (time.perf_counter() - start) / asked

    return measured


def _count(plan: Plan) -> int:
    return 10_000 if plan.is_quick else 1_000_000 if plan.is_long else 100_000


def _streams() -> Iterator[tuple[int, str, str]]:
    for number in range(_STREAMS):
        kind = "Rare" if number < 4 else ("Account", "Order")[number % 2]
        yield number + 1, f"{kind}-{number}", kind


def _events(count: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        type_ = "rare" if number % 1000 == 7 else f"type-{number % 7}"
        payload = f'{{"amount":{number % 1000},"note":"a note that is as long as notes are"}}'
        notes = f'{{"correlation_id":"request-{number // 200}","user":"user-{number % 1009}"}}' if number % 2 else None
        checksum = checksum_of(type_, 1, payload.encode(), notes.encode() if notes else None)
        place = (number + 1, number % _STREAMS + 1, number // _STREAMS + 1)
        yield (*place, type_, 1, payload, notes, uuid7().bytes, 0, _START + number * _STEP, checksum)


@asynccontextmanager
async def _connected(dsn: str) -> AsyncGenerator[asyncpg.Connection, None]:
    connection = await asyncpg.connect(dsn, timeout=10, command_timeout=120)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)
