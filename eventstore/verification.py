"""Verification: the whole journal is read, and every place where it is not what was written is told."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from eventstore.backend import EventFilter, Statistics, StreamInfo
from eventstore.errors import InvalidStreamId, JournalCorrupt, SnapshotUnusable
from eventstore.events import RecordedEvent
from eventstore.store import EventStore

# Snapshots are large: so many of a stream are held at once.
_SNAPSHOTS = 4


class Damage(NamedTuple):
    """One place that is damaged, as far as it could be found out where that is."""

    stream_id: str | None
    version: int | None
    position: int | None
    problem: str
    tenant: str = ""


@dataclass
class Verified:
    """How much was read, and how much of it was damaged."""

    streams: int = 0
    events: int = 0
    snapshots: int = 0
    problems: int = 0


_Stream = tuple[str, str]
"""A stream: whose, and its id."""


class Verification:
    """Reads a journal page by page. Of each stream it remembers the last version, and nothing else.

    Others may write meanwhile: what they add is read as well, or left out, and is no damage, nor is what a truncation
    removes. The store of a tenant is looked through as far as it is that tenant's; with one without a tenant it is the
    whole journal.
    """

    def __init__(
        self, store: EventStore, *, kind: str | None = None, on_events: Callable[[int], None] | None = None
    ) -> None:
        self._store = store
        self._kind = kind
        self._on_events = on_events
        self._last: dict[_Stream, int] = {}
        # Of streams whose first event is not version 1.
        self._first: dict[_Stream, int] = {}
        self._position = 0
        # Each with the version up to which events are missing before it, where some are.
        self._found: list[tuple[Damage, int | None]] = []
        self.verified = Verified()

    async def problems(self) -> AsyncGenerator[Damage, None]:
        """Everything that is damaged: first the log, in its order, then stream by stream, then the sums."""
        before = await self._store.statistics()
        async for damage in self._log():
            yield self._counted(damage)
        async for tenant in self._store.tenants():
            async with self._of(tenant) as store:
                async for info in store.streams(kind=self._kind):
                    self.verified.streams += 1
                    async for damage in self._stream(store, info, has_snapshots=before.snapshots > 0):
                        yield self._counted(damage._replace(tenant=tenant))
        async for damage in self._sums(before):
            yield self._counted(damage)

    @asynccontextmanager
    async def _of(self, tenant: str) -> AsyncGenerator[EventStore, None]:
        """The store of a tenant: another one cannot look at its streams."""
        if tenant == self._store.tenant:
            yield self._store
            return
        async with EventStore.open(self._store.url.raw, create=False, tenant=tenant) as store:
            yield store

    def _counted(self, damage: Damage) -> Damage:
        self.verified.problems += 1
        return damage

    async def _log(self) -> AsyncGenerator[Damage, None]:
        where = EventFilter() if self._kind is None else EventFilter(kinds=(self._kind,))
        try:
            async for recorded in self._store.read_all(where=where, on_damage=self._unreadable):
                self._readable(recorded)
                if self._found:
                    async for damage in self._drained():
                        yield damage
        except JournalCorrupt as error:
            self._unreadable(error)
            text = f"the log could not be read behind position {self._position}: what is there was not looked at"
            self._tell(Damage(None, None, None, text))
        async for damage in self._drained():
            yield damage

    def _readable(self, recorded: RecordedEvent) -> None:
        stream_id, version, position = recorded.stream_id, recorded.version, recorded.position
        if position <= self._position:
            text = f"position {position} follows {self._position} in the log"
            self._tell(Damage(stream_id, version, position, text, recorded.tenant))
        self._position = position
        self._count((recorded.tenant, stream_id), version, position)

    def _unreadable(self, error: JournalCorrupt) -> None:
        tenant = self._store.tenant or error.tenant
        self._tell(Damage(error.stream_id, error.version, error.position, str(error), tenant))
        self._position = max(self._position, error.position or 0)
        if error.stream_id is not None and error.version is not None and error.position is not None:
            self._count((tenant, error.stream_id), error.version, error.position)

    def _count(self, stream: _Stream, version: int, position: int) -> None:
        self.verified.events += 1
        last = self._last.get(stream)
        if last is None:
            if version != 1:
                self._first[stream] = version
        elif version != last + 1:
            tenant, stream_id = stream
            text = f"the versions have a hole or a repeat: {version} follows {last}"
            damage = Damage(stream_id, version, position, text, tenant)
            self._tell(damage, missing_through=version - 1 if version > last else None)
        self._last[stream] = version
        if self._on_events is not None:
            self._on_events(1)

    def _tell(self, damage: Damage, *, missing_through: int | None = None) -> None:
        self._found.append((damage, missing_through))

    async def _drained(self) -> AsyncGenerator[Damage, None]:
        found, self._found = self._found, []
        for damage, through in found:
            if through is None or damage.stream_id is None:
                yield damage
                continue
            async with self._of(damage.tenant) as store:
                is_removed = await self._is_removed(store, damage.stream_id, through)
            if not is_removed:
                yield damage

    async def _is_removed(self, store: EventStore, stream_id: str, through: int) -> bool:
        """Whether events that are missing have been removed by a truncation, since the log is read."""
        try:
            head = await store.head(stream_id)
        except (JournalCorrupt, InvalidStreamId):
            # It cannot even be asked for: then it is not that it was truncated.
            return False
        return head.truncated >= through

    async def _stream(
        self, store: EventStore, info: StreamInfo, *, has_snapshots: bool
    ) -> AsyncGenerator[Damage, None]:
        stream_id, version, truncated, tenant = info
        last = self._last.pop((tenant, stream_id), truncated)
        first = self._first.pop((tenant, stream_id), 1)
        if first > truncated + 1:
            text = f"its first event is version {first}, but only those up to {truncated} were removed"
            yield Damage(stream_id, truncated + 1, None, text)
        is_behind = max(last, truncated) != version and not await self._goes_on(store, stream_id, last)
        if is_behind and not await self._is_removed(store, stream_id, version):
            yield Damage(stream_id, version, None, f"it is at version {version}, but its last event is version {last}")
        if has_snapshots:
            async for damage in self._snapshots(store, stream_id, version):
                yield damage

    async def _goes_on(self, store: EventStore, stream_id: str, version: int) -> bool:
        """Whether the next events are there by now, because somebody appended them after the log was read."""
        try:
            async for recorded in store.read(stream_id, after=version, limit=1):
                return recorded.position > self._position
        except JournalCorrupt as error:
            # Told with the log, unless it is newer than that.
            return error.position is not None and error.position > self._position
        return False

    async def _snapshots(self, store: EventStore, stream_id: str, version: int) -> AsyncGenerator[Damage, None]:
        through: int | None = None
        while through is None or through >= 0:
            try:
                page = await store.snapshots(stream_id, through=through, limit=_SNAPSHOTS)
            except JournalCorrupt as error:
                yield Damage(stream_id, error.version, None, str(error))
                return
            for snapshot in page:
                self.verified.snapshots += 1
                if isinstance(snapshot, SnapshotUnusable):
                    yield Damage(stream_id, snapshot.version, None, str(snapshot))
                elif snapshot.version > version and snapshot.version > await store.version(stream_id):
                    text = f"the snapshot at version {snapshot.version} is ahead of the stream, which is at {version}"
                    yield Damage(stream_id, snapshot.version, None, text)
            if len(page) < _SNAPSHOTS:
                return
            through = page[-1].version - 1

    async def _sums(self, before: Statistics) -> AsyncGenerator[Damage, None]:
        for (tenant, stream_id), version in self._last.items():
            text = "the log has events of it, but it is not among the streams"
            yield Damage(stream_id, version, None, text, tenant)
        after = await self._store.statistics()
        # Only where nobody wrote meanwhile do the numbers have to agree.
        is_still = (before.events, before.last_position) == (after.events, after.last_position)
        is_whole = self._kind is None and not self._store.tenant
        if is_whole and is_still and after.events != self.verified.events:
            text = (
                f"the journal holds {after.events} events, but the log shows {self.verified.events}: the others belong "
                "to no stream"
            )
            yield Damage(None, None, None, text)
