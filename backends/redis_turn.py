"""RedisTurn: the turn to write, which one has at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class RedisTurn:
    """First come, first served. Other than a lock of asyncio's, a turn that is free can be taken outside of a task."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take it if it is free. Whoever has taken it releases it."""
        if self._is_taken:
            return False
        self._is_taken = True
        return True

    async def wait(self, seconds: float | None = None) -> None:
        """Take it when it is free. Raises `TimeoutError` if that takes so long."""
        if self.take():
            return
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(given)
        try:
            async with asyncio.timeout(seconds):
                await given
        except BaseException:
            if given.cancelled():
                with suppress(ValueError):
                    self._waiting.remove(given)
            else:
                # It was given at the very moment.
                self.release()
            raise

    def release(self) -> None:
        """Give it to who has waited longest, or leave it free."""
        while self._waiting:
            given = self._waiting.popleft()
            if not given.done():
                given.set_result(None)
                return
        self._is_taken = False
