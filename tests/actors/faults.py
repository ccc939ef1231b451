"""Faults: a fault injector around the real memory journal: appends that wait, fail, or lose their answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from backends.memory import MemoryBackend
from eventstore import Event, EventStore, Expected, OutcomeUnknown
from eventstore.backend import Appended, AppendOutcome, Batch, Load, Loaded, StoredSnapshot, StreamWrite
from eventstore.codec import DEFAULT_MAX_PAYLOAD_BYTES, encode_batch
from eventstore.errors import JournalCorrupt
from eventstore.url import parse_store_url
from tests.actors.notebook import until

Fault = Callable[[Callable[[], Awaitable[Sequence[AppendOutcome]]]], Awaitable[Sequence[AppendOutcome]]]
"""Gets what would store the group, and decides what becomes of it."""


def refused(error: Exception) -> Fault:
    """Nothing is stored."""

    async def fault(_: Callable[[], Awaitable[Sequence[AppendOutcome]]]) -> Sequence[AppendOutcome]:
        raise error

    return fault


async def answer_lost(store: Callable[[], Awaitable[Sequence[AppendOutcome]]]) -> Sequence[AppendOutcome]:
    """All is stored, and nobody is told."""
    await store()
    raise OutcomeUnknown("the answer was lost")


async def request_lost(_: Callable[[], Awaitable[Sequence[AppendOutcome]]]) -> Sequence[AppendOutcome]:
    """Nothing is stored, and nobody knows."""
    raise OutcomeUnknown("the request was lost")


class Direct:
    """Another writer on the same journal, past the faults."""

    def __init__(self, journal: MemoryBackend) -> None:
        self._journal = journal

    async def append(self, stream_id: str, events: Sequence[Event]) -> None:
        write = StreamWrite(stream_id, Expected.ANY, encode_batch(events, limit=DEFAULT_MAX_PAYLOAD_BYTES))
        [outcome] = await self._journal.append([[write]])
        assert isinstance(outcome, Appended)


class Faults:
    """`appends` are the groups that came in; `next` what goes wrong with those to come."""

    def __init__(self, url: str = "memory://") -> None:
        self._url = parse_store_url(url)
        self.journal = MemoryBackend(self._url)
        self.direct = Direct(self.journal)
        self.appends: list[list[Batch]] = []
        self.next: deque[Fault] = deque()
        self.always: Fault | None = None
        self.before_append: Callable[[], Awaitable[None]] | None = None
        self.loads: list[Load] = []
        self.loads_at_once = self.most_loads_at_once = 0
        self.before_load: Callable[[Load], Awaitable[None]] | None = None
        self.before_snapshot: Callable[[StoredSnapshot], Awaitable[None]] | None = None
        self._open = asyncio.Event()
        self._open.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.journal, name)

    def store(self, **options: Any) -> EventStore:
        return EventStore(self, url=self._url, **options)

    def hold(self) -> None:
        """Let appends come in, and none go on."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def held(self, count: int = 1) -> None:
        """Wait until so many appends have come in."""
        await until(lambda: len(self.appends) >= count)

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        # A copy: what is in flight must not change.
        self.appends.append([[write._replace(events=tuple(write.events)) for write in batch] for batch in batches])
        await self._open.wait()
        if self.before_append is not None:
            await self.before_append()
        if self.next:
            return await self.next.popleft()(lambda: self.journal.append(batches))
        if self.always is not None:
            return await self.always(lambda: self.journal.append(batches))
        return await self.journal.append(batches)

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        self.loads.extend(loads)
        if self.before_load is not None:
            for load in loads:
                await self.before_load(load)
        return await self.journal.load(loads)

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        if self.before_snapshot is not None:
            await self.before_snapshot(snapshot)
        return await self.journal.save_snapshot(snapshot, keep=keep)
