"""PostgresAudit: an audit's questions to the database, behind the mark up to which the log is settled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import SelectBase, func, make_url, or_, select, tuple_

from backends.audit_paging import Part, is_scan, located, part_of, totals_of
from backends.audit_shape import Shape
from backends.audit_sql import HOUR_US, PAGE_BYTES
from backends.postgres_audit_sql import PostgresAuditSQL
from backends.postgres_pool import PostgresPool
from backends.postgres_reading import PostgresReader, log_page
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.sql_records import recorded
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals, Count
from eventstore.events import RecordedEvent

# What `grouping` tells of a row: a bit for each column that it is not grouped by.
_ALL, _BY_TYPE, _BY_STREAM, _BY_USER, _BY_HOUR = 0b1111, 0b0111, 0b1011, 0b1101, 0b1110

_DIALECT = make_url("postgresql+asyncpg://").get_dialect()()
# Elsewhere a plan serves every value. These questions are rare, and their values differ by orders: planning anew takes
# 0.3 ms, and another 0.2 to say so. For a single label the index has the order of the log, whatever the value.
_PLANNING = "SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = on"
_STATEMENTS = 128


class _Statement(NamedTuple):
    """A statement's text with the names of its parameters, and the values of those that are part of it."""

    text: str
    names: Sequence[str]
    constants: Mapping[str, Any]

    @classmethod
    def of(cls, select: SelectBase) -> _Statement:
        compiled = select.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
        return cls(compiled.string, compiled.positiontup or (), compiled.params)

    async def fetch(self, session: PostgresSession, values: Mapping[str, Any]) -> Sequence[Any]:
        """The rows. `values` are those of the other parameters."""
        values = {**self.constants, **values}
        return await session.fetch(self.text, *(values[name] for name in self.names))


