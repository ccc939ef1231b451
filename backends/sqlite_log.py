"""SQLiteLog: pages of the whole log, in threads of their own, each page as one row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import orjson
from sqlalchemy import ColumnElement, Join, SelectBase, bindparam, select
from sqlalchemy.dialects import sqlite

from backends.log_columns import LogColumns, optional_texts, rare_of
from backends.page_texts import SEPARATOR, names_of
from backends.sqlite_join import InOrder
from backends.sqlite_page_thread import LARGEST, ROOM, Ask, Row, SQLitePageThread, TooLarge
from backends.tables import journal_events, journal_streams
from eventstore.backend import EventFilter, LogPage
from eventstore.contract.record_page import RecordPage

# Somebody who looks for what is seldom reads long: one more must be served meanwhile.
_THREADS = 2

# The columns are strung together (JSON holds no control character but white space, and no name any), in the order of
# the page below. Where anything is not as the journal writes it (`irregular`), nothing is taken from here.
# It rests on the order of SQLite's types (numbers, texts, blobs) and on those of the columns, which keep no number as
# text, nor the other way round: to ask `typeof` takes three times as long.
# Each column of a replica's is looked at: who verifies has to see what somebody has put into one alone.
_COLUMNS = f"""
SELECT (SELECT coalesce(max(position), 0) FROM journal_events), count(*), group_concat(p.position),
    json_group_array(p.stream_id), group_concat(p.version), group_concat(p.type, '{SEPARATOR}'),
    group_concat(p.schema_version), group_concat(p.payload, '{SEPARATOR}'),
    count(p.metadata), group_concat(coalesce(p.metadata, ''), '{SEPARATOR}'),
    group_concat({{event_id}}, ''), count(p.batch_id), group_concat({{batch_id}}, ''),
    group_concat(p.recorded_at), group_concat(p.checksum),
    json_group_array(json_array(p.position, p.epoch, p.tenant, p.origin, p.origin_sequence, p.clock, p.concurrent))
        FILTER (WHERE p.epoch <> 0 OR p.tenant <> :tenant OR p.origin IS NOT NULL
            OR p.origin_sequence IS NOT NULL OR p.clock IS NOT NULL OR p.concurrent IS NOT NULL),
    count(*) FILTER (WHERE p.payload >= x'' OR p.type >= x'' OR p.checksum >= '' OR p.metadata >= x'') AS irregular
FROM ({{page}}) p
"""  # noqa: S608 - a constant

# Ids are strung together as they are where SQLite does so with blobs, byte for byte. It promises nothing: it is tried.
_PROBE = "SELECT group_concat(id, '') FROM (SELECT x'00ff0a001e' AS id UNION ALL SELECT x'c3280000')"
_PROBED = bytes.fromhex("00ff0a001ec3280000")
_AS_THEY_ARE = ("p.event_id", "coalesce(p.batch_id, p.event_id)")
_AS_DIGITS = ("hex(p.event_id)", "hex(coalesce(p.batch_id, p.event_id))")
_SEPARATOR = SEPARATOR.encode()
_DIALECT = sqlite.dialect(paramstyle="named")

_e, _s = journal_events.c, journal_streams.c
PAGE = (_s.stream_id, _s.tenant, *(column for column in _e if column is not _e.stream))

Conditions = Callable[[EventFilter], Sequence[ColumnElement[bool]]]


class Statement(NamedTuple):
    """A statement's text, with those of its parameters that are part of it."""

    text: str
    constants: Mapping[str, Any]

    @classmethod
    def of(cls, select: SelectBase) -> Statement:
        compiled = select.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        return cls(str(compiled), {name: value for name, value in compiled.params.items() if value is not None})

    @classmethod
    def of_page(cls, page: SelectBase) -> Statement:
        """A statement that has the events of a page by column, for one that selects `PAGE`, at most `limit` of them."""
        statement = cls.of(page)
        return statement._replace(text=_COLUMNS.replace("{page}", statement.text))


class Asked(Protocol):
    """A statement that has been chosen, and its parameters."""

    @property
    def statement(self) -> Statement: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...


class _Asked(NamedTuple):
    statement: Statement
    parameters: Mapping[str, Any]


_A = TypeVar("_A", bound=Asked)
_T = TypeVar("_T")


