"""SQLiteAudit: an audit's questions to the file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from sqlalchemy import ColumnElement, LargeBinary, case, cast, exists, func, literal, select
from sqlalchemy import literal_column as sql

from backends.audit_sql import HOUR_US, Found, SQLiteAuditSQL, is_scan, part_of, totals_of
from backends.sqlite_reading import RECORD, SQLiteReader, as_one_row
from backends.tables import journal_events, journal_streams
from eventstore.audit_query import AuditPage, AuditQuery, AuditTotals, Count
from eventstore.events import RecordedEvent

_SQL = SQLiteAuditSQL()
_e, _s = journal_events.c, journal_streams.c

_USER = case((func.json_valid(_e.metadata) == 1, func.json_extract(_e.metadata, "$.user")))

# So many events of the streams that are asked for are sorted at each page. Where there are more, the log is looked
# through in its own order: sorting all of them for every page would take longer.
_SORTED = 10_000

_POSITION: ColumnElement[int] = sql("+journal_events.position")


class SQLiteAudit(SQLiteReader):
    """A page is a few statements. What is committed is final here, so they need not be of one moment."""

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        end, has_unreadable, has_few = await self._facts(query)
        part = part_of(query, cursor=cursor, end=end, backwards=backwards, is_scan=is_scan(query) and not has_few)
        conditions = [
            *self.conditions(query.where),
            *_SQL.conditions(query, part, with_unreadable=has_unreadable),
        ]
        # With the sign, the planner does not walk through the whole log for its order.
        order = _POSITION if has_few else _e.position
        size = func.length(_e.payload) + func.coalesce(func.length(_e.metadata), 0)
        sizes = select(_e.position, size).select_from(_joined()).where(*conditions)
        sizes = sizes.order_by(order.desc() if backwards else order).limit(limit)
        found = Found.of(await self._reading(sizes, None, part.low, -1), limit=limit, backwards=backwards)
        return part.page(query, found, await self._events_at(found), end=end)

    async def _events_at(self, found: Found) -> Sequence[RecordedEvent]:
        if not found.positions:
            return ()
        position = func.json_each(orjson.dumps(found.positions).decode()).table_valued("value").c.value
        events = select(*RECORD).select_from(_joined()).where(_e.position.in_(select(position)))
        events = events.order_by(_e.position.desc() if found.backwards else _e.position)
        part = (min(found.positions) - 1, -1)
        ((page,),) = await self._reading(select(as_one_row(events)), None, *part)
        return await self._page(page, None, *part)

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        if not query.is_plain:
            return None
        end, _, _ = await self._facts(query)
        part = part_of(query, cursor=None, end=end, backwards=False, is_scan=False)
        where = [*self.conditions(query.where), *_SQL.conditions(query, part)]
        bytes_of = [
            func.coalesce(func.sum(func.length(cast(text, LargeBinary))), 0) for text in (_e.payload, _e.metadata)
        ]
        sums = select(func.count(), *bytes_of, func.min(_e.recorded_at), func.max(_e.recorded_at))
        # A text with a NUL, which JSON escapes, ends there for SQLite's functions.
        nuls = func.coalesce(func.sum(func.instr(_e.metadata, "\\u0000") > 0), 0)
        ((*row, has_nul),) = await self._rows(sums.add_columns(nuls).select_from(_joined()).where(*where))
        if has_nul:
            return None
        hour = _e.recorded_at.op("/")(HOUR_US)
        hours = await self._rows(select(hour, func.count()).select_from(_joined()).where(*where).group_by(hour))
        counted: list[list[Count]] = []
        count: ColumnElement[int] = func.count()
        for name in (_e.type, _s.stream_id, _USER):
            most = select(name, count).select_from(_joined()).where(*where).group_by(name)
            rows = await self._rows(most.order_by(count.desc(), name).limit(top))
            counted.append([Count(*found) for found in rows])
        return totals_of(row, hours, counted, end=end)

    async def _facts(self, query: AuditQuery) -> tuple[int, bool, bool]:
        """Where the log ends, whether any metadata cannot be told by the database, and whether the streams that are
        asked for have few events."""
        wanted: list[Any] = [select(func.coalesce(func.max(_e.position), 0)).scalar_subquery()]
        wanted.append(exists(_SQL.unreadable()) if any(query.labels.values()) else literal(0))
        wanted.append(
            _has_few(self.conditions(query.where._replace(types=(), tags=())))
            if query.where.kinds or query.where.stream_ids
            else literal(0)
        )
        ((end, has_unreadable, has_few),) = await self._rows(select(*wanted))
        return int(end), bool(has_unreadable), bool(has_few)


def _has_few(streams: Sequence[ColumnElement[bool]]) -> Any:
    some = select(_e.stream).select_from(_joined()).where(*streams).limit(_SORTED + 1).subquery()
    return select(func.count() <= _SORTED).select_from(some).scalar_subquery()


def _joined() -> Any:
    return journal_events.join(journal_streams, _s.id == _e.stream)