class PostgresAudit(PostgresReader):
    """A page is a few statements, all of them about what is final."""

    def __init__(
        self, sql: PostgresSQL, pool: PostgresPool, *, settle_seconds: float, stored_through: Callable[[], int]
    ) -> None:
        super().__init__(sql, pool, settle_seconds=settle_seconds, stored_through=stored_through)
        self._audit = PostgresAuditSQL(sql.schema, sql.tenant)
        self._readable_through = 0
        e, s = self._audit.events.c, self._audit.streams.c
        names = "position version type schema_version payload metadata event_id batch_id epoch recorded_at checksum"
        first, *others = names.split()
        origin = (e.origin, e.origin_sequence, e.clock, e.concurrent)
        self._record = (e[first], s.stream_id, *(e[name] for name in others), s.tenant, *origin)
        self._unreadable = _Statement.of(self._audit.unreadable("user"))
        self._page_of = lru_cache(maxsize=_STATEMENTS)(self._new_page)
        self._span_of = lru_cache(maxsize=_STATEMENTS)(self._new_span)

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
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
        # Letting unreadable metadata through would keep an index from giving the events in the order of the log.
        has_unreadable = any(query.labels.values()) and await self._has_unreadable(session, end)
        shape = Shape.of(query, unreadable=query.labels if has_unreadable else ())
        async with nullcontext() if shape.is_label else session.reading(_PLANNING):
            query = await self._located(session, query, end)
            by_streams = bool(query.where.kinds or query.where.stream_ids)
            is_walk = is_scan(query, by_streams=by_streams)
            part = part_of(query, cursor=cursor, end=end, backwards=backwards, is_scan=is_walk)
            rows, by_column = self._page_of(shape, backwards)
            values = {**self._audit.parameters(query, shape, part), "limit": limit}
            (row,) = await by_column.fetch(session, values)
            try:
                found: Sequence[RecordedEvent] = log_page(self._sql.tenant, *row[1:]) if row[1] else ()
            except ValueError:
                # Something is wrong with an event: it is found out what, and with which.
                found = [recorded(*one) for one in await rows.fetch(session, values)]
        is_full = len(found) >= limit or row[0] > PAGE_BYTES
        return part.page(query, found, is_full=is_full, backwards=backwards, end=end)

    def _new_page(self, shape: Shape, backwards: bool) -> tuple[_Statement, _Statement]:
        """A page's statement, as rows and by column."""
        audit, position = self._audit, self._audit.events.c.position
        found = audit.candidates(self._record, shape, joined=audit.joined, order=position, backwards=backwards)
        page = audit.cut(found, backwards=backwards)
        rows = _Statement.of(page)
        return rows, rows._replace(text=self._sql.by_column(rows.text))

    def _new_span(self, shape: Shape) -> _Statement:
        return _Statement.of(self._audit.span_of_time(shape))

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        if not query.is_plain:
            return None
        end = await self._end(query)
        return await self._pool.run(lambda session: self._totals(session, query, end, top))

    async def _totals(self, session: PostgresSession, query: AuditQuery, end: int, top: int) -> AuditTotals | None:
        e, s = self._audit.events.c, self._audit.streams.c
        async with session.reading(_PLANNING):
            if await self._has_unreadable(session, end):
                return None
            query = await self._located(session, query, end)
            part = part_of(query, cursor=None, end=end, backwards=False, is_scan=False)
            shape = Shape.of(query)
            chosen = (
                select(
                    e.type,
                    s.stream_id,
                    self._audit.text_of_metadata("user").label("user"),
                    e.recorded_at.op("/")(HOUR_US).label("hour"),
                    e.recorded_at,
                    func.octet_length(e.payload).label("payload_bytes"),
                    func.octet_length(e.metadata).label("metadata_bytes"),
                )
                .select_from(self._audit.joined)
                .where(*self._audit.conditions(shape))
            ).subquery()
            grouped = _Statement.of(_grouped(chosen, top))
            rows = await grouped.fetch(session, self._audit.parameters(query, shape, part))
        found: dict[int, list[Any]] = {}
        for group, *row in rows:
            found.setdefault(group, []).append(row)
        sums = [0, 0, 0, None, None] if not found.get(_ALL) else found[_ALL][0][4:]
        counted = [
            [Count(row[column], row[4]) for row in found.get(group, ())]
            for column, group in enumerate((_BY_TYPE, _BY_STREAM, _BY_USER))
        ]
        return totals_of(sums, [row[3:5] for row in found.get(_BY_HOUR, ())], counted, end=end)

    async def _end(self, query: AuditQuery) -> int:
        """A position up to which the log is final, and which reaches as far as the query, if the log does."""
        if query.through is not None and query.through <= self._settled:
            return self._settled
        return await self.settle()

    async def _has_unreadable(self, session: PostgresSession, end: int) -> bool:
        """Whether there is metadata up to a settled position that jsonb cannot hold."""
        if end > self._readable_through and not await self._unreadable.fetch(session, {}):
            self._readable_through = end
        return end > self._readable_through

    async def _located(self, session: PostgresSession, query: AuditQuery, end: int) -> AuditQuery:
        """The query within the positions that its times leave."""
        if query.is_located or query.recorded_us == (None, None):
            return query
        whole = Part(query.after, end if query.through is None else min(end, query.through), is_last=True)
        shape = Shape.of(query)
        ((first, last),) = await self._span_of(shape).fetch(session, self._audit.parameters(query, shape, whole))
        return located(query, first, last)


def _grouped(chosen: Any, top: int) -> SelectBase:
    """All sums in one pass: of everything, and by type, stream, user and hour, of the first three the most frequent."""
    c = chosen.c
    by = (c.type, c.stream_id, c.user, c.hour)
    group = func.grouping(*by)
    name = func.coalesce(c.type, c.stream_id, c.user).collate("C")
    place = func.row_number().over(partition_by=group, order_by=(func.count().desc(), name.nulls_first()))
    sums = select(
        group.label("group_"),
        *by,
        func.count().label("events"),
        func.coalesce(func.sum(c.payload_bytes), 0).label("payload_bytes"),
        func.coalesce(func.sum(c.metadata_bytes), 0).label("metadata_bytes"),
        func.min(c.recorded_at).label("first"),
        func.max(c.recorded_at).label("last"),
        place.label("place"),
    ).group_by(func.grouping_sets(tuple_(), *(tuple_(column) for column in by)))
    found = sums.subquery()
    columns = [column for column in found.c if column.name != "place"]
    # Not IN, which is written out when the statement is compiled, and wants the values of all parameters then.
    is_wanted = or_(found.c.group_ == _ALL, found.c.group_ == _BY_HOUR, found.c.place <= top)
    return select(*columns).where(is_wanted).order_by(found.c.group_, found.c.place)
