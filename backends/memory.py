"""MemoryBackend: the journal in this process's memory, for tests and trials; the contract at its plainest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from eventstore.backend import (
    Appended,
    AppendOutcome,
    Batch,
    Capabilities,
    Durability,
    EncodedEvent,
    EventFilter,
    Load,
    Loaded,
    LogPage,
    Statistics,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
    refusal,
)
from eventstore.codec import decode_metadata
from eventstore.errors import (
    ConcurrencyError,
    DuplicateEventError,
    FencedError,
    InvalidStoreUrl,
    JournalCorrupt,
    StoreClosed,
)
from eventstore.events import RecordedEvent, stream_kind
from eventstore.url import StoreUrl


class MemoryBackend:
    """`memory://` is a new journal for each backend, `memory://name` one journal for all that use the name.

    What is stored outlives `close`, not the process. Backends of one name share one event loop at a time.
    """

    capabilities = Capabilities(creates_schema=False, survives_restart=False)
    durability = Durability.NONE
    database = "memory"
    schema_revision: str | None = None

    def __init__(self, url: StoreUrl) -> None:
        if url.path or url.parameters:
            raise InvalidStoreUrl(f"{url}: write memory:// or memory://name, without path or parameters")
        self._journal = _named_journals.setdefault(url.authority, _Journal()) if url.authority else _Journal()
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

    async def claim(self, stream_id: str) -> int:
        stream = self._opened.streams.setdefault(stream_id, _Stream())
        stream.epoch += 1
        return stream.epoch

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
        stream = self._opened.streams.setdefault(snapshot.stream_id, _Stream())
        stream.snapshots[snapshot.version] = snapshot
        for version in sorted(stream.snapshots, reverse=True)[keep:]:
            del stream.snapshots[version]

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        stream = self._opened.stream(stream_id)
        versions = sorted(stream.snapshot_versions(through), reverse=True)[:limit]
        return [stream.snapshots[version] for version in versions]

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        stream = self._opened.stream(stream_id)
        doomed = stream.snapshot_versions(through)
        for version in doomed:
            del stream.snapshots[version]
        return len(doomed)

    async def truncate(self, stream_id: str, through: int, *, reason: str) -> int:
        return self._opened.truncate(stream_id, through, reason)

    async def statistics(self) -> Statistics:
        journal = self._opened
        entries = [entry for entry in journal.log if entry is not None]
        streams = [stream for stream in journal.streams.values() if stream.is_known]
        snapshots = [snapshot for stream in streams for snapshot in stream.snapshots.values()]
        size = sum(len(entry.event.payload) + len(entry.event.metadata or b"") for entry in entries)
        size += sum(len(snapshot.payload) for snapshot in snapshots)
        return Statistics(len(streams), len(entries), len(snapshots), len(journal.log), size)

    @property
    def _opened(self) -> _Journal:
        if not self._is_open:
            raise StoreClosed("the memory store is not open")
        return self._journal


class _Entry(NamedTuple):
    """One stored event. It keeps the bytes: a reader gets objects of its own and can change nothing."""

    position: int
    stream_id: str
    version: int
    event: EncodedEvent
    epoch: int
    recorded_at: datetime

    def recorded(self) -> RecordedEvent:
        event_id, type_, schema_version, payload, metadata, batch_id = self.event
        return RecordedEvent(
            self.position,
            self.stream_id,
            self.version,
            type_,
            schema_version,
            payload,
            decode_metadata(metadata),
            UUID(bytes=event_id),
            UUID(bytes=batch_id),
            self.epoch,
            self.recorded_at,
        )


@dataclass(slots=True)
class _Stream:
    """One stream: its entries after the truncated ones, and its snapshots by version."""

    entries: list[_Entry] = field(default_factory=list[_Entry])
    truncated: int = 0
    epoch: int = 0
    snapshots: dict[int, StoredSnapshot] = field(default_factory=dict[int, StoredSnapshot])

    @property
    def version(self) -> int:
        return self.truncated + len(self.entries)

    @property
    def is_known(self) -> bool:
        return self.version > 0 or bool(self.snapshots)

    def select(self, *, after: int, through: int | None, limit: int, backwards: bool = False) -> list[_Entry]:
        last = self.version if through is None else min(through, self.version)
        versions = range(max(after, self.truncated) + 1, last + 1)
        if backwards:
            versions = versions[::-1]
        return [self.entries[version - self.truncated - 1] for version in versions[:limit]]

    def load(self, load: Load) -> Loaded:
        newest = max(self.snapshots, default=0) if load.use_snapshot else 0
        snapshot = self.snapshots[newest] if newest > load.after else None
        after = load.after if snapshot is None else snapshot.version
        events = [
            (version, event.type, event.schema_version, event.payload)
            for _, _, version, event, _, _ in self.select(after=after, through=None, limit=load.limit)
        ]
        return Loaded(snapshot, events, self.version, self.truncated)

    def snapshot_versions(self, through: int | None) -> list[int]:
        return [version for version in self.snapshots if through is None or version <= through]


class _Journal:
    """The data: every event in the order of the log, None where it was truncated, and what finds it."""

    def __init__(self) -> None:
        self.log: list[_Entry | None] = []
        self.streams: dict[str, _Stream] = {}
        self.entries_by_id: dict[bytes, _Entry] = {}
        # Which events were truncated, and why: (stream, through, reason).
        self.removals: list[tuple[str, int, str]] = []
        self.waiters: set[asyncio.Future[None]] = set()
        self._clock = datetime.fromtimestamp(0, UTC)

    def stream(self, stream_id: str) -> _Stream:
        """The stream to read from; asking for one creates none."""
        return self.streams.get(stream_id) or _Stream()

    def append(self, batch: Batch) -> AppendOutcome:
        # Ids come first: a batch that is stored is stored, whatever the versions and the owner are by now.
        return self._original(batch) or self._taken_id(batch) or self._refusal(batch) or self._store(batch)

    def truncate(self, stream_id: str, through: int, reason: str) -> int:
        stream = self.stream(stream_id)
        removed = stream.select(after=0, through=through, limit=len(stream.entries))
        if removed:
            self.removals.append((stream_id, removed[-1].version, reason))
            stream.truncated += len(removed)
            del stream.entries[: len(removed)]
        for entry in removed:
            self.log[entry.position - 1] = None
            del self.entries_by_id[entry.event.event_id]
        return len(removed)

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _original(self, batch: Batch) -> Appended | None:
        """Where the batch stands if all of it is stored: the same events in the same streams and order."""
        position = 0
        versions: list[int] = []
        for write in batch:
            version = self.stream(write.stream_id).version
            for index, event in enumerate(write.events):
                entry = self.entries_by_id.get(event.event_id)
                if entry is None or entry.stream_id != write.stream_id or entry.position <= position:
                    return None
                if index > 0 and entry.version != version + 1:
                    return None
                position, version = entry.position, entry.version
            versions.append(version)
        return Appended(position, tuple(versions), is_duplicate=True) if position else None

    def _taken_id(self, batch: Batch) -> DuplicateEventError | None:
        seen: set[bytes] = set()
        for write in batch:
            for event in write.events:
                if event.event_id in self.entries_by_id or event.event_id in seen:
                    return DuplicateEventError(write.stream_id, str(UUID(bytes=event.event_id)))
                seen.add(event.event_id)
        return None

    def _refusal(self, batch: Batch) -> ConcurrencyError | FencedError | None:
        versions: dict[str, int] = {}
        for write in batch:
            stream = self.stream(write.stream_id)
            version = versions.get(write.stream_id, stream.version)
            if (refused := refusal(write, version, stream.epoch)) is not None:
                return refused
            versions[write.stream_id] = version + len(write.events)
        return None

    def _store(self, batch: Batch) -> Appended:
        position = 0
        versions: list[int] = []
        now = self._now()
        for write in batch:
            stream = self.streams.setdefault(write.stream_id, _Stream())
            for event in write.events:
                position = len(self.log) + 1
                entry = _Entry(position, write.stream_id, stream.version + 1, event, write.epoch or 0, now)
                self.log.append(entry)
                stream.entries.append(entry)
                self.entries_by_id[event.event_id] = entry
            versions.append(stream.version)
        return Appended(position, tuple(versions))

    def _now(self) -> datetime:
        # The wall clock may jump back; times in the log do not.
        self._clock = max(self._clock, datetime.fromtimestamp(time.time(), UTC))
        return self._clock


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
_named_journals: dict[str, _Journal] = {}
