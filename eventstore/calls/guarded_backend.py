"""GuardedBackend: a backend whose calls go through the store's circuit breaker."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime

from eventstore.backend import (
    AppendOutcome,
    Backend,
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
    Lease,
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
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.contract.archive import Archive
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import JournalCorrupt


class GuardedBackend:
    """Every call that waits for the database is counted, and refused with `CircuitOpen` while the breaker is open.

    Five are not. `open` and `close` come before and after. `append` is `GroupCommit`'s own matter: it knows more than
    whether one call failed. `wait` says nothing about the database, a lease lives in another thread, and an archive is
    for tools, which have one thing to do and say when it fails.
    """

    def __init__(self, backend: Backend, breaker: CircuitBreaker) -> None:
        self._backend = backend
        self._call = breaker.call

    @property
    def capabilities(self) -> Capabilities:
        return self._backend.capabilities

    @property
    def durability(self) -> Durability:
        return self._backend.durability

    @property
    def database(self) -> str:
        return self._backend.database

    @property
    def schema_revision(self) -> str | None:
        return self._backend.schema_revision

    @property
    def tenant(self) -> str:
        return self._backend.tenant

    async def open(self) -> None:
        await self._backend.open()

    async def close(self) -> None:
        await self._backend.close()

    def append(self, batches: Sequence[Batch]) -> Awaitable[Sequence[AppendOutcome]]:
        return self._backend.append(batches)

    async def begin_sql(self, *, seconds: float) -> SqlTransaction:
        return await self._call(self._backend.begin_sql, seconds=seconds)

    def archive(self) -> Archive:
        return self._backend.archive()

    async def find_commands(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        return await self._call(self._backend.find_commands, lookups)

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        return await self._call(self._backend.forget_commands, stream_id, keep=keep, before=before)

    def lease(self, owner: Owner) -> Lease:
        return self._backend.lease(owner)

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        return await self._call(self._backend.claim, claims)

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        await self._call(self._backend.release, owner, epochs)

    async def owners(self) -> Sequence[OwnerInfo]:
        return await self._call(self._backend.owners)

    async def holdings(self, *, after: str, limit: int) -> Sequence[Holding]:
        return await self._call(self._backend.holdings, after=after, limit=limit)

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        return await self._call(self._backend.load, loads)

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        return await self._call(
            self._backend.read_stream, stream_id, after=after, through=through, limit=limit, backwards=backwards
        )

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        return await self._call(self._backend.read_all, after=after, limit=limit, where=where)

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        return await self._call(self._backend.audit_page, query, cursor=cursor, limit=limit, backwards=backwards)

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        return await self._call(self._backend.audit_totals, query, top=top)

    async def moved(self, *, after: int, limit: int) -> Moved:
        return await self._call(self._backend.moved, after=after, limit=limit)

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        return await self._call(self._backend.start_of_last, count, where)

    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        return await self._call(self._backend.streams, after=after, limit=limit, kind=kind, tenant=tenant)

    async def tenants(self, *, after: str | None, limit: int) -> Sequence[str]:
        return await self._call(self._backend.tenants, after=after, limit=limit)

    async def wait(self, after: int, timeout: float) -> None:
        await self._backend.wait(after, timeout)

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        return await self._call(self._backend.save_snapshot, snapshot, keep=keep)

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        return await self._call(self._backend.read_snapshots, stream_id, through=through, limit=limit)

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        return await self._call(self._backend.delete_snapshots, stream_id, through=through)

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        return await self._call(
            self._backend.truncate, stream_id, through, reason=reason, epoch=epoch, fingerprint=fingerprint
        )

    async def checkpoints(self, *, shared: bool = False) -> Sequence[StoredCheckpoint]:
        return await self._call(self._backend.checkpoints, shared=shared)

    async def change_checkpoints(
        self, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey] = ()
    ) -> bool:
        return await self._call(self._backend.change_checkpoints, saving, removing)

    async def removals(self, *, after: int, limit: int) -> Sequence[Removal]:
        return await self._call(self._backend.removals, after=after, limit=limit)

    async def add_seal(self, seal: StoredSeal) -> bool:
        return await self._call(self._backend.add_seal, seal)

    async def seals(self, *, after: int, limit: int, backwards: bool) -> Sequence[StoredSeal]:
        return await self._call(self._backend.seals, after=after, limit=limit, backwards=backwards)

    async def statistics(self) -> Statistics:
        return await self._call(self._backend.statistics)
