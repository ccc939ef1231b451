"""Copy: one journal's records, stored as they are in another one, of whichever backends; followed, fenced, compared.

The target knows how far it is: that is stored in the same commit as the events. Whatever ends a copy, the next one
goes on from there.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, wait_random_exponential

from eventstore.codec import damaged, verify_checksum
from eventstore.contract.archive import (
    Archive,
    ArchivedCommand,
    ArchivedEvent,
    ArchivedStream,
    ArchivePage,
    Fence,
    StreamRecords,
)
from eventstore.errors import BackendUnavailable, CopyDiffers, CopyRefused, OutcomeUnknown
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# How large a page is: as many events as are likely to take so many bytes, because nobody knows before they are read.
_PAGE_BYTES = 4 * 1024 * 1024
_FIRST_PAGE = 100
_LARGEST_PAGE = 1000

_COMPARED_PAGE = 500

_STREAMS = 200
# Of outcomes, which may each be as large as an event, a page has as many as are likely to take `_RECORDS_BYTES`.
_FIRST_COMMANDS = 16
_COMMANDS = 500
# So much is given to the target in one commit, of streams' outcomes and snapshots.
_RECORDS_BYTES = 4 * 1024 * 1024

_POLL_SECONDS = 0.5


@dataclass
class Compared:
    """What was read of both journals, and found equal. `digest` is over all of it, in hexadecimal."""

    events: int = 0
    streams: int = 0
    commands: int = 0
    snapshots: int = 0
    digest: str = ""


class Copy:
    """Brings a target up to its source. Both stores are open; nobody else writes to the target.

    At any moment each event that the target holds has the outcome of its command once the streams were brought
    (`bring_streams`), and no outcome and no snapshot is there before its events are.
    """

    def __init__(
        self, source: EventStore, target: EventStore, *, on_events: Callable[[int], None] | None = None
    ) -> None:
        self._source_store = source
        self._target_store = target
        self._source: Archive = source.archive()
        self._target: Archive = target.archive()
        self._on_events = on_events
        self._limit = _FIRST_PAGE
        self.position = 0
        """Up to where the target is a copy."""
        self.events = 0
        """How many events were copied by this object."""

    async def begin(self) -> int:
        """Find out how far the target is. Returns the position.

        Raises `CopyRefused` if it is no copy of this source, and not empty either, or if it is the source.
        """
        if await self._source.identity() == await self._target.identity():
            raise CopyRefused(
                "FROM and TO are the same journal, whatever their URLs: nothing was copied or fenced; copy into an "
                "empty journal"
            )
        copied = await self._target.copied()
        if copied is None:
            # Even of an empty journal: from now on the target is nothing else than a copy.
            await self._target.restore_events(after=0, page=ArchivePage([], {}, 0, is_end=False))
        else:
            await self._check_source(copied)
        self.position = copied or 0
        return self.position

    async def _check_source(self, copied: int) -> None:
        newest = await self._source.events(after=copied, limit=1)
        if newest.position < copied:
            raise CopyRefused(
                f"the target is a copy up to position {copied}, and the source ends at {newest.position}: it is a copy "
                "of another journal, or the source has lost events; nothing was stored"
            )
        async for last in self._target_store.read_all(last=1):
            (mine,) = (await self._target.events(after=last.position - 1, limit=1)).events
            theirs = (await self._source.events(after=last.position - 1, limit=1)).events
            if theirs and theirs[0] == mine:
                return
            stream = (await self._source.find([mine.key])).get(mine.key)
            if stream is None or stream.truncated < mine.version:
                raise CopyRefused(
                    f"the target is a copy of another journal: at position {last.position} it holds another event than "
                    "the source; nothing was stored, copy into an empty journal"
                )

    async def catch_up(self, *, with_streams: bool = False) -> int:
        """Copy the events that the log has by now. What comes meanwhile is for the next time: who writes there may be
        faster. Returns how many.

        `with_streams` brings what else there is to know of their streams after each page.
        """
        before = self.events
        newest = 0
        async for recorded in self._source_store.read_all(last=1):
            newest = recorded.position
        while True:
            # One page more: the log may end behind its newest event.
            is_last = self.position >= newest
            page = await self._source.events(after=self.position, limit=self._limit)
            if page.events or page.position > self.position:
                for event in page.events:
                    _check(event)
                await self._target.restore_events(after=self.position, page=page)
                self.position = page.position
                self._copied(page.events)
                if with_streams and page.events:
                    keys = list(dict.fromkeys(event.key for event in page.events))
                    await self._bring(list((await self._source.find(keys)).values()))
            if page.is_end or is_last:
                return self.events - before

    async def bring_streams(self) -> None:
        """Give every stream of the target what the source has besides events: truncation marks, epochs, remembered
        commands, snapshots. Only what differs is copied. Streams that are new meanwhile are for the next time: whoever
        makes them may be faster."""
        after, last = 0, await self._source.last_stream()
        while after < last and (heads := await self._source.streams(after=after, limit=_STREAMS)):
            await self._bring(heads)
            after = heads[-1].number

    async def follow(self) -> None:
        """Copy what there is, and then what comes, until the caller is cancelled. While a database cannot be reached it
        tries again."""
        again = AsyncRetrying(
            retry=retry_if_exception_type((BackendUnavailable, OutcomeUnknown)),
            wait=wait_random_exponential(multiplier=0.05, max=5.0),
            before_sleep=before_sleep_log(logger, logging.WARNING),
        )
        await again(self._bring_all)
        while True:
            await self._source_store.wait(self.position, _POLL_SECONDS)
            await again(self._bring_news)

    async def _bring_all(self) -> None:
        await self.begin()
        await self.catch_up()
        await self.bring_streams()

    async def _bring_news(self) -> None:
        # After an attempt that failed nobody knows what was stored.
        self.position = await self._target.copied() or 0
        await self.catch_up(with_streams=True)

    async def cut_over(self, reason: str) -> Fence:
        """Copy what there is, fence the source, and copy what had come by then: from then on nothing is added to the
        source, and the target has all of it. Done again it goes on where it was, behind the same fence."""
        await self.catch_up()
        await self.bring_streams()
        # Writers are kept out for as long as the rest takes: only what comes during this is left to copy.
        await self.catch_up(with_streams=True)
        fence = await self._source.fence(reason)
        await self.catch_up()
        await self.bring_streams()
        return fence

    async def compare(self) -> Compared:
        """Read both journals, up to where the target is a copy, and compare every record.

        Raises `CopyDiffers`, which names the first difference. What is removed from the source meanwhile, or was
        changed there since it was copied, counts as one: compare when nobody writes.
        """
        return await _Comparison(self._source, self._target, self.position, self._on_events).run()

    def _copied(self, events: Sequence[ArchivedEvent]) -> None:
        self.events += len(events)
        if self._on_events is not None:
            self._on_events(len(events))
        if events:
            size = sum(len(event.event.payload) + len(event.event.metadata or b"") + 200 for event in events)
            self._limit = max(1, min(_LARGEST_PAGE, 2 * self._limit, _PAGE_BYTES * len(events) // size))

    async def _bring(self, heads: Sequence[ArchivedStream]) -> None:
        found = await self._target.find([head.key for head in heads])
        waiting: list[StreamRecords] = []
        size = 0
        for head in heads:
            async for records in self._differing(head, found.get(head.key)):
                waiting.append(records)
                size += _size_of(records)
                if size >= _RECORDS_BYTES:
                    await self._target.restore_streams(waiting)
                    waiting, size = [], 0
        if waiting:
            await self._target.restore_streams(waiting)

    async def _differing(self, head: ArchivedStream, mine: ArchivedStream | None) -> AsyncGenerator[StreamRecords]:
        """What makes a stream of the target what it is in the source, as far as its events have come."""
        known = max(0 if mine is None else mine.version, head.truncated)
        records = StreamRecords(*head.key, head.truncated, head.epoch, head.forgotten)
        is_changed = mine is None or (mine.truncated, mine.epoch, mine.forgotten) != records[2:5]
        snapshots = tuple(each for each in head.snapshots if each[0] <= known)
        if snapshots != (() if mine is None else mine.snapshots):
            stored = await self._source.snapshots(head.number)
            records = records._replace(snapshots=[each for each in stored if each.version <= known])
            is_changed = True
        after = ""
        if mine is not None and mine.commands:
            # Outcomes are forgotten from the oldest on, and remembered behind the newest.
            if mine.oldest == head.oldest:
                after = mine.newest
            else:
                records = records._replace(replaces=True)
                is_changed = True
        if head.commands and (after, 0 if mine is None else mine.commands) != (head.newest, head.commands):
            async for page in _outcomes(self._source, head.number, after=after):
                commands = [each for each in page if each.version <= known]
                for portion in _portions(commands):
                    yield records._replace(commands=portion)
                    records, is_changed = records._replace(replaces=False, snapshots=None), False
                # What is remembered meanwhile is for the next time, as streams are that are new.
                if len(commands) < len(page) or head.newest in [each.outcome.command_id for each in page]:
                    break
        if is_changed:
            yield records


class _Comparison:
    """Reads both, page by page, and compares what is at the same place."""

    def __init__(
        self, source: Archive, target: Archive, position: int, on_events: Callable[[int], None] | None
    ) -> None:
        self._source = source
        self._target = target
        self._position = position
        self._on_events = on_events
        self._digest = blake2b(digest_size=32)
        self._compared = Compared()

    async def run(self) -> Compared:
        await self._events()
        await self._streams()
        self._compared.digest = self._digest.hexdigest()
        return self._compared

    async def _events(self) -> None:
        theirs, mine = self._log(self._source), self._log(self._target)
        while True:
            one, other = await anext(theirs, None), await anext(mine, None)
            if one != other:
                raise CopyDiffers(_event_difference(one, other))
            if one is None:
                return
            self._add(one.position, one.tenant, one.stream_id, one.version, *one.event, one.epoch, one.recorded_at)
            self._compared.events += 1
            if self._on_events is not None:
                self._on_events(1)

    async def _log(self, archive: Archive) -> AsyncGenerator[ArchivedEvent]:
        after = 0
        while after < self._position:
            page = await archive.events(after=after, limit=_COMPARED_PAGE)
            for event in page.events:
                if event.position > self._position:
                    return
                yield event
            after = page.position
            if page.is_end:
                return

    async def _streams(self) -> None:
        after = 0
        while heads := await self._source.streams(after=after, limit=_STREAMS):
            found = await self._target.find([head.key for head in heads])
            for head in heads:
                mine = found.get(head.key)
                if mine is None:
                    raise CopyDiffers(f"stream {head.stream_id!r} is missing")
                await self._stream(head, mine)
            after = heads[-1].number
        await self._strangers()

    async def _stream(self, head: ArchivedStream, mine: ArchivedStream) -> None:
        for name in ("truncated", "epoch", "forgotten"):
            one, other = getattr(head, name), getattr(mine, name)
            if one != other:
                raise CopyDiffers(f"stream {head.stream_id!r}: {name} is {one} in the source and {other} in the copy")
        # What has come to the source behind the copy's position is not to be in the copy.
        snapshots = tuple(each for each in head.snapshots if each[0] <= mine.version)
        if snapshots != mine.snapshots or head.version < mine.version:
            raise CopyDiffers(f"stream {head.stream_id!r}: the copy has other snapshots, or another version")
        self._add(*head.key, mine.version, head.truncated, head.epoch, head.forgotten)
        if snapshots:
            stored = await self._source.snapshots(head.number)
            wanted = [each for each in stored if each.version <= mine.version]
            if wanted != list(await self._target.snapshots(mine.number)):
                raise CopyDiffers(f"stream {head.stream_id!r}: a snapshot is another one")
            for snapshot in wanted:
                self._add(*snapshot[:-2], str(snapshot.recorded_at), snapshot.epoch)
                self._compared.snapshots += 1
        if head.commands or mine.commands:
            await self._commands(head, mine)
        self._compared.streams += 1

    async def _commands(self, head: ArchivedStream, mine: ArchivedStream) -> None:
        theirs = self._outcomes(self._source, head.number, mine.version)
        own = self._outcomes(self._target, mine.number, mine.version)
        while True:
            one, other = await anext(theirs, None), await anext(own, None)
            if one is None and other is None:
                return
            if one is None or other is None:
                raise CopyDiffers(f"stream {head.stream_id!r}: it remembers {mine.commands} commands in the copy")
            if one != other:
                name = one.outcome.command_id
                raise CopyDiffers(f"stream {head.stream_id!r}: the outcome of command {name!r} is another one")
            self._add(*one.outcome, one.version, one.recorded_at)
            self._compared.commands += 1

    async def _outcomes(self, archive: Archive, number: int, version: int) -> AsyncGenerator[ArchivedCommand]:
        """What a stream remembers up to a version."""
        async for page in _outcomes(archive, number):
            for each in page:
                if each.version > version:
                    return
                yield each

    async def _strangers(self) -> None:
        after = 0
        while heads := await self._target.streams(after=after, limit=_STREAMS):
            found = await self._source.find([head.key for head in heads])
            for head in heads:
                if head.key not in found:
                    raise CopyDiffers(f"stream {head.stream_id!r} is in the copy alone")
            after = heads[-1].number

    def _add(self, *fields: Any) -> None:
        """Put a record's fields into the digest, each with its length, so that no two records give the same bytes."""
        for value in fields:
            data = value if isinstance(value, bytes) else repr(value).encode()
            self._digest.update(struct.pack(">Q", len(data)))
            self._digest.update(data)


