"""PostgresAudit: an audit's questions to the database, behind the mark up to which the log is settled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import asyncpg

from backends.audit_sql import Part, PostgresAuditSQL, is_scan, located, part_of
from backends.postgres_pool import PostgresPool
from backends.postgres_reading import PostgresReader, record
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from eventstore.audit_query import AuditPage, AuditQuery

_DIALECT = asyncpg.dialect()
_PLANNING = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = on"


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
        return await self._pool.run(
            lambda session: self._audit_page(session, query, cursor, end, limit=limit, backwards=backwards)
        )

    async def _audit_page(
        self,
        session: PostgresSession,
        query: AuditQuery,
        cursor: int | None,
        end: int,
        *,
        limit: int,
        backwards: bool,
    ) -> AuditPage:
        async with session.transaction():
            # Elsewhere a plan serves every value. These questions are rare, and their values differ by orders.
            await session.execute(_PLANNING)
            query = await self._located(session, query, end)
            part = part_of(query, cursor=cursor, end=end, backwards=backwards, is_scan=is_scan(query))
            # Letting unreadable metadata through would keep an index from giving the events in the order of the log.
            is_labelled = any(query.labels.values())
            has_unreadable = is_labelled and bool(await _select(session, self._audit.unreadable()))
            conditions = self._audit.conditions(query, part, with_unreadable=has_unreadable)
            e, s = self._audit.events, self._audit.streams
            statement = select(*self._record).join(s, s.c.id == e.c.stream)
            statement = statement.where(*self._audit.where(query), *conditions)
            rows = await _select(session, self._audit.ordered(statement, limit=limit, backwards=backwards))
        return part.page(query, [record(*row) for row in rows], limit=limit, end=end, backwards=backwards)

    async def _end(self, query: AuditQuery) -> int:
        """A position up to which the log is final, and which reaches as far as the query, if the log does."""
        if query.through is not None and query.through <= self._settled:
            return self._settled
        return await self._settle()

    async def _located(self, session: PostgresSession, query: AuditQuery, end: int) -> AuditQuery:
        """The query within the positions that its times leave."""
        if query.is_located or query.recorded_us == (None, None):
            return query
        whole = Part(query.after, end if query.through is None else min(end, query.through), is_last=True)
        ((first, last),) = await _select(session, self._audit.span_of_time(query, whole))
        return located(query, first, last)


async def _select(session: PostgresSession, statement: Select[Any]) -> Sequence[Any]:
    compiled = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    return await session.fetch(compiled.string, *(compiled.params[name] for name in compiled.positiontup or ()))
