"""PostgresAudit: an audit's questions to the database, behind the mark up to which the log is settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import asyncpg

from backends.audit_sql import Part, PostgresAuditSQL, located, part_of
from backends.postgres_pool import PostgresPool
from backends.postgres_reading import PostgresReader, record
from backends.postgres_sql import PostgresSQL
from eventstore.audit_query import AuditPage, AuditQuery

_DIALECT = asyncpg.dialect()


class PostgresAudit(PostgresReader):
    """A page is a few statements, all of them about what is final."""

    def __init__(self, sql: PostgresSQL, pool: PostgresPool, *, settle_seconds: float) -> None:
        super().__init__(sql, pool, settle_seconds=settle_seconds)
        self._audit = PostgresAuditSQL(sql.schema)
        e, s = self._audit.events.c, self._audit.streams.c
        names = "position version type schema_version payload metadata event_id batch_id epoch recorded_at checksum"
        first, *others = names.split()
        origin = (e.origin, e.origin_sequence, e.clock, e.concurrent)
        self._record = (e[first], s.stream_id, *(e[name] for name in others), s.tenant, *origin)

    async def audit_page(
        self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool
    ) -> AuditPage:
        end = await self._end(query)
        query = await self._located(query, end)
        part = part_of(query, cursor=cursor, end=end, backwards=backwards)
        statement = select(*self._record).join(
            self._audit.streams, self._audit.streams.c.id == self._audit.events.c.stream
        )
        conditions = self._audit.conditions(query, part, with_unreadable=await self._has_unreadable(query))
        statement = statement.where(*self._audit.where(query), *conditions)
        rows = await self._select(self._audit.ordered(statement, limit=limit, backwards=backwards))
        return part.page(query, [record(*row) for row in rows], limit=limit, end=end, backwards=backwards)

    async def _end(self, query: AuditQuery) -> int:
        """A position up to which the log is final, and which reaches as far as the query, if the log does."""
        if query.through is not None and query.through <= self._settled:
            return self._settled
        return await self._settle()

    async def _located(self, query: AuditQuery, end: int) -> AuditQuery:
        """The query within the positions that its times leave."""
        if query.is_located or query.recorded_us == (None, None):
            return query
        whole = Part(query.after, end if query.through is None else min(end, query.through), is_last=True)
        ((first, last),) = await self._select(self._audit.span_of_time(query, whole))
        return located(query, first, last)

    async def _has_unreadable(self, query: AuditQuery) -> bool:
        """Whether there is metadata that jsonb cannot hold. If it had to be let through at every question, no index
        would give the events in the order of the log, so it is looked for first."""
        if not any(query.labels.values()):
            return False
        return bool(await self._select(self._audit.unreadable()))

    async def _select(self, statement: Select[Any]) -> Sequence[Any]:
        compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        return await self._rows(compiled.string, *(compiled.params[name] for name in compiled.positiontup or ()))
