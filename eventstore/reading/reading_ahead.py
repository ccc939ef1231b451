"""ReadAhead: pages of the log, the next one on its way while one is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from eventstore.backend import LogPage

# Until a backend has sent its question: Postgres's pool does its work in a task of its own.
_TURNS = 3


class ReadAhead:
    """Use it with `async with`: what is on its way and not wanted any more is cancelled at its end.

    `read` gives the page behind a position.
    """

    def __init__(self, read: Callable[[int], Coroutine[Any, Any, LogPage]], *, after: int) -> None:
        self._read = read
        self.position = after
        """How far the log has been looked through, in the pages that were given out."""
        self._next: asyncio.Task[LogPage] | None = None

    async def page(self) -> LogPage:
        """The next page. Behind the end of the log it is read when it is asked for, and not before."""
        task, self._next = self._next, None
        page = await (self._read(self.position) if task is None else task)
        self.position = max(self.position, page.position)
        if not page.is_end:
            self._next = asyncio.create_task(self._read(self.position), name="eventstore-next-page")
            # Else it would begin when whoever uses this page waits for something, and that may be nothing.
            for _ in range(_TURNS):
                await asyncio.sleep(0)
        return page

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
            # Nobody wants it, nor what went wrong with it.
            if not self._next.cancelled():
                self._next.exception()
