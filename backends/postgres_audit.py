"""PostgresAudit: an audit's questions to the database, behind the mark up to which the log is settled."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import SelectBase, func, make_url, or_, select, tuple_

from backends import audit_paging
from backends.audit_paging import is_scan, located, part_of, totals_of
from backends.audit_shape import Shape
from backends.audit_sql import HOUR_US, PAGE_BYTES
from backends.postgres_audit_sql import PostgresAuditSQL
from backends.postgres_mark import PostgresMark, check_end, check_event, seen
from backends.postgres_pages import log_columns
from backends.postgres_pool import PostgresPool
from backends.postgres_reading import PostgresReader
from backends.postgres_session import PLANNING_ANEW, PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.sql_records import recorded
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals, Count
from eventstore.contract.record_page import RecordPage

# What `grouping` tells of a row: a bit for each column that it is not grouped by.
_ALL, _BY_TYPE, _BY_STREAM, _BY_USER, _BY_HOUR = 0b1111, 0b0111, 0b1011, 0b1101, 0b1110

_DIALECT = make_url("postgresql+asyncpg://").get_dialect()()
_STATEMENTS = 128

_T = TypeVar("_T")


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
    """A page is one statement, and one trip, unless something was appended since it was last looked how far the log is
    settled: then that is waited for, and it is asked again."""

    def __init__(self, sql: PostgresSQL, pool: PostgresPool, mark: PostgresMark) -> None:
        super().__init__(sql, pool, mark)
        self._audit = PostgresAuditSQL(sql.schema, sql.tenant)
        # Once there is metadata that jsonb cannot hold, it stays.
        self._has_unreadable = False
        e, s = self._audit.events.c, self._audit.streams.c
        names = "position version type schema_version payload metadata event_id batch_id epoch recorded_at checksum"
        first, *others = names.split()
        origin = (e.origin, e.origin_sequence, e.clock, e.concurrent)
        self._record = (e[first], s.stream_id, *(e[name] for name in others), s.tenant, *origin)
        self._unreadable = _Statement.of(self._audit.unreadable("user"))
        self._rows_of = lru_cache(maxsize=_STATEMENTS)(self._new_rows)
        self._question_of = lru_cache(maxsize=_STATEMENTS)(self._new_question)

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        end = self._mark.settled
        known = None if query.through is not None and query.through <= end else end
        is_located = query.is_located or query.recorded_us == (None, None)
        is_walk = is_scan(query, by_streams=bool(query.where.kinds or query.where.stream_ids))
        while True:
            # Letting unreadable metadata through keeps an index from giving the events in the order of the log.
            shape = Shape.of(query, unreadable=query.labels if self._has_unreadable else ())
            question = self._question_of(shape, is_located, is_walk, backwards)
            # The times will leave less of it.
            part = part_of(query, cursor=cursor, end=end, backwards=backwards, is_scan=is_walk and is_located)
            before, last_seen = self._mark.known_end, self._mark.newest
            asked = {
                "known": known,
                "seen": last_seen.position,
                "limit": limit,
                "scanned": audit_paging.SCANNED_POSITIONS,
            }
            values = {**self._audit.parameters(query, shape), **part.bounds, **asked}
            (row,) = await self._asked(question, values, shape)
            log_end, appends, newest, newest_id, at_seen, is_unreadable, first, last, size, *columns = row
            check_event(at_seen, last_seen)
            is_final = known in (None, log_end)
            if is_final:
                check_end(log_end, before)
            else:
                end = await self._mark.settled_at(log_end, appends, seen(newest, newest_id), before)
                known = None
            if is_unreadable:
                self._has_unreadable = True
            elif is_final:
                break
        if not is_located:
            query = located(query, first, last)
            part = part_of(query, cursor=cursor, end=end, backwards=backwards, is_scan=is_walk)
        is_full = columns[0] >= limit or size > PAGE_BYTES
        with suppress(ValueError):
            found = log_columns(self._sql.tenant, *columns).page(decodes_late=True) if columns[0] else RecordPage.of(())
            return part.page(query, found, is_full=is_full, backwards=backwards, end=end)
        # Something is wrong with an event: it is found out what, and with which.
        rows = await self._asked(self._rows_of(shape, backwards), {**values, **part.bounds}, shape)
        events = RecordPage.of([recorded(*row[:-1]) for row in rows])
        return part.page(query, events, is_full=is_full, backwards=backwards, end=end)

    async def _asked(self, statement: _Statement, values: Mapping[str, Any], shape: Shape) -> Sequence[Any]:
        return await self._planned(lambda session: statement.fetch(session, values), is_anew=not shape.has_one_plan)

    async def _planned(self, work: Callable[[PostgresSession], Coroutine[Any, Any, _T]], *, is_anew: bool = True) -> _T:
        """Do some work on a session that plans its statements `is_anew`, for the values that they have."""
        if not is_anew:
            return await self._pool.run(work)

        async def planned(session: PostgresSession) -> _T:
            if not session.is_pooled:
                return await work(session)
            async with session.reading(PLANNING_ANEW):
                return await work(session)

        return await self._pool.run(planned, planning=PLANNING_ANEW)

    def _new_rows(self, shape: Shape, backwards: bool) -> _Statement:
        return _Statement.of(self._audit.rows(self._record, shape, backwards=backwards))

    def _new_question(self, shape: Shape, is_located: bool, is_walk: bool, backwards: bool) -> _Statement:
        question = _Statement.of(
            self._audit.question(self._record, shape, is_located=is_located, is_scan=is_walk, backwards=backwards)
        )
        known = f"${question.names.index('known') + 1}"
        return question._replace(text=self._sql.audit(question.text, known))

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        if not query.is_plain:
            return None
        end = self._mark.settled
        if query.through is None or query.through > end:
            end = await self._mark.settle()
        return await self._planned(lambda session: self._totals(session, query, end, top))

    async def _totals(self, session: PostgresSession, query: AuditQuery, end: int, top: int) -> AuditTotals | None:
        # Where all that is asked for was settled before, nobody has looked at the log's end.
        await self._mark.check_kept(session)
        self._has_unreadable = self._has_unreadable or bool(await self._unreadable.fetch(session, {}))
        if self._has_unreadable:
            return None
        e, s = self._audit.events.c, self._audit.streams.c
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
        rows = await grouped.fetch(session, {**self._audit.parameters(query, shape), **part.bounds})
        found: dict[int, list[Any]] = {}
        for group, *row in rows:
            found.setdefault(group, []).append(row)
        sums = [0, 0, 0, None, None] if not found.get(_ALL) else found[_ALL][0][4:]
        counted = [
            [Count(row[column], row[4]) for row in found.get(group, ())]
            for column, group in enumerate((_BY_TYPE, _BY_STREAM, _BY_USER))
        ]
        return totals_of(sums, [row[3:5] for row in found.get(_BY_HOUR, ())], counted, end=end)


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
