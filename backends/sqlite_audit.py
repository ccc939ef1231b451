"""SQLiteAudit: an audit's questions to the file."""

from __future__ import annotations

from sqlalchemy import func, select

from backends.audit_sql import Part, SQLiteAuditSQL, located, part_of
from backends.sqlite_reading import RECORD, SQLiteReader, as_one_row, conditions_of
from backends.tables import journal_events, journal_streams
from eventstore.audit_query import AuditPage, AuditQuery

_SQL = SQLiteAuditSQL()
_position = journal_events.c.position


class SQLiteAudit(SQLiteReader):
    """A page is a few statements. What is committed is final here, so they need not be of one moment."""

    async def audit_page(
        self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool
    ) -> AuditPage:
        ((end,),) = await self._rows(select(func.coalesce(func.max(_position), 0)))
        query = await self._located(query, end)
        part = part_of(query, cursor=cursor, end=end, backwards=backwards)
        has_unreadable = any(query.labels.values()) and bool(await self._rows(_SQL.unreadable()))
        conditions = _SQL.conditions(query, part, with_unreadable=has_unreadable)
        statement = (
            select(*RECORD)
            .join(journal_streams, journal_streams.c.id == journal_events.c.stream)
            .where(*conditions_of(query.where), *conditions)
        )
        page = as_one_row(_SQL.ordered(statement, limit=limit, backwards=backwards))
        ((found,),) = await self._reading(select(page), None, part.low, -1)
        candidates = await self._page(found, None, part.low, -1)
        return part.page(query, candidates, limit=limit, end=end, backwards=backwards)

    async def _located(self, query: AuditQuery, end: int) -> AuditQuery:
        """The query within the positions that its times leave."""
        if query.is_located or query.recorded_us == (None, None):
            return query
        whole = Part(query.after, end if query.through is None else min(end, query.through), is_last=True)
        ((first, last),) = await self._rows(_SQL.span_of_time(query, whole))
        return located(query, first, last)
