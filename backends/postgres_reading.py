"""PostgresReader: everything that is read. The log is read only up to where it is settled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from backends.checkpoints_sql import stored_checkpoint
from backends.postgres_driver import ServerError, sqlstate
from backends.postgres_mark import PostgresMark, check_end
from backends.postgres_pages import loaded, log_columns
from backends.postgres_pool import PostgresPool
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.records import snapshot_of
from backends.seals_sql import removal, stored_seal
from backends.sql_records import recorded
from backends.tenants_sql import first_tenant
from eventstore.backend import (
    NO_EVENTS,
    EventFilter,
    Load,
    Loaded,
    LogPage,
    Moved,
    Removal,
    Statistics,
    StoredCheckpoint,
    StoredSeal,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.codec import decode_metadata
from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent
from eventstore.tenant import NO_TENANT

_MAX_VERSION = 2**63 - 1

_CANDIDATES = 5000

# "program_limit_exceeded": a text has at most 1 GB, and so has an answer's row.
_TOO_LARGE = "54000"


class _Part(NamedTuple):
    """A settled part of the log. `rows` were read, of which a filter may have left fewer
    events. If it `is_full` there may be more behind the `position`. `end` is where the log ended."""

    events: Sequence[RecordedEvent]
    position: int
    is_full: bool
    end: int
    rows: int = 0


class PostgresReader:
    """Reads through the pool. One statement is one moment; a call that takes several says why."""

    def __init__(self, sql: PostgresSQL, pool: PostgresPool, mark: PostgresMark) -> None:
        self._sql = sql
        self._pool = pool
        self._mark = mark

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        if not loads:
            return []
        try:
            rows = await self._pool.run(lambda session: self._pages(session, loads))
        except JournalCorrupt as error:
            if len(loads) == 1:
                of_stream = JournalCorrupt(str(error), stream_id=loads[0].stream_id)
                of_stream.__cause__ = error
                return [of_stream]
            # What the server finds damaged spoils its whole answer.
            rows = None
        if rows is None:
            return await self._load_in_parts(loads)
        found = {row[0]: row for row in rows}
        return [
            loaded(load, *found[number][1:]) if number in found else Loaded(None, NO_EVENTS, 0, 0)
            for number, load in enumerate(loads, start=1)
        ]

    async def _pages(self, session: PostgresSession, loads: Sequence[Load]) -> Sequence[Any] | None:
        """A row for each stream that was found. None if they are too large for one answer."""
        try:
            return await session.fetch(self._sql.load, *zip(*loads, strict=True))
        except ServerError as error:
            if sqlstate(error) != _TOO_LARGE or (len(loads) == 1 and loads[0].limit <= 1):
                raise
            return None

    async def _load_in_parts(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        """One by one, and one alone in smaller pages: nobody knows how large events are before they are read."""
        if len(loads) == 1:
            return await self.load([load._replace(limit=max(1, load.limit // 8)) for load in loads])
        return [(await self.load([load]))[0] for load in loads]

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        statement = self._sql.stream_backwards if backwards else self._sql.stream
        rows = await self._rows(statement, stream_id, after, _MAX_VERSION if through is None else through, limit)
        if not rows:
            return StreamPage((), 0, 0)
        head, truncated, *_ = rows[0]
        # A stream without any event in the range is one row that has no position.
        return StreamPage([recorded(*row[2:]) for row in rows if row[2] is not None], head, truncated)

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        settled = _Part((), max(after, 0), is_full=not limit, end=0)
        # As it is now: another read may find the log settled further while the page of this one is on its way.
        final = self._mark.settled
        if limit and settled.position < final:
            # All of this part is final: who catches up needs one trip for a page, and no look at the locks.
            settled = await self._page(settled.position, final, limit, where)
            if settled.is_full:
                return LogPage(settled.events, settled.position, is_end=False, end=settled.end)
            settled = settled._replace(position=final)
        end = await self._mark.settle()
        events = settled.events
        if settled.position < end:
            more = await self._page(settled.position, end, limit - settled.rows, where)
            events = [*events, *more.events] if events else more.events
            if more.is_full:
                return LogPage(events, more.position, is_end=False, end=end)
        return LogPage(events, max(settled.position, end), is_end=True, end=end)

    async def moved(self, *, after: int, limit: int) -> Moved:
        after = max(after, 0)
        end = await self._mark.settle()
        through = min(after + limit, max(after, end))
        versions = {} if through == after else dict(await self._rows(self._sql.moved, after, through))
        return Moved(versions, through, through >= end)

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        end = await self._mark.settle()
        if count <= 0:
            return end
        if where.tags:
            return await self._start_of_last_tagged(count, end, where)
        rows = await self._rows(self._sql.last, *_matches(where), end, count - 1, 1)
        return int(rows[0][0]) - 1 if rows else 0

    async def _start_of_last_tagged(self, count: int, end: int, where: EventFilter) -> int:
        """The same where not every row that comes is a match, so that they have to be counted here."""
        while True:
            rows = await self._rows(self._sql.last, *_matches(where), end, 0, _CANDIDATES)
            for position, metadata in rows:
                count -= metadata is None or _may_carry(metadata, where.tags)
                if count == 0:
                    return int(position) - 1
            if len(rows) < _CANDIDATES:
                return 0
            end = rows[-1][0] - 1

    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        own = self._sql.tenant
        whose = own if tenant is None else tenant
        if own not in (NO_TENANT, whose):
            return []
        return [StreamInfo(*row) for row in await self._rows(self._sql.list, after, limit, kind, whose)]

    async def tenants(self, *, after: str | None, limit: int) -> Sequence[str]:
        return [tenant for (tenant,) in await self._rows(self._sql.tenants, first_tenant(after), limit)]

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        rows = await self._rows(self._sql.snapshots, stream_id, _MAX_VERSION if through is None else through, limit)
        return [snapshot_of(stream_id, *row) for row in rows]

    async def checkpoints(self, *, shared: bool) -> Sequence[StoredCheckpoint]:
        whose = NO_TENANT if shared else self._sql.tenant
        return [stored_checkpoint(*row) for row in await self._rows(self._sql.checkpoints, whose)]

    async def removals(self, *, after: int, limit: int) -> Sequence[Removal]:
        return [removal(*row) for row in await self._rows(self._sql.removals, after, limit)]

    async def seals(self, *, after: int, limit: int, backwards: bool) -> Sequence[StoredSeal]:
        statement = self._sql.seals_backwards if backwards else self._sql.seals
        return [stored_seal(*row) for row in await self._rows(statement, after, limit)]

    async def statistics(self) -> Statistics:
        (row,) = await self._rows(self._sql.statistics)
        return Statistics(*row)

    async def _rows(self, statement: str, *parameters: object) -> Sequence[Any]:
        return await self._pool.run(lambda session: session.fetch(statement, *parameters))

    async def _page(self, after: int, through: int, limit: int, where: EventFilter) -> _Part:
        """The matching events of a settled part: fewer than the limit if they are too large for one answer."""
        parameters = [*_matches(where), after, through, limit]
        known = self._mark.known_end
        while (row := await self._pool.run(lambda session: self._columns(session, parameters))) is None:
            parameters[-1] = limit = max(1, limit // 8)
        end, count = row[0], row[1]
        check_end(end, known)
        if not count:
            return _Part((), after, is_full=not limit, end=end)
        try:
            events: Sequence[RecordedEvent] = log_columns(self._sql.tenant, *row[1:]).page()
            last = row[2][-1]
        except ValueError:
            # Something is wrong with an event: it is found out what, and with which.
            rows = await self._rows(self._sql.log, *parameters)
            events = [recorded(*row[1:]) for row in rows]
            count, last = len(events), events[-1].position if events else after
        if where.tags:
            events = [event for event in events if event.metadata and set(event.metadata.tags) & set(where.tags)]
        return _Part(events, last, count == limit, end, count)

    async def _columns(self, session: PostgresSession, parameters: Sequence[object]) -> Any:
        """The one row of a page. None if it would be too large."""
        try:
            (row,) = await session.fetch(self._sql.log_columns, *parameters)
        except ServerError as error:
            if sqlstate(error) != _TOO_LARGE or parameters[-1] == 1:
                raise
            return None
        return row


async def log_within(
    session: PostgresSession, sql: PostgresSQL, *, after: int, limit: int, where: EventFilter
) -> LogPage:
    """A page of the log in a transaction that keeps all others from appending: all that it sees is settled.

    Raises the driver's errors."""
    rows = await session.fetch(sql.log, *_matches(where), after, _MAX_VERSION, limit)
    records = [recorded(*row[1:]) for row in rows]
    position = records[-1].position if records else after
    if where.tags:
        records = [one for one in records if one.metadata and set(one.metadata.tags) & set(where.tags)]
    return LogPage(records, position, len(rows) < limit, position)


def _matches(where: EventFilter) -> Iterable[list[str] | None]:
    """The filter's fields in the order of the statements' parameters."""
    return [list(field) or None for field in (where.kinds, where.types, where.stream_ids, where.tags, where.tenants)]


def _may_carry(metadata: str, tags: Sequence[str]) -> bool:
    """Whether an event has one of the tags. If its metadata is damaged, whoever reads the event is told."""
    try:
        decoded = decode_metadata(metadata)
    except ValidationError:
        return True
    return decoded is not None and not set(decoded.tags).isdisjoint(tags)
