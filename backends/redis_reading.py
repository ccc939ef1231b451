"""RedisReader: everything that is read from Redis. A page is one script, and so one round trip and one moment."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from backends.redis_command_scripts import FIND_COMMANDS
from backends.redis_commands import found_commands, lookup_arguments
from backends.redis_connection import Argument
from backends.redis_opened import OpenedRedis
from backends.redis_ownership import found_holdings, owner_infos
from backends.redis_ownership_scripts import HOLDINGS, OWNERS
from backends.redis_reading_scripts import (
    LOAD,
    MOVED,
    READ_LOG,
    READ_SNAPSHOTS,
    READ_STREAM,
    STATISTICS,
    STREAMS,
    TENANTS,
)
from backends.redis_records import MAX_VERSION, is_of_replica, recorded, replayed, unpacked_snapshot
from backends.redis_seals import REMOVALS, SEALS, found_removals, found_seals
from backends.redis_tenant import RedisTenant, seen, split
from eventstore.auditing.audit_scan import scanned_page
from eventstore.backend import (
    CommandLookup,
    CommandsFound,
    EventFilter,
    Holding,
    Load,
    Loaded,
    LogPage,
    Moved,
    OwnerInfo,
    Removal,
    Statistics,
    StoredSeal,
    StoredSnapshot,
    StreamInfo,
    StreamPage,
)
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals
from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent
from eventstore.tenant import NO_TENANT

# So many positions are looked at in one trip: where a filter passes few, most of them cost 16 bytes of reading.
_WINDOW = 4096
# Types and tags are looked at here, so pages are read in at least this size for them.
_FILTERED_PAGE = 500


class RedisReader(OpenedRedis):
    """The reading half of the backend."""

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        answers: list[Loaded | JournalCorrupt] = []
        # One reply holds so much and no more: what is left over is asked for again.
        while len(answers) < len(loads):
            rest = loads[len(answers) :]
            arguments: list[Argument] = [len(rest), *(self._whose.name(load.stream_id) for load in rest)]
            for _, after, use_snapshot, limit in rest:
                arguments += (min(after, MAX_VERSION), int(use_snapshot), limit)
            reply = await self._run(LOAD, arguments)
            answers.extend(_loaded(load.stream_id, answer) for load, answer in zip(rest, reply, strict=False))
        return answers

    async def find_commands(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        self.check_open()
        answers: list[CommandsFound | JournalCorrupt] = []
        # As for loads.
        while len(answers) < len(lookups):
            rest = lookups[len(answers) :]
            reply = await self._run(FIND_COMMANDS, lookup_arguments(self._whose, rest))
            answers.extend(found_commands(lookup, answer) for lookup, answer in zip(rest, reply, strict=False))
        return answers

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        last = MAX_VERSION if through is None else min(through, MAX_VERSION)
        events: list[RecordedEvent] = []
        while True:
            bounds = (min(after, MAX_VERSION), last, limit - len(events))
            arguments: list[Argument] = [self._whose.name(stream_id), *bounds, int(backwards)]
            version, truncated, first, records = await self._run(READ_STREAM, arguments)
            if version < 0:
                raise _misses_events(stream_id, truncated, first, records)
            step = -1 if backwards else 1
            page = [
                recorded(self.tenant, stream_id, first + step * index, record) for index, record in enumerate(records)
            ]
            events.extend(page)
            if not page or len(events) >= limit:
                _check_order(reversed(events) if backwards else events)
                return StreamPage(events, version, truncated)
            # The reply was full before the page was.
            after, last = (after, page[-1].version - 1) if backwards else (page[-1].version, last)
            if after >= min(last, version):
                _check_order(reversed(events) if backwards else events)
                return StreamPage(events, version, truncated)

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        after = max(after, 0)
        looks_inside = bool(where.types or where.tags)
        size = max(limit, _FILTERED_PAGE) if looks_inside else limit
        try:
            page = await self._log(after, MAX_VERSION, size, where, window=self._window(where, size))
        except JournalCorrupt as error:
            # What cannot be read of one position is at that.
            if limit == 1 and where == EventFilter() and not self.tenant:
                error.position = after + 1
            raise
        events = page.events
        if looks_inside:
            events = [event for event in events if _passes(event, where)]
        position = page.looked
        if len(events) > limit:
            events = events[:limit]
            position = events[-1].position if events else after
        if page.events:
            newest = page.events[-1]
            self._opened.saw(newest.position, newest.event_id.bytes)
        return LogPage(events, position, position >= page.end, page.end)

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        return await scanned_page(self.read_all, query, cursor=cursor, limit=limit, backwards=backwards)

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        return None

    async def moved(self, *, after: int, limit: int) -> Moved:
        after = max(after, 0)
        looked, end, *flat = await self._run(MOVED, [after, min(limit, _WINDOW)])
        names = [(self._whose.own_id(flat[index]), flat[index + 1]) for index in range(0, len(flat), 2)]
        versions = {name.decode(): version for name, version in names if name is not None}
        return Moved(versions, looked, looked >= end)

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        end = (await self._log(MAX_VERSION, MAX_VERSION, 0, where, window=0)).end
        if count <= 0:
            return end
        remaining = count
        async for positions in self._backwards(end, where, first_window=max(64, min(count, _WINDOW))):
            if len(positions) >= remaining:
                return positions[-remaining] - 1
            remaining -= len(positions)
        return 0

    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        whose = self.tenant if tenant is None else tenant
        self.check_open()
        if self.tenant not in (NO_TENANT, whose):
            return []
        # A page's ids can be 1,024 bytes each, so it is not worth bounding further.
        reply = await self._run(STREAMS, [limit, *RedisTenant(whose).bounds(after, kind)])
        return [
            StreamInfo(split(reply[index])[1], reply[index + 1], reply[index + 2], whose)
            for index in range(0, len(reply), 3)
        ]

    async def tenants(self, *, after: str | None, limit: int) -> Sequence[str]:
        if self.tenant:
            has_streams = bool(await self.streams(after="", limit=1, kind=None))
            return [self.tenant] if limit > 0 and has_streams and (after is None or after < self.tenant) else []
        found = [NO_TENANT] if after is None and await self.streams(after="", limit=1, kind=None) else []
        bound = b"-" if not after else b"(\0" + after.encode() + b"\x01"
        return [*found, *(name.decode() for name in await self._run(TENANTS, [limit - len(found), bound]))][:limit]

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        last = MAX_VERSION if through is None else min(through, MAX_VERSION)
        reply = await self._run(READ_SNAPSHOTS, [self._whose.name(stream_id), last, limit])
        return [unpacked_snapshot(stream_id, packed) for packed in reply]

    async def owners(self) -> Sequence[OwnerInfo]:
        return owner_infos(self._whose, await self._run(OWNERS, []))

    async def holdings(self, *, after: str, limit: int) -> Sequence[Holding]:
        return found_holdings(self._whose, await self._run(HOLDINGS, [limit, *self._whose.bounds(after)]))

    async def removals(self, *, after: int, limit: int) -> Sequence[Removal]:
        return found_removals(after, await self._run(REMOVALS, [after, limit]))

    async def seals(self, *, after: int, limit: int, backwards: bool) -> Sequence[StoredSeal]:
        return found_seals(await self._run(SEALS, [after, limit, int(backwards)]))

    async def statistics(self) -> Statistics:
        """The size is that of records, snapshots and commands' outcomes, without what the server needs around them."""
        return Statistics(*await self._run(STATISTICS, []))

    async def _log(self, after: int, through: int, limit: int, where: EventFilter, *, window: int) -> _LogReply:
        kinds = [kind.encode() for kind in where.kinds]
        stream_ids = [stream_id.encode() for stream_id in where.stream_ids]
        tenants = seen(self.tenant, where.tenants)
        bounds = [min(after, MAX_VERSION), through, limit, window]
        # -1: everybody's.
        whose: list[Argument] = [-1] if tenants is None else [len(tenants), *tenants]
        arguments = [*bounds, len(kinds), *kinds, *whose, *stream_ids]
        end, looked, positions, names, flat, _ = await self._run(READ_LOG, arguments)
        streams: list[tuple[str, str]] = [split(name) for name in names]
        events: list[RecordedEvent] = []
        for index, position in zip(range(0, len(flat), 3), positions, strict=True):
            number: int = flat[index]
            tenant, stream_id = streams[number]
            try:
                event = recorded(tenant, stream_id, flat[index + 1], flat[index + 2])
            except JournalCorrupt as error:
                # The record's own may be what is damaged.
                error.position = position
                raise
            if event.position != position:
                raise JournalCorrupt(
                    f"the event at version {event.version} stands at position {event.position}, the log has it at "
                    f"{position}; restore it from a copy",
                    stream_id=event.stream_id,
                    version=event.version,
                    position=position,
                    tenant=event.tenant,
                )
            events.append(event)
        return _LogReply(end, looked, positions, events)

    def _window(self, where: EventFilter, limit: int) -> int:
        is_for_some = where.kinds or where.stream_ids or where.tenants or self.tenant
        return _WINDOW if is_for_some else min(limit, _WINDOW)

    async def _backwards(self, end: int, where: EventFilter, *, first_window: int) -> AsyncGenerator[list[int], None]:
        """The positions of matching events, in rising order within a window, the last window first."""
        window = first_window
        while end > 0:
            start = max(0, end - window)
            found: list[int] = []
            looked = start
            while looked < end:
                page = await self._log(looked, end, window, where, window=window)
                found += [event.position for event in page.events if _passes(event, where)]
                looked = page.looked
            yield found
            end, window = start, min(2 * window, _WINDOW)


