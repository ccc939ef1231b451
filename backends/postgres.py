"""PostgresBackend: the journal in a Postgres database. Appends have their own connection, all else shares a few."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from backends.postgres_append import PostgresAppend
from backends.postgres_pool import PostgresPool
from backends.postgres_reading import PostgresReader
from backends.postgres_server import PostgresServer, check_server
from backends.postgres_session import PostgresSession, connect
from backends.postgres_sql import PostgresSQL
from backends.postgres_wakeup import PostgresWakeUp
from eventstore.backend import (
    AppendOutcome,
    Batch,
    Capabilities,
    Durability,
    EventFilter,
    Load,
    Loaded,
    LogPage,
    Statistics,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.errors import JournalCorrupt, StoreClosed
from eventstore.events import stream_kind
from eventstore.postgres_url import PostgresTarget, postgres_target
from eventstore.url import StoreUrl

_MAX_VERSION = 2**63 - 1
_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


class PostgresBackend:
    """`postgresql://user:password@host/database`; docs/postgres.md has its parameters, and the rights its role needs.

    Any number of processes may use one journal. Each has one connection that appends, up to `pool_size` others, and
    one that listens once somebody waits for new events.
    """

    capabilities = Capabilities(creates_schema=False, survives_restart=True)

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self._target = postgres_target(url)
        self._sql = PostgresSQL(self._target.schema)
        self.durability = Durability(self._target.durability)
        self.schema_revision: str | None = None
        self.database = "PostgreSQL"
        self._parts: _Parts | None = None

    async def open(self) -> None:
        # Unnamed statements inside transactions: this much works through every kind of proxy.
        session = await connect(self._target, is_pooled=True)
        try:
            server = await check_server(session, self._sql, self._target, self.url)
        finally:
            await session.close()
        parts = _Parts(self.url, self._target, self._sql, server)
        try:
            await parts.append.open()
        except BaseException:
            await parts.close()
            raise
        self.schema_revision = server.revision
        self.database = f"PostgreSQL {server.version}"
        self._parts = parts

    async def close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None and parts.pid == os.getpid():
            await parts.close()

    # Writing

    def append(self, batches: Sequence[Batch]) -> asyncio.Future[Sequence[AppendOutcome]]:
        parts = self._open
        task = asyncio.ensure_future(parts.append.append(batches))
        parts.appends.add(task)
        task.add_done_callback(parts.appended)
        return task

    async def claim(self, stream_id: str) -> int:
        async def claim(session: PostgresSession) -> int:
            rows = await session.fetch(self._sql.claim, stream_id, stream_kind(stream_id), _now())
            return int(rows[0][0])

        parts = self._open
        epoch = await parts.pool.run(claim, writing=True)
        parts.append.forget(stream_id)
        return epoch

    async def truncate(self, stream_id: str, through: int, *, reason: str) -> int:
        async def truncate(session: PostgresSession) -> int:
            async with session.transaction():
                rows = await session.fetch(self._sql.lock_stream, stream_id)
                if not rows:
                    return 0
                ((stream, version, truncated),) = rows
                last = min(through, version)
                if last <= truncated:
                    return 0
                # The door that the delete trigger looks for; it stays as the record of what was removed.
                ((door,),) = await session.fetch(self._sql.open_removal, stream, last, reason, _now())
                removed = await session.execute(self._sql.remove, stream, last)
                await session.execute(self._sql.truncated, stream, last)
                await session.execute(self._sql.close_removal, door, removed)
                return removed

        return await self._open.pool.run(truncate, writing=True)

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> None:
        async def save(session: PostgresSession) -> None:
            async with session.transaction():
                stream = await self._stream_row(session, snapshot.stream_id)
                await session.execute(
                    self._sql.save_snapshot,
                    stream,
                    snapshot.version,
                    snapshot.fingerprint,
                    snapshot.encoding,
                    snapshot.payload,
                    snapshot.checksum,
                    snapshot.epoch,
                    (snapshot.recorded_at - _EPOCH_START) // timedelta(microseconds=1),
                )
                await session.execute(self._sql.drop_snapshots, stream, keep)

        await self._open.pool.run(save, writing=True)

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        last = _MAX_VERSION if through is None else through
        return await self._open.pool.run(
            lambda session: session.execute(self._sql.delete_snapshots, stream_id, last), writing=True
        )

    async def _stream_row(self, session: PostgresSession, stream_id: str) -> int:
        """The id of a stream's row, which is made if there is none."""
        find = (self._sql.stream_id, stream_id)
        make = (self._sql.new_stream, stream_id, stream_kind(stream_id), _now())
        # Again at the end: who made it at the same moment has made it by then.
        for statement, *parameters in (find, make, find):
            if rows := await session.fetch(statement, *parameters):
                return int(rows[0][0])
        raise RuntimeError("a stream was neither there nor could it be made")

    # Reading

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        return await self._open.reader.load(loads)

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        return await self._open.reader.read_stream(
            stream_id, after=after, through=through, limit=limit, backwards=backwards
        )

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        return await self._open.reader.read_all(after=after, limit=limit, where=where)

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        return await self._open.reader.start_of_last(count, where)

    async def streams(self, *, after: str, limit: int, kind: str | None) -> Sequence[StreamInfo]:
        return await self._open.reader.streams(after=after, limit=limit, kind=kind)

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        return await self._open.reader.read_snapshots(stream_id, through=through, limit=limit)

    async def statistics(self) -> Statistics:
        return await self._open.reader.statistics()

    async def wait(self, after: int, timeout: float) -> None:
        parts = self._open
        if parts.append.last_position <= after:
            await parts.wakeup.wait(timeout)

    @property
    def _open(self) -> _Parts:
        parts = self._parts
        if parts is None:
            raise StoreClosed("the store is not open: use it inside `async with EventStore.open(url) as store`")
        # Two processes on one connection would read each other's answers.
        if os.getpid() != parts.pid:
            raise StoreClosed("this store was opened before a fork: open one of its own in the child process")
        if asyncio.get_running_loop() is not parts.loop:
            raise StoreClosed("this store was opened in another event loop: open one of its own in each")
        return parts


