"""Recorder: what a journal answers to a scenario, and what it holds afterwards, in one form for every database."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import pairwise
from typing import Any
from uuid import UUID

from eventstore.backend import Appended, Backend, EventFilter, Loaded, LogPage, Statistics, StreamInfo
from eventstore.codec import encode_metadata
from eventstore.errors import JournalCorrupt
from eventstore.events import Metadata, RecordedEvent
from eventstore.store import EventStore

from .operations import (
    AppendGroup,
    Claim,
    Count,
    DeleteSnapshots,
    ListStreams,
    LoadMany,
    Operation,
    ReadLast,
    ReadLog,
    ReadSnapshots,
    ReadStream,
    Reopen,
    SaveSnapshot,
    Truncate,
    Wait,
)

Opener = Callable[[], EventStore]

_LONG_BYTES = 200
_EVERYTHING = EventFilter()


async def canonical_log(opened: Opener, operations: Sequence[Operation]) -> list[str]:
    """One line per operation with its answer, then one line per stream, event and snapshot that is there at the end."""
    recorder = Recorder(opened)
    await recorder.open()
    try:
        for number, operation in enumerate(operations):
            recorder.note(f"{number} {type(operation).__name__}", await recorder.perform(operation))
        await recorder.note_journal()
    finally:
        await recorder.close()
    return recorder.lines


class Recorder:
    """Performs operations and notes the answers.

    Two things may differ between databases, and are not noted as they are. Positions may have holes: what is noted is
    how many events stand up to there. And each has its own clock: what is noted is that it does not go back.
    """

    def __init__(self, opened: Opener) -> None:
        self._opened = opened
        self._store: EventStore | None = None
        self.lines: list[str] = []
        self.positions: list[int] = []
        """Where the events stand that were ever stored."""

    async def open(self) -> None:
        self._store = self._opened()
        await self._store.__aenter__()

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()

    def note(self, what: str, answer: object) -> None:
        self.lines.append(f"{what}: {json.dumps(self._plain(answer), ensure_ascii=False, default=repr)}")

    async def perform(self, operation: Operation) -> object:
        backend = self._backend
        match operation:
            case AppendGroup(batches):
                outcomes = await backend.append(batches)
                if any(isinstance(outcome, Appended) and not outcome.is_duplicate for outcome in outcomes):
                    await self._learn_positions()
                return list(outcomes)
            case Claim(stream_id):
                return await backend.claim(stream_id)
            case LoadMany(loads):
                return [_with_bytes(answer) for answer in await backend.load(loads)]
            case ReadStream(stream_id, after, through, limit, backwards):
                return await backend.read_stream(
                    stream_id, after=after, through=through, limit=limit, backwards=backwards
                )
            case ReadLog(after_event, page_size, where):
                return await self._walk(self._position(after_event), page_size, where)
            case ReadLast(count, where):
                return await self._walk(await backend.start_of_last(count, where), 1000, where)
            case ListStreams(page_size, kind):
                return await self._streams(page_size, kind)
            case SaveSnapshot(snapshot, keep):
                await backend.save_snapshot(snapshot, keep=keep)
                return None
            case ReadSnapshots(stream_id, through, limit):
                return list(await backend.read_snapshots(stream_id, through=through, limit=limit))
            case DeleteSnapshots(stream_id, through):
                return await backend.delete_snapshots(stream_id, through=through)
            case Truncate(stream_id, through, reason):
                return await backend.truncate(stream_id, through, reason=reason)
            case Wait(after_event):
                # It may have been truncated since, and then nothing comes.
                return await backend.wait(self._position(after_event), 0.01)
            case Count():
                return await backend.statistics()
            case Reopen():
                await self.close()
                await self.open()
                return None

    async def note_journal(self) -> None:
        """Everything that is in the journal, whole."""
        events = await self._walk(0, 500, _EVERYTHING)
        for event in events:
            self.note("event", (self._plain(event), event.payload.decode()))
        self.note("times never fall", all(one.recorded_at <= other.recorded_at for one, other in pairwise(events)))
        self.note("a batch has one time", len({(e.batch_id, e.recorded_at) for e in events}))
        for stream in await self._streams(500, None):
            self.note("stream", stream)
            for snapshot in await self._backend.read_snapshots(stream.stream_id, through=None, limit=100):
                self.note("snapshot", (self._plain(snapshot), snapshot.payload.hex()))
        self.note("statistics", await self._backend.statistics())

    @property
    def _backend(self) -> Backend:
        assert self._store is not None
        return self._store._backend

    async def _walk(self, after: int, page_size: int, where: EventFilter) -> list[RecordedEvent]:
        """Every page up to the end. How many events are on each is the database's affair if a filter is set."""
        found: list[RecordedEvent] = []
        while True:
            page = await self._backend.read_all(after=after, limit=page_size, where=where)
            self._check(page, after, page_size)
            found += page.events
            if page.is_end:
                return found
            after = page.position

    def _check(self, page: LogPage, after: int, page_size: int) -> None:
        positions = [after, *(event.position for event in page.events)]
        assert len(page.events) <= page_size
        assert all(one < other for one, other in pairwise(positions))
        assert page.position >= positions[-1]
        assert not page.events or page.end >= positions[-1]
        assert page.is_end or page.position > after

    async def _streams(self, page_size: int, kind: str | None) -> list[StreamInfo]:
        found: list[StreamInfo] = []
        while True:
            page = await self._backend.streams(after=found[-1].stream_id if found else "", limit=page_size, kind=kind)
            found += page
            if len(page) < page_size:
                return found

    async def _learn_positions(self) -> None:
        last = self.positions[-1] if self.positions else 0
        self.positions += [event.position for event in await self._walk(last, 1000, _EVERYTHING)]

    def _position(self, event: int) -> int:
        # A broken database may have fewer events than there should be.
        return self.positions[min(event, len(self.positions)) - 1] if event and self.positions else 0

    def _place(self, position: int) -> int:
        return bisect_right(self.positions, position)

    def _plain(self, value: object) -> Any:
        """A value as JSON has it, without what may differ between databases."""
        match value:
            case RecordedEvent():
                fields = value._replace(position=self._place(value.position))._asdict()
                del fields["recorded_at"]
                return {name: self._plain(field) for name, field in fields.items()}
            case Appended(position, versions, is_duplicate):
                return {"at": self._place(position), "versions": versions, "is_duplicate": is_duplicate}
            case Statistics(streams, events, snapshots, last_position, _):
                return {"streams": streams, "events": events, "snapshots": snapshots, "end": self._place(last_position)}
            case Exception():
                return {"error": type(value).__name__, **vars(value), "message": str(value)}
            case Metadata():
                return self._plain(encode_metadata(value))
            case bytes() if len(value) > _LONG_BYTES:
                return f"{len(value)} bytes, {blake2b(value, digest_size=16).hexdigest()}"
            case bytes():
                return value.decode("utf-8", errors="backslashreplace")
            case UUID():
                return value.hex
            case datetime():
                return value.isoformat()
            case tuple() if hasattr(value, "_asdict"):
                return {name: self._plain(field) for name, field in value._asdict().items()}
            case list() | tuple():
                return [self._plain(item) for item in value]
            case _:
                return value


def _with_bytes(answer: Loaded | JournalCorrupt) -> Loaded | JournalCorrupt:
    """Payloads to be replayed may be text where the driver gives text."""
    if isinstance(answer, JournalCorrupt):
        return answer
    events = [(*named, payload.encode() if isinstance(payload, str) else payload) for *named, payload in answer.events]
    return answer._replace(events=events)