class SQLiteLog:
    """Reads pages whose events are all as the journal writes them. `conditions` are a filter's, in SQL."""

    def __init__(self, path: Path, conditions: Conditions, *, tenant: str, busy_timeout: float) -> None:
        self._tenant = tenant
        self._threads = [
            SQLitePageThread(path, name=f"sqlite-log-{number}", busy_timeout=busy_timeout) for number in range(_THREADS)
        ]
        self._conditions = conditions
        self._has_digits: bool | None = None
        # Making a statement takes as long as reading a hundred events.
        self._statement = lru_cache(maxsize=64)(self._new_statement)

    async def page(self, after: int, limit: int, where: EventFilter) -> LogPage:
        """As `Backend.read_all`. A page that would be too large has fewer events.

        Raises `ValueError`, or `JournalCorrupt`, if something is wrong with an event of the page; with which, it does
        not tell.
        """
        asked = _Asked(self._statement(EventFilter(*map(tuple, where))), {"after": after})
        row, limit = await self._within(
            lambda most, ask: (self._row(ask, asked, most), most), limit, room=ROOM, expected=limit
        )
        end, count = row[0], row[1]
        is_end = count < limit
        if not count:
            return LogPage((), max(after, end) if is_end else after, is_end, end)
        columns = _columns(row, self._tenant, has_digits=bool(self._has_digits))
        return LogPage(columns.page(), max(after, end) if is_end else columns.positions[-1], is_end, end)

    async def events(self, choose: Callable[[Ask], _A], limit: int, *, room: int) -> tuple[_A, RecordPage, bool]:
        """What was chosen in the thread, the events of its statement, which is one `of_page`, and whether they are as
        many as were asked for: fewer, where they would not fit in the room. Raises as `page` does.

        Records and metadata are made when they are looked at, in the loop's thread: each that another core had made
        would come from there once more, and go back when it is let go.
        """

        def work(most: int, ask: Ask) -> tuple[_A, Row, int]:
            asked = choose(ask)
            return asked, self._row(ask, asked, most), most

        asked, row, most = await self._within(work, limit, room=room, expected=0)
        count = row[1]
        if not count:
            return asked, RecordPage.of(()), False
        columns = _columns(row, self._tenant, has_digits=bool(self._has_digits))
        return asked, columns.page(decodes_late=True), count >= most

    async def answer(self, question: Callable[[Ask], _T]) -> _T:
        """What a question comes to. Raises as the thread does."""
        return await self._idlest().answer(question, events=0, room=LARGEST)

    async def _within(self, work: Callable[[int, Ask], _T], limit: int, *, room: int, expected: int) -> _T:
        """What some work comes to that reads at most so many events: fewer, where they would not fit in the room. About
        so many are `expected`."""
        thread = self._idlest()
        if self._has_digits is None:
            self._has_digits = await thread.row(_PROBE, (), events=1, room=room) != (_PROBED,)
        while True:
            try:
                return await thread.answer(partial(work, limit), events=min(expected, limit), room=room)
            except TooLarge:
                room, limit = (room, limit // 8) if limit > 8 else (LARGEST, 1)

    def _row(self, ask: Ask, asked: Asked, limit: int) -> Row:
        """The row of a page that was chosen."""
        text = _with_ids(asked.statement.text, bool(self._has_digits))
        return ask(text, {**asked.statement.constants, **asked.parameters, "limit": limit, "tenant": self._tenant})

    def _idlest(self) -> SQLitePageThread:
        return min(self._threads, key=lambda thread: thread.under_way)

    async def close(self) -> None:
        """Finish what is under way, close the connections, end the threads."""
        await asyncio.gather(*(thread.close() for thread in self._threads))

    def _new_statement(self, where: EventFilter) -> Statement:
        return Statement.of_page(log_select(PAGE, self._conditions(where), is_scan=not where.stream_ids))


def log_select(
    columns: Sequence[ColumnElement[Any]], conditions: Sequence[ColumnElement[bool]], *, is_scan: bool
) -> SelectBase:
    """What selects at most `limit` events `after` a position: by going through the log, or else by looking up all
    events of the streams that are asked for."""
    join = InOrder if is_scan else Join
    return (
        select(*columns)
        .select_from(join(journal_events, journal_streams, _s.id == _e.stream))
        .where(_e.position > bindparam("after", 0), *conditions)
        .order_by(_e.position)
        .limit(bindparam("limit", 0))
    )


@lru_cache(maxsize=256)
def _with_ids(text: str, has_digits: bool) -> str:
    """A statement that strings ids together in the way that this SQLite does it."""
    event_id, batch_id = _AS_DIGITS if has_digits else _AS_THEY_ARE
    return text.replace("{event_id}", event_id).replace("{batch_id}", batch_id)


def _columns(row: Row, tenant: str, *, has_digits: bool) -> LogColumns:
    """The events of a page that has some. Raises `ValueError`."""
    _, count, positions, stream_ids, versions, types, schema_versions, payloads, *others = row
    with_metadata, metadata, event_ids, with_batch, batch_ids, recorded_at, checksums, rare, irregular = others
    if irregular:
        raise ValueError("a column holds something else than it did")
    places = _numbers(positions)
    return LogColumns(
        places,
        orjson.loads(stream_ids),
        _numbers(versions),
        names_of(types.decode(), count),
        _numbers(schema_versions),
        payloads.split(_SEPARATOR),
        optional_texts(metadata, count, with_metadata),
        bytes.fromhex(event_ids.decode()) if has_digits else event_ids,
        (bytes.fromhex(batch_ids.decode()) if has_digits else batch_ids) if with_batch else None,
        _numbers(recorded_at),
        _numbers(checksums),
        tenant,
        rare_of(orjson.loads(rare), places),
    )


def _numbers(joined: bytes) -> list[int]:
    numbers: list[int] = orjson.loads(b"[%b]" % joined)
    return numbers