def _check(event: ArchivedEvent) -> None:
    """Raise `JournalCorrupt` for an event that is damaged: a copy of it would look as if it were whole."""
    _, type_, schema_version, payload, metadata, _, checksum, _ = event.event
    try:
        verify_checksum(checksum, type_, schema_version, payload, metadata)
    except ValueError as error:
        raise damaged(error, stream_id=event.stream_id, version=event.version, position=event.position) from error


def _event_difference(one: ArchivedEvent | None, other: ArchivedEvent | None) -> str:
    if one is None or other is None:
        if one is not None:
            return f"the event at position {one.position} is missing in the copy"
        return f"the copy has an event that the source has not, at position {0 if other is None else other.position}"
    if one.position != other.position:
        position = min(one.position, other.position)
        return f"at position {position} only {'the source' if position == one.position else 'the copy'} has an event"
    fields = {**one.event._asdict(), **one._asdict()}
    others = {**other.event._asdict(), **other._asdict()}
    names = ", ".join(name for name in fields if name != "event" and fields[name] != others[name])
    return f"the events at position {one.position} (stream {one.stream_id!r}) differ in: {names}"


async def _outcomes(archive: Archive, number: int, *, after: str = "") -> AsyncGenerator[Sequence[ArchivedCommand]]:
    """What a stream remembers behind a command, in pages. Of large ones a backend may give fewer than asked for."""
    limit = _FIRST_COMMANDS
    while page := await archive.commands(number, after=after, limit=limit):
        yield page
        after = page[-1].outcome.command_id
        limit = max(1, min(_COMMANDS, 2 * limit, _RECORDS_BYTES * len(page) // sum(map(_size_of_outcome, page))))


def _portions(commands: Sequence[ArchivedCommand]) -> Iterator[Sequence[ArchivedCommand]]:
    """What is given to a target at once: on Redis that is one script, which keeps everybody waiting."""
    portion: list[ArchivedCommand] = []
    size = 0
    for command in commands:
        more = _size_of_outcome(command)
        if portion and size + more > _RECORDS_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(command)
        size += more
    if portion:
        yield portion


def _size_of(records: StreamRecords) -> int:
    size = sum(map(_size_of_outcome, records.commands))
    return size + sum(len(snapshot.payload) + 200 for snapshot in records.snapshots or ()) + 200


def _size_of_outcome(command: ArchivedCommand) -> int:
    return len(command.outcome.payload) + 200
