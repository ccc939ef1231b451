"""Finishing: what was begun is waited for, whoever is cancelled meanwhile."""

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
        raise cancelled
    return future.result()
