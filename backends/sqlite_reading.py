"""SQLiteReader: everything that is read from the file, on connections that cannot write."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiosqlite
import orjson
from sqlalchemy import ColumnElement, Executable, and_, exists, func, or_, select, text
from sqlalchemy import literal_column as sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from backends import seals_sql
from backends.records import snapshot_of
from backends.sqlite_connection import HARDENING, is_about_data, read_only_uri, thread_missing, translated
from backends.sqlite_loader import SQLiteLoader
from backends.sqlite_log import SQLiteLog
from backends.sqlite_records import RECORD, as_one_row, conditions_of, records_of, unindexed_tenant
from backends.tables import journal_events, journal_removals, journal_snapshots, journal_streams
from backends.tasks import Tasks
from backends.tenants_sql import TENANTS, first_tenant
from eventstore.backend import (
    EventFilter,
    Load,
    Loaded,
    LogPage,
    Moved,
    Removal,
    Statistics,
    StoredSeal,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.codec import damaged
from eventstore.errors import BackendUnavailable, EventStoreError, JournalCorrupt, StoreClosed
from eventstore.events import RecordedEvent
from eventstore.tenant import NO_TENANT

_READERS = 2
_READER_WAIT_SECONDS = 30.0
_MAX_VERSION = 2**63 - 1

_DAMAGED = """
SELECT s.stream_id, e.version, e.position, s.tenant FROM journal_events e JOIN journal_streams s ON s.id = e.stream
WHERE (?1 IS NULL OR s.stream_id = ?1) AND (?4 IS NULL OR s.tenant = ?4) AND e.position > ?2
    AND (?3 = -1 OR e.position IN (SELECT position FROM journal_events WHERE position > ?2 ORDER BY position LIMIT ?3))
    AND (typeof(e.payload) <> 'text' OR NOT json_valid(e.payload) OR typeof(e.type) <> 'text'
    OR typeof(e.checksum) <> 'integer'
    OR (e.metadata IS NOT NULL AND (typeof(e.metadata) <> 'text' OR NOT json_valid(e.metadata))))