class _Parts:
    """What a backend has while it is open: in one process, on one event loop."""

    def __init__(self, url: StoreUrl, target: PostgresTarget, sql: PostgresSQL, server: PostgresServer) -> None:
        async def session() -> PostgresSession:
            return await connect(target, is_pooled=server.is_pooled, settings=server.session_settings)

        async def writer() -> PostgresSession:
            opened = await session()
            try:
                # After a fail-over it is another server.
                await check_server(opened, sql, target, url)
            except BaseException:
                opened.cut()
                raise
            return opened

        self.pid = os.getpid()
        self.loop = asyncio.get_running_loop()
        self.append = PostgresAppend(sql, writer)
        self.pool = PostgresPool(target, session)
        self.reader = PostgresReader(sql, self.pool, settle_seconds=target.command_timeout)
        # A proxy that pools connections gives the one that listens to somebody else.
        self.wakeup = PostgresWakeUp(sql.channel, self.pool, session, listens=not server.is_pooled)
        self.appends: set[asyncio.Future[Sequence[AppendOutcome]]] = set()

    def appended(self, append: asyncio.Future[Sequence[AppendOutcome]]) -> None:
        """Tell the readers."""
        self.appends.discard(append)
        if not append.cancelled() and append.exception() is None:
            self.wakeup.wake()
            self.wakeup.notify_soon()

    async def close(self) -> None:
        """Finish the appends, and close every connection."""
        if self.appends:
            await asyncio.wait(self.appends)
        await self.wakeup.close()
        # At once: each says goodbye to the server, which takes time where nobody answers.
        await asyncio.gather(self.pool.close(), self.append.close())


def _now() -> int:
    return time.time_ns() // 1000
