"""MemoryBackend: the journal in this process's memory, for tests and trials; the contract at its plainest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from backends.memory_archive import MemoryArchive
from backends.memory_journal import Journal, Log
from backends.memory_owners import MemoryLease
from backends.memory_stream import Entry
from eventstore.auditing.audit_scan import scanned_page
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
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import CapabilityError, InvalidStoreUrl, JournalCorrupt, StoreClosed
from eventstore.events import RecordedEvent, stream_kind
from eventstore.reading.reading_past import passes
from eventstore.tenant import NO_TENANT
from eventstore.url import StoreUrl


class MemoryBackend:
    """`memory://` is a new journal for each backend, `memory://name` one journal for all that use the name.

    What is stored outlives `close`, not the process. Backends of one name share one event loop at a time.
    """

    capabilities = Capabilities(creates_schema=False, survives_restart=False, tenants=True, archive=True)
    durability = Durability.NONE
    database = "memory"
    schema_revision: str | None = None

    def __init__(self, url: StoreUrl) -> None:
        if url.path or url.parameters:
            raise InvalidStoreUrl(f"{url}: write memory:// or memory://name, without path or parameters")
        log = _named_logs.setdefault(url.authority, Log()) if url.authority else Log()
        self.tenant = url.tenant
        self._journal = log.journal(url.tenant)
        self._is_open = False

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False
        self._journal.log.waiters.wake()

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        """Nothing is awaited between the checks and the writes, so no other append comes in between."""
        journal = self._opened
        outcomes = [journal.append(batch) for batch in batches]
        journal.log.waiters.wake()
        return outcomes

    def archive(self) -> MemoryArchive:
        return MemoryArchive(self._opened.log)

    async def begin_sql(self, *, seconds: float) -> SqlTransaction:
        raise CapabilityError(
            "memory:// has no SQL: nothing was done; SQL goes with a batch on Postgres and SQLite alone"
        )

    async def find_commands(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        journal = self._opened
        return [journal.stream(lookup.stream_id).find_command(lookup) for lookup in lookups]

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        self._opened.log.check_fence()
        return self._opened.stream(stream_id).forget_commands(keep, before)

    def lease(self, owner: Owner) -> MemoryLease:
        return MemoryLease(self._opened.owners, owner)

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        return self._opened.claim(claims)

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        self._opened.release(owner, epochs)

    async def owners(self) -> Sequence[OwnerInfo]:
        return self._opened.owners.listed()

    async def holdings(self, *, after: str, limit: int) -> Sequence[Holding]:
        found = sorted(
            Holding(stream_id, stream.epoch, stream.owner)
            for stream_id, stream in self._opened.streams.items()
            if stream.owner is not None and stream_id > after
        )
        return found[:limit]

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        journal = self._opened
        return [journal.stream(load.stream_id).load(load) for load in loads]

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        stream = self._opened.stream(stream_id)
        chosen = stream.select(after=after, through=through, limit=limit, backwards=backwards)
        return StreamPage([entry.recorded() for entry in chosen], stream.version, stream.truncated)

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        log = self._opened.log.entries
        found: list[RecordedEvent] = []
        position = max(after, 0)
        while position < len(log) and len(found) < limit:
            # The entry at index n has position n + 1.
            entry = log[position]
            position += 1
            if entry is not None and self._sees(entry) and passes(recorded := entry.recorded(), where):
                found.append(recorded)
        return LogPage(found, position, is_end=position >= len(log), end=len(log))

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        return await scanned_page(self.read_all, query, cursor=cursor, limit=limit, backwards=backwards)

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        return None

    async def moved(self, *, after: int, limit: int) -> Moved:
        log = self._opened.log.entries
        position = max(after, 0)
        entries = log[position : position + limit]
        own = [entry for entry in entries if entry is not None and entry.tenant == self.tenant]
        versions = {entry.stream_id: entry.version for entry in own}
        return Moved(versions, position + len(entries), position + len(entries) >= len(log))

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        remaining = count
        for entry in reversed(self._opened.log.entries):
            if entry is not None and self._sees(entry) and passes(entry.recorded(), where):
                if remaining == 0:
                    return entry.position
                remaining -= 1
        return 0

    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        whose = self.tenant if tenant is None else tenant
        journal = self._opened.log.journals.get(whose)
        if journal is None or self.tenant not in (NO_TENANT, whose):
            return []
        # Python orders text by code point, which is the order of its UTF-8 bytes.
        found = sorted(
            StreamInfo(stream_id, stream.version, stream.truncated, whose)
            for stream_id, stream in journal.streams.items()
            if stream.is_known and stream_id > after and kind in (None, stream_kind(stream_id))
        )
        return found[:limit]

    async def tenants(self, *, after: str | None, limit: int) -> Sequence[str]:
        found = sorted(
            tenant
            for tenant, journal in self._opened.log.journals.items()
            if self.tenant in (NO_TENANT, tenant)
            and (after is None or tenant > after)
            and any(stream.is_known for stream in journal.streams.values())
        )
        return found[:limit]

    async def wait(self, after: int, timeout: float) -> None:
        log = self._opened.log
        if len(log.entries) > after:
            return
        await log.waiters.wait(timeout)

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        self._opened.log.check_fence()
        stream = self._opened.made(snapshot.stream_id)
        stream.check_epoch(snapshot.stream_id, snapshot.epoch or None)
        return stream.save_snapshot(snapshot, keep)

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        stream = self._opened.stream(stream_id)
        versions = sorted(stream.snapshot_versions(through), reverse=True)[:limit]
        return [stream.snapshots[version] for version in versions]

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        self._opened.log.check_fence()
        stream = self._opened.stream(stream_id)
        doomed = stream.snapshot_versions(through)
        for version in doomed:
            del stream.snapshots[version]
        return len(doomed)

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        return self._opened.truncate(stream_id, through, reason, epoch, fingerprint)

    async def checkpoints(self, *, shared: bool = False) -> Sequence[StoredCheckpoint]:
        journal = self._opened.log.journal(NO_TENANT) if shared else self._opened
        return [found for _, found in sorted(journal.checkpoints.items(), key=_by_bytes)]

    async def change_checkpoints(
        self, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey] = ()
    ) -> bool:
        return self._opened.change_checkpoints(saving, removing)

    async def removals(self, *, after: int, limit: int) -> Sequence[Removal]:
        return self._opened.log.removals[after : after + limit]

    async def add_seal(self, seal: StoredSeal) -> bool:
        seals = self._opened.log.seals
        if seal.number != len(seals) + 1:
            return False
        seals.append(seal)
        return True

    async def seals(self, *, after: int, limit: int, backwards: bool) -> Sequence[StoredSeal]:
        found = self._opened.log.seals[after:]
        return found[::-1][:limit] if backwards else found[:limit]

    async def statistics(self) -> Statistics:
        log = self._opened.log
        entries = [entry for entry in log.entries if entry is not None]
        known = [stream for journal in log.journals.values() for stream in journal.streams.values()]
        streams = [stream for stream in known if stream.is_known]
        snapshots = [snapshot for stream in streams for snapshot in stream.snapshots.values()]
        size = sum(len(entry.event.payload) + len(entry.event.metadata or b"") for entry in entries)
        size += sum(len(snapshot.payload) for snapshot in snapshots)
        return Statistics(len(streams), len(entries), len(snapshots), len(log.entries), size)

    def _sees(self, entry: Entry) -> bool:
        return self.tenant in (NO_TENANT, entry.tenant)

    @property
    def _opened(self) -> Journal:
        if not self._is_open:
            raise StoreClosed("the memory store is not open")
        return self._journal


def _by_bytes(item: tuple[tuple[str, int], StoredCheckpoint]) -> tuple[bytes, int]:
    (name, version), _ = item
    return name.encode(), version


# Not weak references: whether a name's events are still there would then depend on when the garbage collector
# has run. A name is a database of this process, and a test may close it and open it again.
_named_logs: dict[str, Log] = {}
