"""Outside: work in a task that has nothing to do with the block or handler that it is begun in."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def outside(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Begin it as somebody else would, another process for example: it is no part of the transaction around it."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())
