"""SQLiteAudit: an audit's questions to the file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, case, cast, func, select

from backends.audit_paging import Part, is_scan, part_of, totals_of
from backends.audit_shape import LABELS_WITH_INDEX, Shape
from backends.audit_sql import HOUR_US, PAGE_BYTES
from backends.sqlite_audit_sql import SQLiteAuditSQL
from backends.sqlite_log import PAGE, Statement
from backends.sqlite_page_thread import Ask
from backends.sqlite_reading import SQLiteReader
from backends.sqlite_records import RECORD, as_one_row
from backends.tables import journal_events, journal_streams
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals, Count
from eventstore.contract.record_page import RecordPage
from eventstore.errors import JournalCorrupt

_e, _s = journal_events.c, journal_streams.c

_USER = case((func.json_valid(_e.metadata) == 1, func.json_extract(_e.metadata, "$.user")))

# So many events of the streams that are asked for are sorted at each page. Where there are more, the log is looked
# through in its own order: sorting all of them for every page would take longer.
_SORTED = 10_000

_STATEMENTS = 128


class _Asked(NamedTuple):
    statement: Statement
    parameters: Mapping[str, Any]
    end: int
    part: Part
    shape: Shape
    has_few: bool


class SQLiteAudit(SQLiteReader):
    """A page is two statements, in one trip to a thread. What is committed is final here, so they need not be of one
    moment."""

    def __init__(self, path: Path, *, tenant: str, busy_timeout: float) -> None:
        super().__init__(path, tenant=tenant, busy_timeout=busy_timeout)
        self._sql = SQLiteAuditSQL(tenant)
        self._facts_of = lru_cache(maxsize=_STATEMENTS)(self._new_facts)
        self._page_of = lru_cache(maxsize=_STATEMENTS)(self._new_page)

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        def choose(ask: Ask) -> _Asked:
            shape = Shape.of(query)
            values = self._sql.parameters(query, shape)
            end, has_few, unreadable = self._facts(ask, query, shape, values)
            if not shape.asked.isdisjoint(unreadable):
                shape = Shape.of(query, unreadable=unreadable)
                values = self._sql.parameters(query, shape)
            is_walk = not has_few and is_scan(query, by_streams=False)
            part = part_of(query, cursor=cursor, end=end, backwards=backwards, is_scan=is_walk)
            values |= part.bounds
            return _Asked(self._page_of(shape, has_few, backwards), values, end, part, shape, has_few)

        try:
            asked, found, is_full = await self.log.events(choose, limit, room=PAGE_BYTES)
        except (ValueError, JournalCorrupt):
            # It is found out what is wrong with an event, and with which.
            asked = await self.log.answer(choose)
            page = self._sql.page(RECORD, asked.shape, is_sorted=asked.has_few, backwards=backwards)
            rows = select(as_one_row(page)).params({**asked.parameters, "limit": limit})
            ((row,),) = await self._reading(rows, None, asked.part.low, -1)
            found = RecordPage.of(await self._page(row, None, asked.part.low, -1))
            is_full = len(found) >= limit
        return asked.part.page(query, found, is_full=is_full, backwards=backwards, end=asked.end)

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        if not query.is_plain:
            return None
        shape = Shape.of(query)
        where, values = self._sql.conditions(shape), self._sql.parameters(query, shape)
        end, *_ = await self.log.answer(lambda ask: self._facts(ask, query, shape, values))
        values |= part_of(query, cursor=None, end=end, backwards=False, is_scan=False).bounds
        bytes_of = [
            func.coalesce(func.sum(func.length(cast(text, LargeBinary))), 0) for text in (_e.payload, _e.metadata)
        ]
        sums = select(func.count(), *bytes_of, func.min(_e.recorded_at), func.max(_e.recorded_at))
        # A text with a NUL, which JSON escapes, ends there for SQLite's functions.
        nuls = func.coalesce(func.sum(func.instr(_e.metadata, "\\u0000") > 0), 0)
        sums = sums.add_columns(nuls).select_from(self._sql.joined).where(*where)
        ((*row, has_nul),) = await self._rows(sums.params(values))
        if has_nul:
            return None
        hour = _e.recorded_at.op("/")(HOUR_US)
        by_hour = select(hour, func.count()).select_from(self._sql.joined).where(*where).group_by(hour)
        hours = await self._rows(by_hour.params(values))
        counted: list[list[Count]] = []
        count: ColumnElement[int] = func.count()
        for name in (_e.type, _s.stream_id, _USER):
            most = select(name, count).select_from(self._sql.joined).where(*where).group_by(name)
            rows = await self._rows(most.order_by(count.desc(), name).limit(top).params(values))
            counted.append([Count(*found) for found in rows])
        return totals_of(row, hours, counted, end=end)

    def _facts(
        self, ask: Ask, query: AuditQuery, shape: Shape, values: Mapping[str, Any]
    ) -> tuple[int, bool, Collection[str]]:
        """Where the log ends, whether the streams that are asked for have few events, and which texts of metadata
        cannot all be told by the database."""
        statement = self._facts_of(shape)
        end, has_few, *are_unreadable = ask(statement.text, {**statement.constants, **values})
        labels = sorted(LABELS_WITH_INDEX & shape.asked)
        readable = [name for name, is_unreadable in zip(labels, are_unreadable, strict=True) if not is_unreadable]
        # Those without an index are looked for in every event anyway.
        return end, bool(has_few), set(query.labels).difference(readable)

    def _new_facts(self, shape: Shape) -> Statement:
        return Statement.of(self._sql.facts(shape, sorted_at_most=_SORTED))

    def _new_page(self, shape: Shape, is_sorted: bool, backwards: bool) -> Statement:
        return Statement.of_page(self._sql.page(PAGE, shape, is_sorted=is_sorted, backwards=backwards))
