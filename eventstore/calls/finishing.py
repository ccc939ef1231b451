"""Finishing: what has begun comes to its end, whatever becomes of the task that waits for it."""

from __future__ import annotations

import asyncio
import threading
from typing import TypeVar

_T = TypeVar("_T")

_FIRST_LOOK_SECONDS = 0.001
_LONGEST_LOOK_SECONDS = 0.05


async def finish_then_cancel(future: asyncio.Future[_T]) -> _T:
    """Wait for an outcome however often the caller is cancelled, and pass the cancellation on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # Nobody else will look at it.
        raise cancelled
    return future.result()


async def thread_ended(thread: threading.Thread) -> None:
    """Wait for a thread that was told to end. Not by a thread of the loop's own executor: these may all be in use, for
    as long as what the application has given them takes."""
    pause = _FIRST_LOOK_SECONDS
    while thread.is_alive():
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_LOOK_SECONDS)