class _LogReply(NamedTuple):
    end: int
    looked: int
    positions: Sequence[int]
    events: Sequence[RecordedEvent]


def _passes(event: RecordedEvent, where: EventFilter) -> bool:
    """Kinds, stream ids and tenants are the script's."""
    tags = () if event.metadata is None else event.metadata.tags
    return (not where.types or event.type in where.types) and (not where.tags or not set(where.tags).isdisjoint(tags))


def _loaded(stream_id: str, answer: Sequence[Any]) -> Loaded | JournalCorrupt:
    version, truncated, snapshot, records, after = answer
    try:
        if version < 0:
            raise _misses_events(stream_id, truncated, *records)
        stored = None if snapshot is None else unpacked_snapshot(stream_id, snapshot)
        events = replayed(stream_id, max(after, truncated) + 1, records)
        return Loaded(stored, events, version, truncated, bool(records) and is_of_replica(records[0]))
    except JournalCorrupt as error:
        return error


def _misses_events(stream_id: str, length: int, version: int, truncated: int) -> JournalCorrupt:
    return JournalCorrupt(
        f"the stream is at version {version} and truncated to {truncated}, but holds {length} events: its list was "
        "changed by something else; restore it from a copy",
        stream_id=stream_id,
    )


def _check_order(events: Any) -> None:
    for earlier, later in pairwise(events):
        if earlier.position >= later.position:
            raise JournalCorrupt(
                f"position {later.position} follows {earlier.position}",
                stream_id=later.stream_id,
                version=later.version,
            )
