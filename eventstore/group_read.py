"""GroupRead: many recoveries, one round trip. Cold activations come in crowds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from eventstore.backend import Load, Loaded
from eventstore.errors import JournalCorrupt, StoreClosed

# As many loads share a trip; with pages of up to 1,000 events this bounds what one trip holds in memory.
MAX_GROUP_LOADS = 100


class GroupRead:
    """The queue in front of `Backend.load`: one trip in flight, what arrives meanwhile is the next.

    Its length is bounded by the callers: the actor system lets only so many recover at once.
    """

    def __init__(self, load: Callable[[Sequence[Load]], Awaitable[Sequence[Loaded | JournalCorrupt]]]) -> None:
        self._load = load
        self._waiting: deque[tuple[Load, asyncio.Future[Loaded]]] = deque()
        self._group: list[tuple[Load, asyncio.Future[Loaded]]] = []
        self._reader: asyncio.Task[None] | None = None
        self._is_closed = False

    async def load(self, load: Load) -> Loaded:
        """Serve one load together with whoever asks at the same time."""
        if self._is_closed:
            raise StoreClosed("the store is closed")
        future: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._waiting.append((load, future))
        if self._reader is None:
            self._reader = asyncio.create_task(self._serve(), name="eventstore-group-read")
        return await future

    async def close(self) -> None:
        """Refuse new loads, those that wait, and those under way."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        for _, future in (*self._group, *self._waiting):
            if not future.done():
                future.set_exception(StoreClosed("the store was closed before this was read"))
        self._waiting.clear()

    async def _serve(self) -> None:
        while self._waiting:
            self._group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP_LOADS))]
            await self._serve_group(self._group)
        self._group = []
        self._reader = None

    async def _serve_group(self, group: Sequence[tuple[Load, asyncio.Future[Loaded]]]) -> None:
        try:
            answers = await self._load([load for load, _ in group])
        except Exception as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, JournalCorrupt):
                future.set_exception(answer)
            else:
                future.set_result(answer)
