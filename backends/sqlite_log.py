"""SQLiteLog: pages of the whole log, in threads of their own, each page as one row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import ColumnElement, bindparam, select
from sqlalchemy.dialects import sqlite

from backends.log_columns import LogColumns, optional_texts, rare_of
from backends.page_texts import SEPARATOR, names_of
from backends.records import batch_uuid_of_hex
from backends.sqlite_page_thread import LARGEST, ROOM, Row, SQLitePageThread, TooLarge
from backends.tables import journal_events, journal_streams
from eventstore.backend import EventFilter, LogPage
from eventstore.record_page import RecordPage

# Somebody who looks for what is seldom reads long: one more must be served meanwhile.
_THREADS = 2

# The columns are strung together (JSON holds no control character but white space, and no name any), in the order of
# the page below. `is_odd` is for what the journal does not write: then nothing is taken from here.
_COLUMNS = """
SELECT (SELECT coalesce(max(position), 0) FROM journal_events), count(*), group_concat(p.position),
    json_group_array(p.stream_id), group_concat(p.version), group_concat(p.type, char(30)),
    group_concat(p.schema_version), group_concat(p.payload, char(30)),
    count(p.metadata), group_concat(coalesce(p.metadata, ''), char(30)),
    group_concat(hex(p.event_id), ''), count(p.batch_id), group_concat(hex(p.batch_id)),
    group_concat(p.recorded_at), group_concat(p.checksum),
    json_group_array(json_array(p.position, p.epoch, p.tenant, p.origin, p.origin_sequence, p.clock, p.concurrent))
        FILTER (WHERE p.epoch <> 0 OR p.tenant <> :tenant OR p.origin IS NOT NULL),
    max(typeof(p.payload) <> 'text' OR typeof(p.type) <> 'text' OR typeof(p.checksum) <> 'integer'
        OR typeof(p.metadata) NOT IN ('text', 'null')) AS is_odd
FROM ({page}) p
"""
_SEPARATOR = SEPARATOR.encode()

_e, _s = journal_events.c, journal_streams.c
_PAGE = (_s.stream_id, _s.tenant, *(column for column in _e if column is not _e.stream))

Conditions = Callable[[EventFilter], Sequence[ColumnElement[bool]]]


class SQLiteLog:
    """Reads pages whose events are all as the journal writes them. `conditions` are a filter's, in SQL."""

    def __init__(self, path: Path, conditions: Conditions, *, tenant: str, busy_timeout: float) -> None:
        self._tenant = tenant
        self._threads = [
            SQLitePageThread(path, name=f"sqlite-log-{number}", busy_timeout=busy_timeout) for number in range(_THREADS)
        ]
        self._conditions = conditions
        # Making a statement takes as long as reading a hundred events.
        self._statement = lru_cache(maxsize=64)(self._new_statement)

    async def page(self, after: int, limit: int, where: EventFilter) -> LogPage:
        """As `Backend.read_all`. A page that would be too large has fewer events.

        Raises `ValueError`, or `JournalCorrupt`, if something is wrong with an event of the page; with which, it does
        not tell.
        """
        statement, parameters = self._statement(EventFilter(*map(tuple, where)))
        thread = min(self._threads, key=lambda thread: thread.under_way)
        room = ROOM
        while True:
            wanted = {**parameters, "after": after, "limit": limit, "tenant": self._tenant}
            try:
                row = await thread.row(statement, wanted, events=limit, room=room)
                break
            except TooLarge:
                room, limit = (ROOM, limit // 8) if limit > 8 else (LARGEST, 1)
        end, count = row[0], row[1]
        is_end = count < limit
        if not count:
            return LogPage((), max(after, end) if is_end else after, is_end, end)
        page, last = _page(row, self._tenant)
        return LogPage(page, max(after, end) if is_end else last, is_end, end)

    async def close(self) -> None:
        """Finish what is under way, close the connections, end the threads."""
        await asyncio.gather(*(thread.close() for thread in self._threads))

    def _new_statement(self, where: EventFilter) -> tuple[str, dict[str, Any]]:
        """The statement's text, and those of its parameters that are the filter's."""
        page = (
            select(*_PAGE)
            .join(journal_streams, _s.id == _e.stream)
            .where(_e.position > bindparam("after", 0), *self._conditions(where))
            .order_by(_e.position)
            .limit(bindparam("limit", 0))
        )
        compiled = page.compile(dialect=sqlite.dialect(paramstyle="named"), compile_kwargs={"render_postcompile": True})
        text = str(compiled)
        if not where.stream_ids:
            # Else SQLite would look for the streams of a kind first, read all of their events and sort them, at each
            # page.
            text = text.replace("journal_events JOIN journal_streams", "journal_events CROSS JOIN journal_streams")
        return _COLUMNS.replace("{page}", text), dict(compiled.params)


def _page(row: Row, tenant: str) -> tuple[RecordPage, int]:
    """The events, and the position of the last. Raises `ValueError`."""
    _, count, positions, stream_ids, versions, types, schema_versions, payloads, *others = row
    with_metadata, metadata, event_ids, with_batch, batch_ids, recorded_at, checksums, rare, is_odd = others
    if is_odd:
        raise ValueError("a column holds something else than it did")
    places = _numbers(positions)
    columns = LogColumns(
        places,
        orjson.loads(stream_ids),
        _numbers(versions),
        names_of(types.decode(), count),
        _numbers(schema_versions),
        payloads.split(_SEPARATOR),
        optional_texts(metadata, count, with_metadata),
        bytes.fromhex(event_ids.decode()),
        [batch_uuid_of_hex(one) if one else None for one in batch_ids.decode().split(",")] if with_batch else None,
        _numbers(recorded_at),
        _numbers(checksums),
        tenant,
        rare_of(orjson.loads(rare), places),
    )
    return columns.page(), places[-1]


def _numbers(joined: bytes) -> list[int]:
    numbers: list[int] = orjson.loads(b"[%b]" % joined)
    return numbers