ORDER BY e.position LIMIT 1
"""

_e, _s, _n, _r = journal_events.c, journal_streams.c, journal_snapshots.c, journal_removals.c
# A stream that was only claimed, or whose only snapshot was deleted, has a row and nothing to show.
_IS_KNOWN = or_(_s.truncated > 0, exists().where(_e.stream == _s.id), exists().where(_n.stream == _s.id))


class SQLiteReader:
    """The reading half of the backend. Two connections serve all reads but loads, which have a third for themselves,
    and pages of the log, which have two. Whoever finds none of the first two free waits, with a deadline."""

    def __init__(self, path: Path, *, tenant: str, busy_timeout: float) -> None:
        self._path = path
        self.tenant = tenant
        self._busy_timeout = busy_timeout
        self._engine: AsyncEngine | None = None
        self._loader: SQLiteLoader | None = None
        self._log: SQLiteLog | None = None
        self._places = asyncio.Semaphore(_READERS)
        self._tasks = Tasks()
        self._pid = 0

    def open_readers(self) -> None:
        """Make connecting possible; connections are made when they are first needed."""
        self._engine = create_async_engine(
            "sqlite+aiosqlite://",
            async_creator=self._connect_reader,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=_READERS,
            max_overflow=0,
            pool_reset_on_return=None,
        )
        self._loader = SQLiteLoader(self._path, tenant=self.tenant, busy_timeout=self._busy_timeout)
        self._log = SQLiteLog(self._path, self.conditions, tenant=self.tenant, busy_timeout=self._busy_timeout)
        self._pid = os.getpid()

    async def close_readers(self) -> None:
        """Close the connections."""
        engine, self._engine = self._engine, None
        loader, self._loader = self._loader, None
        log, self._log = self._log, None
        await self._tasks.join()
        if loader is not None:
            await loader.close()
        if log is not None:
            await log.close()
        if engine is not None:
            await engine.dispose()

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        self.check_open()
        try:
            return await cast("SQLiteLoader", self._loader).load(loads)
        except JournalCorrupt as error:
            if len(loads) == 1:
                return [await self._located(error, loads[0].stream_id)]
        # One damaged row spoils the page: read one by one, so that only its own stream fails.
        return [(await self.load([load]))[0] for load in loads]

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        is_stream = and_(_s.tenant == self.tenant, _s.stream_id == stream_id)
        newest = select(func.max(_e.version)).where(_e.stream == _s.id).scalar_subquery()
        order = _e.version.desc() if backwards else _e.version.asc()
        page = (
            select(*RECORD)
            .join(journal_streams, _s.id == _e.stream)
            .where(is_stream, _e.version > after, _e.version <= (_MAX_VERSION if through is None else through))
            .order_by(order)
            .limit(limit)
        )
        statement = select(_s.truncated, newest, as_one_row(page)).where(is_stream)
        rows = await self._reading(statement, stream_id)
        if not rows:
            return StreamPage((), 0, 0)
        truncated, version, events = rows[0]
        return StreamPage(await self._page(events, stream_id), max(truncated, version or 0), truncated)

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        try:
            return await self.log.page(after, limit, where)
        except (ValueError, JournalCorrupt):
            return await self._read_one_by_one(after, limit, where)

    async def _read_one_by_one(self, after: int, limit: int, where: EventFilter) -> LogPage:
        """The same where something is wrong with an event: to find out what, and with which."""
        page = (
            select(*RECORD)
            .join(journal_streams, _s.id == _e.stream)
            .where(_e.position > after, *self.conditions(where))
            .order_by(_e.position)
            .limit(limit)
        )
        # One statement is one moment: the end of the log and the page belong together.
        end = select(func.coalesce(func.max(_e.position), 0)).scalar_subquery()
        # Without a filter, a damaged event is looked for in this very page: who reads on behind it rests on that. Of a
        # tenant's own it is the first behind the position.
        part = (after, limit if not self.tenant and where == EventFilter() else -1)
        ((last, events),) = await self._reading(select(end, as_one_row(page)), None, *part)
        records = await self._page(events, None, *part)
        is_end = len(records) < limit
        position = max(after, last) if is_end else records[-1].position
        return LogPage(records, position, is_end, last)

    async def moved(self, *, after: int, limit: int) -> Moved:
        through = max(after, 0) + limit
        newest = (
            select(_s.stream_id, func.max(_e.version))
            .join(journal_streams, _s.id == _e.stream)
            .where(_e.position > after, _e.position <= through, unindexed_tenant == self.tenant)
            .group_by(_e.stream)
            .subquery()
        )
        end = select(func.coalesce(func.max(_e.position), 0)).scalar_subquery()
        found = select(func.json_group_array(func.json_array(*newest.c))).scalar_subquery()
        ((last, versions),) = await self._rows(select(end, found))
        return Moved(dict(orjson.loads(versions)), min(max(after, last), through), last <= through)

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        if count <= 0:
            ((last,),) = await self._rows(select(func.coalesce(func.max(_e.position), 0)))
            return int(last)
        statement = (
            select(_e.position)
            .join(journal_streams, _s.id == _e.stream)
            .where(*self.conditions(where))
            .order_by(_e.position.desc())
            .offset(count - 1)
            .limit(1)
        )
        rows = await self._rows(statement)
        return int(rows[0][0]) - 1 if rows else 0

    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        whose = self.tenant if tenant is None else tenant
        if self.tenant not in (NO_TENANT, whose):
            return []
        newest = select(func.max(_e.version)).where(_e.stream == _s.id).scalar_subquery()
        statement = select(_s.stream_id, newest, _s.truncated)
        statement = statement.where(_s.tenant == whose, _s.stream_id > after, _IS_KNOWN)
        if kind is not None:
            statement = statement.where(_s.kind == kind)
        page = statement.order_by(_s.stream_id).limit(limit).subquery()
        ((found,),) = await self._rows(select(func.json_group_array(func.json_array(*page.c))))
        return [
            StreamInfo(stream_id, max(newest or 0, truncated), truncated, whose)
            for stream_id, newest, truncated in orjson.loads(found)
        ]

    async def tenants(self, *, after: str | None, limit: int) -> Sequence[str]:
        rows = await self._driver_rows(TENANTS, (first_tenant(after), limit, self.tenant))
        return [tenant for (tenant,) in rows]

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        statement = (
            select(_n.version, _n.fingerprint, _n.encoding, _n.payload, _n.checksum, _n.recorded_at, _n.epoch)
            .join(journal_streams, _s.id == _n.stream)
            .where(_s.tenant == self.tenant, _s.stream_id == stream_id)
            .where(_n.version <= (_MAX_VERSION if through is None else through))
            .order_by(_n.version.desc())
            .limit(limit)
        )
        return [snapshot_of(stream_id, *row) for row in await self._rows(statement)]

    async def removals(self, *, after: int, limit: int) -> Sequence[Removal]:
        rows = await self._driver_rows(seals_sql.REMOVALS.format(schema="", after="?1", limit="?2"), (after, limit))
        return [seals_sql.removal(*row) for row in rows]

    async def seals(self, *, after: int, limit: int, backwards: bool) -> Sequence[StoredSeal]:
        statement = seals_sql.seals(schema="", after="?1", limit="?2", backwards=backwards)
        return [seals_sql.stored_seal(*row) for row in await self._driver_rows(statement, (after, limit))]

    async def statistics(self) -> Statistics:
        def count(column: ColumnElement[Any]) -> ColumnElement[Any]:
            return select(func.count(column)).scalar_subquery()

        streams_known = select(func.count(_s.id)).where(_IS_KNOWN).scalar_subquery()
        # Where the log ended when events were last removed: the newest may have been among them.
        removed = select(_r.log_end).order_by(_r.id.desc()).limit(1).scalar_subquery()
        newest = select(func.max(_e.position)).scalar_subquery()
        last = func.max(func.coalesce(newest, 0), func.coalesce(removed, 0))
        pages: ColumnElement[int] = sql("page_count * page_size")
        size = select(pages).select_from(text("pragma_page_count, pragma_page_size"))
        ((streams, events, snapshots, position, size_bytes),) = await self._rows(
            select(streams_known, count(_e.position), count(_n.version), last, size.scalar_subquery())
        )
        return Statistics(streams, events, snapshots, position, size_bytes)

    async def _connect_reader(self) -> aiosqlite.Connection:
        connection = aiosqlite.connect(
            read_only_uri(self._path), uri=True, isolation_level=None, timeout=self._busy_timeout
        )
        try:
            await connection
        except RuntimeError as error:
            raise thread_missing(error) from error
        for pragma in (*HARDENING, "PRAGMA query_only = ON"):
            await connection.execute_fetchall(pragma)
        return connection

    async def _rows(self, statement: Executable) -> Sequence[Any]:
        """Run a statement on a reading connection."""
        try:
            return await self._tasks.finish(self._execute(self._open_engine, statement))
        except DBAPIError as error:
            raise _read_error(error.orig) from error

    async def _reading(self, statement: Executable, stream_id: str | None, *part: int) -> Sequence[Any]:
        """Run a statement that reads events; a damaged one is named."""
        try:
            return await self._rows(statement)
        except JournalCorrupt as error:
            raise await self._located(error, stream_id, *part) from error

    async def _driver_rows(self, statement: str, parameters: Sequence[Any]) -> Sequence[Any]:
        """Run a statement on the driver itself: one hop to its thread instead of four."""
        try:
            return await self._tasks.finish(self._execute_on_driver(self._open_engine, statement, parameters))
        except DBAPIError as error:
            # The pool had to connect, and could not.
            raise _read_error(error.orig) from error
        except sqlite3.Error as error:
            raise _read_error(error) from error

    async def _execute(self, engine: AsyncEngine, statement: Executable) -> Sequence[Any]:
        async with self._place(), engine.connect() as connection:
            return (await connection.execute(statement)).all()

    async def _execute_on_driver(self, engine: AsyncEngine, statement: str, parameters: Sequence[Any]) -> Sequence[Any]:
        async with self._place(), engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            return list(await cast("aiosqlite.Connection", driver).execute_fetchall(statement, parameters))

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[None, None]:
        # The engine's pool lets so many connect at once too, but whoever waits there is not woken when one fails to.
        try:
            async with asyncio.timeout(_READER_WAIT_SECONDS):
                await self._places.acquire()
        except TimeoutError as error:
            raise _no_reader() from error
        try:
            yield
        finally:
            self._places.release()

    @property
    def log(self) -> SQLiteLog:
        """Whoever reads pages of the log."""
        self.check_open()
        return cast("SQLiteLog", self._log)

    @property
    def _open_engine(self) -> AsyncEngine:
        self.check_open()
        return cast("AsyncEngine", self._engine)

    async def _page(self, events: str, stream_id: str | None, *part: int) -> Sequence[RecordedEvent]:
        try:
            return records_of(events)
        except JournalCorrupt as error:
            if error.version is not None:
                raise
            raise await self._located(error, stream_id, *part) from error

    async def _located(
        self, error: JournalCorrupt, stream_id: str | None, after: int = 0, limit: int = -1
    ) -> JournalCorrupt:
        """The same error, naming the first row that is not what the journal writes, of a stream or of a page."""
        # A stream is this tenant's, and a page of the store without a tenant is everybody's.
        whose = None if stream_id is None and not self.tenant else self.tenant
        rows = await self._driver_rows(_DAMAGED, (stream_id, after, limit, whose))
        if not rows:
            return error
        where, version, position, tenant = rows[0]
        located = damaged(
            "its columns do not hold JSON text, a name and a number any more",
            stream_id=str(where),
            version=int(version),
            position=int(position),
            tenant=str(tenant),
        )
        located.__cause__ = error
        return located

    def conditions(self, where: EventFilter) -> list[ColumnElement[bool]]:
        """A filter in SQL: of what the store shows."""
        return conditions_of(where, self.tenant)

    def check_open(self) -> None:
        """Raise `StoreClosed` unless the store is open, and in this process."""
        if self._engine is None:
            raise StoreClosed("the store is not open: use it inside `async with EventStore.open(url) as store`")
        # File locks and connections do not survive a fork: using them in the child can damage the file.
        if os.getpid() != self._pid:
            raise StoreClosed(
                "this store was opened before a fork, which SQLite does not survive: open the file after the fork "
                "alone, or start the process by another method: 'spawn' or 'forkserver'"
            )


def _read_error(error: BaseException | None) -> EventStoreError:
    if isinstance(error, sqlite3.Error) and not is_about_data(error):
        return translated(error, writing=False)
    return JournalCorrupt(f"a stored row cannot be read: {error}")


def _no_reader() -> BackendUnavailable:
    return BackendUnavailable(
        f"no reading connection was free for {_READER_WAIT_SECONDS:g} s: too many reads at once; try again"
    )
