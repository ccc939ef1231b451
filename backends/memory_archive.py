"""MemoryArchive: the records of a memory journal, read and stored as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from backends.archiving import TRUNCATED, check_copy, checked_reason, truncations
from backends.memory_journal import Log
from backends.memory_stream import Entry, Remembered, Stream
from backends.times import microseconds, nearest_time
from eventstore.backend import StoredSnapshot
from eventstore.contract.archive import (
    ArchivedCommand,
    ArchivedEvent,
    ArchivedStream,
    ArchivePage,
    Fence,
    StreamKey,
    StreamRecords,
)


class MemoryArchive:
    """Nothing is awaited inside a method, so each is one moment. Streams are numbered in the order they came in."""

    def __init__(self, log: Log) -> None:
        self._log = log

    async def identity(self) -> str:
        return f"memory:{id(self._log)}"

    async def events(self, *, after: int, limit: int) -> ArchivePage:
        log = self._log.entries
        found: list[ArchivedEvent] = []
        position = after
        while position < len(log) and len(found) < limit:
            entry = log[position]
            position += 1
            if entry is not None:
                found.append(ArchivedEvent(*entry[:-1], microseconds(entry.recorded_at)))
        truncated = {event.key: self._log.journal(event.tenant).streams[event.stream_id].truncated for event in found}
        return ArchivePage(found, truncated, position, position >= len(log))

    async def streams(self, *, after: int, limit: int) -> Sequence[ArchivedStream]:
        listed = self._log.streams[after : after + limit]
        return [_archived(number, *each) for number, each in enumerate(listed, after + 1)]

    async def last_stream(self) -> int:
        return len(self._log.streams)

    async def find(self, keys: Sequence[StreamKey]) -> Mapping[StreamKey, ArchivedStream]:
        wanted = set(keys)
        return {
            key: _archived(number, key, stream)
            for number, (key, stream) in enumerate(self._log.streams, 1)
            if key in wanted
        }

    async def commands(self, number: int, *, after: str, limit: int) -> Sequence[ArchivedCommand]:
        _, stream = self._log.streams[number - 1]
        ids = list(stream.commands)
        start = ids.index(after) + 1 if after in stream.commands else 0
        found = [stream.commands[command_id] for command_id in ids[start : start + limit]]
        return [ArchivedCommand(each.outcome, each.version, microseconds(each.recorded_at)) for each in found]

    async def snapshots(self, number: int) -> Sequence[StoredSnapshot]:
        _, stream = self._log.streams[number - 1]
        return [stream.snapshots[version] for version in sorted(stream.snapshots)]

    async def copied(self) -> int | None:
        return self._log.copied

    async def restore_events(self, *, after: int, page: ArchivePage) -> None:
        log = self._log
        log.check_fence()
        is_empty = not log.streams and not log.entries
        check_copy(log.copied, after=after, end=len(log.entries), is_empty=is_empty)
        versions = {key: log.journal(key[0]).stream(key[1]).version for key in page.truncated}
        for (tenant, stream_id), through in truncations(page, versions).items():
            log.journal(tenant).truncate_to(stream_id, through, TRUNCATED)
        for each in page.events:
            log.place(Entry(*each[:-1], nearest_time(each.recorded_at)))
        log.reach(page.position)
        log.copied = page.position
        log.waiters.wake()

    async def restore_streams(self, records: Sequence[StreamRecords]) -> None:
        self._log.check_fence()
        for one in records:
            journal = self._log.journal(one.tenant)
            stream = journal.made(one.stream_id)
            if one.truncated > stream.truncated:
                journal.truncate_to(one.stream_id, one.truncated, TRUNCATED)
            stream.epoch, stream.forgotten = one.epoch, one.forgotten
            if one.replaces:
                stream.commands.clear()
            for command in one.commands:
                stored = Remembered(command.outcome, command.version, nearest_time(command.recorded_at))
                stream.commands[command.outcome.command_id] = stored
            if one.snapshots is not None:
                stream.snapshots = {snapshot.version: snapshot for snapshot in one.snapshots}

    async def fence(self, reason: str) -> Fence:
        self._log.fence = self._log.fence or Fence(checked_reason(reason), datetime.now(UTC))
        # As everywhere, whoever calls lets others go on.
        await asyncio.sleep(0)
        return self._log.fence

    async def fenced(self) -> Fence | None:
        return self._log.fence


def _archived(number: int, key: StreamKey, stream: Stream) -> ArchivedStream:
    ids = list(stream.commands)
    snapshots = tuple(
        (version, microseconds(stream.snapshots[version].recorded_at)) for version in sorted(stream.snapshots)
    )
    oldest, newest = (ids[0], ids[-1]) if ids else ("", "")
    return ArchivedStream(
        number,
        *key,
        stream.version,
        stream.truncated,
        stream.epoch,
        stream.forgotten,
        len(ids),
        oldest,
        newest,
        snapshots,
    )
