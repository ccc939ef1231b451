"""Tasks: what is under way on a backend's connections, and runs to its end whatever becomes of who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Tasks:
    """Each runs to its end, or its deadline, even if whoever asked for it is cancelled: that would leave a statement
    running, a connection that nobody closes, or a reply that is taken for that of the next command."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Future[Any]] = set()

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self.watch(task)
        return task

    def watch(self, work: asyncio.Future[Any]) -> None:
        """Count among them what is under way without a task."""
        self._tasks.add(work)
        work.add_done_callback(self._done)

    def finish(self, work: Coroutine[Any, Any, _T]) -> asyncio.Future[_T]:
        """What work comes to: to be awaited, and cancelled without harm to the work."""
        return asyncio.shield(self.start(work))

    async def join(self) -> None:
        """Wait for all of them."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever waited for it has it; a caller that was cancelled does not want it.
