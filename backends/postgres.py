"""PostgresBackend: the journal in a Postgres database. Appends have their own connection, all else shares a few."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from backends.checkpoints_sql import CHECKPOINT_SECONDS, change_in_sql
from backends.postgres_append import PostgresAppend
from backends.postgres_archive import PostgresArchive
from backends.postgres_audit import PostgresAudit
from backends.postgres_changes import PostgresChanges
from backends.postgres_commands import PostgresCommands
from backends.postgres_lease import PostgresLease
from backends.postgres_mark import PostgresMark
from backends.postgres_ownership import PostgresOwnership
from backends.postgres_pool import PostgresPool
from backends.postgres_server import PostgresServer, check_server
from backends.postgres_session import PostgresSession, connect
from backends.postgres_sql import PostgresSQL
from backends.postgres_transaction import PostgresTransaction
from backends.postgres_transactions import PostgresTransactions
from backends.postgres_wakeup import PostgresWakeUp
from eventstore.backend import (
    AppendOutcome,
    Batch,
    Capabilities,
    CheckpointKey,
    Claim,
    CommandLookup,
    CommandsFound,
    Durability,
    EventFilter,
    Holder,
    Holding,
    Load,
    Loaded,
    LogPage,
    Moved,
    Owner,
    OwnerInfo,
    Removal,
    Statistics,
    StoredCheckpoint,
    StoredSeal,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.calls.appending import Appending
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals
from eventstore.errors import JournalCorrupt, StoreClosed
from eventstore.postgres_url import PostgresTarget, postgres_target
from eventstore.url import StoreUrl

# How much of a lease one renewal may take, and a new connection for it.
_RENEWAL_SHARE = 0.3
_SHORTEST_RENEWAL_SECONDS = 0.5


class PostgresBackend:
    """`postgresql://user:password@host/database`; docs/postgres.md has its parameters, and the rights its role needs.

    Any number of processes may use one journal. Each has one connection that appends, up to `pool_size` others, as
    many for transactions with the user's own statements, and one that listens once somebody waits for new events.
    """

    capabilities = Capabilities(creates_schema=False, survives_restart=True, user_sql=True, tenants=True, archive=True)

    def __init__(self, url: StoreUrl) -> None:
        self.url = url
        self._target = postgres_target(url)
        self._sql = PostgresSQL(self._target.schema, url.tenant)
        self.tenant = url.tenant
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
        if server.is_pooled:
            self.database += ", behind a proxy that pools connections"
        self._parts = parts

    async def close(self) -> None:
        parts, self._parts = self._parts, None
        if parts is not None and parts.pid == os.getpid():
            await parts.close()

    # Writing

    def append(self, batches: Sequence[Batch]) -> Appending:
        parts = self._open
        appending = Appending()
        # The next one's statement is made while the server works on this one's.
        appending.may_be_followed = True
        plan = parts.append.plan_behind(batches)
        task = appending.start(parts.append.append(batches, plan))
        parts.appends.add(task)
        task.add_done_callback(parts.appends.discard)
        appending.add_done_callback(parts.appended)
        return appending

    def archive(self) -> PostgresArchive:
        parts = self._open
        return PostgresArchive(self._sql, parts.pool, parts.mark.settle, parts.restored)

    async def begin_sql(self, *, seconds: float) -> PostgresTransaction:
        return await self._open.transactions.begin(seconds)

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        parts = self._open
        answers = await parts.ownership.claim(claims)
        for claim in claims:
            parts.append.forget(claim.stream_id)
        return answers

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        await self._open.ownership.release(owner, epochs)

    def lease(self, owner: Owner) -> PostgresLease:
        # It is used in the event loop of another thread.
        return self._open_anywhere.lease(owner)

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        parts = self._open
        removed = await parts.changes.truncate(stream_id, through, reason=reason, epoch=epoch, fingerprint=fingerprint)
        parts.append.forget(stream_id)
        return removed

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        parts = self._open
        count = await parts.changes.forget_commands(stream_id, keep=keep, before=before)
        if count:
            parts.append.forget(stream_id)
        return count

    async def add_seal(self, seal: StoredSeal) -> bool:
        return await self._open.changes.add_seal(seal)

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        return await self._open.changes.save_snapshot(snapshot, keep=keep)

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        return await self._open.changes.delete_snapshots(stream_id, through=through)

    async def change_checkpoints(
        self, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey] = ()
    ) -> bool:
        transaction = await self.begin_sql(seconds=CHECKPOINT_SECONDS)
        return await change_in_sql(transaction, saving, removing)

    # Reading

    async def checkpoints(self, *, shared: bool = False) -> Sequence[StoredCheckpoint]:
        return await self._open.reader.checkpoints(shared=shared)

    async def find_commands(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        return await self._open.commands.find(lookups)

    async def owners(self) -> Sequence[OwnerInfo]:
        return await self._open.ownership.owners()

    async def holdings(self, *, after: str, limit: int) -> Sequence[Holding]:
        return await self._open.ownership.holdings(after=after, limit=limit)

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

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        return await self._open.reader.audit_page(query, cursor=cursor, limit=limit, backwards=backwards)

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        return await self._open.reader.audit_totals(query, top=top)

    async def moved(self, *, after: int, limit: int) -> Moved:
        return await self._open.reader.moved(after=after, limit=limit)

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        return await self._open.reader.start_of_last(count, where)

    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        return await self._open.reader.streams(after=after, limit=limit, kind=kind, tenant=tenant)

    async def tenants(self, *, after: str | None, limit: int) -> Sequence[str]:
        return await self._open.reader.tenants(after=after, limit=limit)

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        return await self._open.reader.read_snapshots(stream_id, through=through, limit=limit)

    async def removals(self, *, after: int, limit: int) -> Sequence[Removal]:
        return await self._open.reader.removals(after=after, limit=limit)

    async def seals(self, *, after: int, limit: int, backwards: bool) -> Sequence[StoredSeal]:
        return await self._open.reader.seals(after=after, limit=limit, backwards=backwards)

    async def statistics(self) -> Statistics:
        return await self._open.reader.statistics()

    async def wait(self, after: int, timeout: float) -> None:
        parts = self._open
        if parts.append.last_position <= after:
            await parts.wakeup.wait(timeout)

    @property
    def _open(self) -> _Parts:
        parts = self._open_anywhere
        if asyncio.get_running_loop() is not parts.loop:
            raise StoreClosed("this store was opened in another event loop: open one of its own in each")
        return parts

    @property
    def _open_anywhere(self) -> _Parts:
        parts = self._parts
        if parts is None:
            raise StoreClosed("the store is not open: use it inside `async with EventStore.open(url) as store`")
        # Two processes on one connection would read each other's answers.
        if os.getpid() != parts.pid:
            raise StoreClosed("this store was opened before a fork: open one of its own in the child process")
        return parts


class _Parts:
    """What a backend has while it is open: in one process, on one event loop."""

    def __init__(self, url: StoreUrl, target: PostgresTarget, sql: PostgresSQL, server: PostgresServer) -> None:
        async def session(target: PostgresTarget = target) -> PostgresSession:
            return await connect(target, is_pooled=server.is_pooled)

        async def checked(opened: PostgresSession) -> PostgresSession:
            try:
                # After a fail-over it is another server.
                await check_server(opened, sql, target, url)
                await self.mark.check_kept(opened)
            except BaseException:
                opened.cut()
                raise
            return opened

        async def writer() -> PostgresSession:
            return await checked(await session())

        async def users_session() -> PostgresSession:
            # How the user's own statements are planned is the server's matter.
            return await checked(await connect(target, is_pooled=server.is_pooled, planning={}))

        self.pid = os.getpid()
        self.loop = asyncio.get_running_loop()
        self.append = PostgresAppend(sql, writer)
        self.pool = PostgresPool(target, session)
        self.changes = PostgresChanges(sql, self.pool)
        self.commands = PostgresCommands(sql, self.pool)
        self.ownership = PostgresOwnership(sql, self.pool)
        self.mark = PostgresMark(
            sql,
            self.pool,
            settle_seconds=target.command_timeout,
            stored_through=lambda: self.append.stored_through,
        )
        self.reader = PostgresAudit(sql, self.pool, self.mark)
        # A proxy that pools connections gives the one that listens to somebody else.
        self.wakeup = PostgresWakeUp(sql.channel, sql.listeners_lock, self.pool, session, listens=not server.is_pooled)
        self.transactions = PostgresTransactions(
            target,
            sql,
            self.append,
            users_session,
            server_version=server.version,
            is_pooled=server.is_pooled,
            stored=self._wake,
        )
        self._sql = sql
        self._target = target
        self._connect = session
        self.appends: set[asyncio.Future[None]] = set()

    def appended(self, append: asyncio.Future[Sequence[AppendOutcome]]) -> None:
        """Tell the readers."""
        if not append.cancelled() and append.exception() is None:
            self._wake()

    def restored(self) -> None:
        """Look at every stream again: records were stored past the appends. Tell the readers."""
        self.append.forget_all()
        self._wake()

    def lease(self, owner: Owner) -> PostgresLease:
        """A lease whose connection is given up early enough that another one can renew it before it runs out."""
        seconds = max(_SHORTEST_RENEWAL_SECONDS, owner.seconds * _RENEWAL_SHARE)
        hasty = replace(
            self._target,
            connect_timeout=min(seconds, self._target.connect_timeout),
            command_timeout=min(seconds, self._target.command_timeout),
        )
        return PostgresLease(self._sql, lambda: self._connect(hasty), owner)

    def _wake(self) -> None:
        self.wakeup.wake()
        self.wakeup.notify_soon()

    async def close(self) -> None:
        """Finish the appends, roll back the transactions, and close every connection."""
        if self.appends:
            await asyncio.wait(self.appends)
        await self.transactions.close()
        await self.wakeup.close()
        # At once: each says goodbye to the server, which takes time where nobody answers.
        await asyncio.gather(self.pool.close(), self.append.close())
