"""RedisArchive: the records of a Redis journal, read and stored as they are, and the fence that keeps writers out."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from backends.archiving import check_copy, checked_reason, packed_fence, truncations, unpacked_fence
from backends.redis_archive_scripts import (
    ARCHIVED_COMMANDS,
    ARCHIVED_SNAPSHOTS,
    ARCHIVED_STREAMS,
    COPIED,
    FENCE,
    FENCED,
    RESTORE_EVENTS,
    RESTORE_STREAM,
)
from backends.redis_commands import packed_archived, unpacked_archived
from backends.redis_connection import Argument, Script
from backends.redis_reading_scripts import READ_LOG
from backends.redis_records import MAX_VERSION, archived, packed_snapshot, restored, unpacked_snapshot
from backends.redis_tenant import RedisTenant, split
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
from eventstore.errors import CopyRefused

# A hole in the log costs 16 bytes for each position, and a script stores so many positions at once.
_SPAN = 65_536
# Events of all tenants.
_EVERYBODY = -1
_SNAPSHOT_HEAD = struct.Struct(">Qq")

Run = Callable[[Script, Sequence[Argument]], Awaitable[Any]]


class RedisArchive:
    """Each call is one script, but for pages with wide holes, and for streams: a script is one stream's."""

    def __init__(self, identity: bytes, read: Run, write: Run) -> None:
        self._identity = identity
        self._read = read
        self._write = write

    async def identity(self) -> str:
        return f"redis:{self._identity.hex()}"

    async def events(self, *, after: int, limit: int) -> ArchivePage:
        bounds = [min(after, MAX_VERSION), MAX_VERSION, limit, max(limit, 4096), 0, _EVERYBODY]
        end, looked, _, names, flat, truncated = await self._read(READ_LOG, bounds)
        keys: list[StreamKey] = [split(name) for name in names]
        events: list[ArchivedEvent] = []
        for at in range(0, len(flat), 3):
            number: int = flat[at]
            tenant, stream_id = keys[number]
            events.append(archived(tenant, stream_id, flat[at + 1], flat[at + 2]))
        marks = dict(zip(keys, truncated, strict=True))
        return ArchivePage(events, marks, looked, looked >= end)

    async def streams(self, *, after: int, limit: int) -> Sequence[ArchivedStream]:
        return [_stream(*answer) for answer in await self._read(ARCHIVED_STREAMS, [1, after, limit])]

    async def last_stream(self) -> int:
        _, _, streams = await self._read(COPIED, [])
        return int(streams)

    async def find(self, keys: Sequence[StreamKey]) -> Mapping[StreamKey, ArchivedStream]:
        wanted = [_name(key) for key in keys]
        found = [_stream(*answer) for answer in await self._read(ARCHIVED_STREAMS, [2, *wanted])]
        return {stream.key: stream for stream in found}

    async def commands(self, number: int, *, after: str, limit: int) -> Sequence[ArchivedCommand]:
        reply = await self._read(ARCHIVED_COMMANDS, [number, after.encode(), limit])
        return [unpacked_archived(reply[at].decode(), reply[at + 1]) for at in range(0, len(reply), 2)]

    async def snapshots(self, number: int) -> Sequence[StoredSnapshot]:
        name, *packed = await self._read(ARCHIVED_SNAPSHOTS, [number])
        _, stream_id = split(name)
        found = [unpacked_snapshot(stream_id, each) for each in packed]
        return sorted(found, key=lambda snapshot: snapshot.version)

    async def copied(self) -> int | None:
        copied, _, _ = await self._read(COPIED, [])
        return None if copied is None else int(copied)

    async def restore_events(self, *, after: int, page: ArchivePage) -> None:
        copied, end, streams = await self._read(COPIED, [])
        is_empty = end == 0 and streams == 0
        check_copy(None if copied is None else int(copied), after=after, end=end, is_empty=is_empty)
        for part in _spans(after, page):
            await self._restore_part(after, part)
            after = part.position

    async def _restore_part(self, after: int, page: ArchivePage) -> None:
        keys = list(dict.fromkeys(event.key for event in page.events))
        # Nobody else adds events to a copy: what is found here is what the script finds.
        versions = {key: stream.version for key, stream in (await self.find(keys)).items()}
        removed = truncations(page, versions)
        places = {key: number for number, key in enumerate(keys, 1)}
        arguments: list[Argument] = [after, page.position, len(keys)]
        arguments += (_name(key) for key in keys)
        arguments += (removed.get(key, 0) for key in keys)
        for event in page.events:
            arguments += (places[event.key], event.version, restored(event))
        if not await self._write(RESTORE_EVENTS, arguments):
            raise CopyRefused("the target was written to while it was filled: copy into an empty journal")

    async def restore_streams(self, records: Sequence[StreamRecords]) -> None:
        for one in records:
            arguments: list[Argument] = [_name(one.key), one.truncated, one.epoch, one.forgotten]
            arguments += (int(one.replaces), len(one.commands))
            for command in one.commands:
                arguments += (command.outcome.command_id.encode(), packed_archived(command))
            if one.snapshots is None:
                arguments.append(b"")
            else:
                arguments.append(len(one.snapshots))
                for snapshot in one.snapshots:
                    arguments += (snapshot.version, packed_snapshot(snapshot))
            await self._write(RESTORE_STREAM, arguments)

    async def fence(self, reason: str) -> Fence:
        fence = Fence(checked_reason(reason), datetime.now(UTC))
        return unpacked_fence(await self._write(FENCE, [packed_fence(fence).encode()]))

    async def fenced(self) -> Fence | None:
        found = await self._read(FENCED, [])
        return None if found is None else unpacked_fence(found)


def _name(key: StreamKey) -> bytes:
    tenant, stream_id = key
    return RedisTenant(tenant).name(stream_id)


def _spans(after: int, page: ArchivePage) -> Iterator[ArchivePage]:
    """The page in parts of which none reaches too far."""
    rest = list(page.events)
    while True:
        last = after + _SPAN
        if page.position <= last:
            yield page._replace(events=rest)
            return
        count = next((number for number, event in enumerate(rest) if event.position > last), len(rest))
        yield ArchivePage(rest[:count], page.truncated, last, is_end=False)
        rest, after = rest[count:], last


def _stream(
    number: int,
    name: bytes,
    version: int,
    truncated: int,
    epoch: int,
    forgotten: int,
    commands: int,
    oldest: bytes,
    newest: bytes,
    snapshots: Sequence[bytes],
) -> ArchivedStream:
    unpacked = (_SNAPSHOT_HEAD.unpack(head) for head in snapshots)
    heads = tuple(sorted((int(version), int(time)) for version, time in unpacked))
    counts = (version, truncated, epoch, forgotten, commands)
    return ArchivedStream(number, *split(name), *counts, oldest.decode(), newest.decode(), heads)
