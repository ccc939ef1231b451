"""MemoryBackend: the journal in this process's memory, for tests and trials; the contract at its plainest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime

from backends.memory_archive import MemoryArchive
from backends.memory_journal import Journal, Stream
from backends.memory_owners import MemoryLease
from eventstore.backend import (
    AppendOutcome,
    Batch,
    Capabilities,
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
    Statistics,
    StoredCheckpoint,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.errors import CapabilityError, InvalidStoreUrl, JournalCorrupt, StoreClosed
from eventstore.events import RecordedEvent, stream_kind
from eventstore.sql_transaction import SqlTransaction
from eventstore.url import StoreUrl


class MemoryBackend:
    """`memory://` is a new journal for each backend, `memory://name` one journal for all that use the name.

    What is stored outlives `close`, not the process. Backends of one name share one event loop at a time.
    """

    capabilities = Capabilities(creates_schema=False, survives_restart=False, archive=True)
    durability = Durability.NONE
    database = "memory"
    schema_revision: str | None = None

    def __init__(self, url: StoreUrl) -> None:
        if url.path or url.parameters:
            raise InvalidStoreUrl(f"{url}: write memory:// or memory://name, without path or parameters")
        self._journal = _named_journals.setdefault(url.authority, Journal()) if url.authority else Journal()
        self._is_open = False

    async def open(self) -> None:
        self._is_open = True

    async def close(self) -> None:
        self._is_open = False
        self._journal.wake()

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        """Nothing is awaited between the checks and the writes, so no other append comes in between."""
        journal = self._opened
        outcomes = [journal.append(batch) for batch in batches]
        journal.wake()
        return outcomes

    def archive(self) -> MemoryArchive:
        return MemoryArchive(self._opened)

    async def begin_sql(self, *, seconds: float) -> SqlTransaction:
        raise CapabilityError(
            "memory:// has no SQL: nothing was done; SQL goes with a batch on Postgres and SQLite alone"
        )

    async def find_commands(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        journal = self._opened
        return [journal.stream(lookup.stream_id).find_command(lookup) for lookup in lookups]

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        self._opened.check_fence()
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
        log = self._opened.log
        found: list[RecordedEvent] = []
        position = max(after, 0)
        while position < len(log) and len(found) < limit:
            # The entry at index n has position n + 1.
            entry = log[position]
            position += 1
            if entry is not None and _passes(recorded := entry.recorded(), where):
                found.append(recorded)
        return LogPage(found, position, is_end=position >= len(log), end=len(log))

    async def moved(self, *, after: int, limit: int) -> Moved:
        log = self._opened.log
        position = max(after, 0)
        entries = log[position : position + limit]
        versions = {entry.stream_id: entry.version for entry in entries if entry is not None}
        return Moved(versions, position + len(entries), position + len(entries) >= len(log))

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        remaining = count
        for entry in reversed(self._opened.log):
            if entry is not None and _passes(entry.recorded(), where):
                if remaining == 0:
                    return entry.position
                remaining -= 1
        return 0

    async def streams(self, *, after: str, limit: int, kind: str | None) -> Sequence[StreamInfo]:
        # Python orders text by code point, which is the order of its UTF-8 bytes.
        found = sorted(
            StreamInfo(stream_id, stream.version, stream.truncated)
            for stream_id, stream in self._opened.streams.items()
            if stream.is_known and stream_id > after and kind in (None, stream_kind(stream_id))
        )
        return found[:limit]

    async def wait(self, after: int, timeout: float) -> None:
        journal = self._opened
        if len(journal.log) > after:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        journal.waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout)
        finally:
            journal.waiters.discard(waiter)

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> None:
        self._opened.check_fence()
        stream = self._opened.streams.setdefault(snapshot.stream_id, Stream())
        stream.check_epoch(snapshot.stream_id, snapshot.epoch or None)
        stream.snapshots[snapshot.version] = snapshot
        for version in sorted(stream.snapshots, reverse=True)[keep:]:
            del stream.snapshots[version]

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        stream = self._opened.stream(stream_id)
        versions = sorted(stream.snapshot_versions(through), reverse=True)[:limit]
        return [stream.snapshots[version] for version in versions]

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        self._opened.check_fence()
        stream = self._opened.stream(stream_id)
        doomed = stream.snapshot_versions(through)
        for version in doomed:
            del stream.snapshots[version]
        return len(doomed)

    async def truncate(self, stream_id: str, through: int, *, reason: str, epoch: int | None = None) -> int:
        return self._opened.truncate(stream_id, through, reason, epoch)

    async def checkpoints(self) -> Sequence[StoredCheckpoint]:
        return [found for _, found in sorted(self._opened.checkpoints.items(), key=_by_bytes)]

    async def save_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        return self._opened.save_checkpoint(checkpoint)

    async def delete_checkpoint(self, name: str, version: int, revision: int) -> bool:
        return self._opened.delete_checkpoint((name, version), revision)

    async def statistics(self) -> Statistics:
        journal = self._opened
        entries = [entry for entry in journal.log if entry is not None]
        streams = [stream for stream in journal.streams.values() if stream.is_known]
        snapshots = [snapshot for stream in streams for snapshot in stream.snapshots.values()]
        size = sum(len(entry.event.payload) + len(entry.event.metadata or b"") for entry in entries)
        size += sum(len(snapshot.payload) for snapshot in snapshots)
        return Statistics(len(streams), len(entries), len(snapshots), len(journal.log), size)

    @property
    def _opened(self) -> Journal:
        if not self._is_open:
            raise StoreClosed("the memory store is not open")
        return self._journal


def _by_bytes(item: tuple[tuple[str, int], StoredCheckpoint]) -> tuple[bytes, int]:
    (name, version), _ = item
    return name.encode(), version


def _passes(recorded: RecordedEvent, where: EventFilter) -> bool:
    tags = () if recorded.metadata is None else recorded.metadata.tags
    return (
        (not where.kinds or stream_kind(recorded.stream_id) in where.kinds)
        and (not where.types or recorded.type in where.types)
        and (not where.tags or not set(where.tags).isdisjoint(tags))
        and (not where.stream_ids or recorded.stream_id in where.stream_ids)
    )


# Not weak references: whether a name's events are still there would then depend on when the garbage collector
# has run. A name is a database of this process, and a test may close it and open it again.
_named_journals: dict[str, Journal] = {}
