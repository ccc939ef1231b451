"""Finishing: what has begun comes to its end, whatever becomes of the task that waits for it."""

from __future__ import annotations

import asyncio
from typing import TypeVar

_T = TypeVar("_T")


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
