"""OwnedTasks: the tasks of one actor system, none of which outlives it unnoticed."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Iterator
from typing import Any

# How long it is waited at the end for tasks that were cancelled.
CANCEL_SECONDS = 5.0


class OwnedTasks:
    """Those that run. One that fails is told to the loop's exception handler."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._running: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        return iter(self._running)

    def __bool__(self) -> bool:
        return bool(self._running)

    def start(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None = None) -> asyncio.Task[None]:
        """Run work until it is done, or `end` is called."""
        task = self._loop.create_task(work, context=context)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    async def end(self) -> int:
        """Cancel them all. Returns how many go on all the same after `CANCEL_SECONDS`."""
        for task in self._running:
            task.cancel()
        if not self._running:
            return 0
        _, left = await asyncio.wait(self._running, timeout=CANCEL_SECONDS)
        return len(left)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "an actor's task failed", "exception": error, "task": task})
