"""MemoryArchive: the records of a memory journal, read and stored as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from backends.archiving import TRUNCATED, check_copy, checked_reason, truncations
from backends.memory_journal import Entry, Journal, Remembered, Stream
from backends.times import nearest_time
from eventstore.archive import (
    ArchivedCommand,
    ArchivedEvent,
    ArchivedStream,
    ArchivePage,
    Fence,
    StreamKey,
    StreamRecords,
)
from eventstore.backend import StoredSnapshot

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)


class MemoryArchive:
    """Nothing is awaited inside a method, so each is one moment. Streams are numbered in the order they came in."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def events(self, *, after: int, limit: int) -> ArchivePage:
        log = self._journal.log
        found: list[ArchivedEvent] = []
        position = after
        while position < len(log) and len(found) < limit:
            entry = log[position]
            position += 1
            if entry is not None:
                at = _microseconds(entry.recorded_at)
                found.append(
                    ArchivedEvent(entry.position, "", entry.stream_id, entry.version, entry.event, entry.epoch, at)
                )
        truncated = {event.key: self._journal.streams[event.stream_id].truncated for event in found}
        return ArchivePage(found, truncated, position, position >= len(log))

    async def streams(self, *, after: int, limit: int) -> Sequence[ArchivedStream]:
        listed = list(self._journal.streams.items())[after : after + limit]
        return [_archived(number, *each) for number, each in enumerate(listed, after + 1)]

    async def find(self, keys: Sequence[StreamKey]) -> Mapping[StreamKey, ArchivedStream]:
        wanted = set(keys)
        return {
            ("", stream_id): _archived(number, stream_id, stream)
            for number, (stream_id, stream) in enumerate(self._journal.streams.items(), 1)
            if ("", stream_id) in wanted
        }

    async def commands(self, number: int, *, after: str, limit: int) -> Sequence[ArchivedCommand]:
        stream = list(self._journal.streams.values())[number - 1]
        ids = list(stream.commands)
        start = ids.index(after) + 1 if after in stream.commands else 0
        found = [stream.commands[command_id] for command_id in ids[start : start + limit]]
        return [ArchivedCommand(each.outcome, each.version, _microseconds(each.recorded_at)) for each in found]

    async def snapshots(self, number: int) -> Sequence[StoredSnapshot]:
        stream = list(self._journal.streams.values())[number - 1]
        return [stream.snapshots[version] for version in sorted(stream.snapshots)]

    async def copied(self) -> int | None:
        return self._journal.copied

    async def restore_events(self, *, after: int, page: ArchivePage) -> None:
        journal = self._journal
        journal.check_fence()
        check_copy(journal.copied, after=after, end=len(journal.log), is_empty=not journal.streams and not journal.log)
        versions = {("", stream_id): journal.stream(stream_id).version for _, stream_id in page.truncated}
        for (_, stream_id), through in truncations(page, versions).items():
            journal.truncate_to(stream_id, through, TRUNCATED)
        for each in page.events:
            at = nearest_time(each.recorded_at)
            journal.place(Entry(each.position, each.stream_id, each.version, each.event, each.epoch, at))
        journal.reach(page.position)
        journal.copied = page.position
        journal.wake()

    async def restore_streams(self, records: Sequence[StreamRecords]) -> None:
        self._journal.check_fence()
        for one in records:
            stream = self._journal.streams.setdefault(one.stream_id, Stream())
            if one.truncated > stream.truncated:
                self._journal.truncate_to(one.stream_id, one.truncated, TRUNCATED)
            stream.epoch, stream.forgotten = one.epoch, one.forgotten
            if one.replaces:
                stream.commands.clear()
            for command in one.commands:
                stored = Remembered(command.outcome, command.version, nearest_time(command.recorded_at))
                stream.commands[command.outcome.command_id] = stored
            if one.snapshots is not None:
                stream.snapshots = {snapshot.version: snapshot for snapshot in one.snapshots}

    async def fence(self, reason: str) -> Fence:
        self._journal.fence = self._journal.fence or Fence(checked_reason(reason), datetime.now(UTC))
        # As everywhere, whoever calls lets others go on.
        await asyncio.sleep(0)
        return self._journal.fence

    async def fenced(self) -> Fence | None:
        return self._journal.fence


def _archived(number: int, stream_id: str, stream: Stream) -> ArchivedStream:
    ids = list(stream.commands)
    snapshots = tuple(
        (version, _microseconds(stream.snapshots[version].recorded_at)) for version in sorted(stream.snapshots)
    )
    oldest, newest = (ids[0], ids[-1]) if ids else ("", "")
    return ArchivedStream(
        number,
        "",
        stream_id,
        stream.version,
        stream.truncated,
        stream.epoch,
        stream.forgotten,
        len(ids),
        oldest,
        newest,
        snapshots,
    )


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH_START) // timedelta(microseconds=1)
