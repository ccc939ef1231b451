"""RedisTurn: the turn to write, which one has at a time, or two groups of appends together."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

# One that the server works on, and one that it finds when that is done.
_TOGETHER = 2


class RedisTurn:
    """First come, first served. Other than a lock of asyncio's, a turn that is free can be taken outside of a task."""

    def __init__(self) -> None:
        self._together = 0
        self._is_alone = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def share(self) -> bool:
        """Take it together with others who do, if nobody else has it or waits for it. Whoever has it releases it."""
        if self._is_alone or self._waiting or self._together == _TOGETHER:
            return False
        self._together += 1
        return True

    async def wait(self, seconds: float) -> None:
        """Take it alone, when it is free. Raises `TimeoutError` if that takes so long."""
        if not (self._is_alone or self._waiting or self._together):
            self._is_alone = True
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
        """Let go of it. Who has waited longest has it when everybody has."""
        if self._together:
            self._together -= 1
        else:
            self._is_alone = False
        while self._waiting and not self._together:
            given = self._waiting.popleft()
            if not given.done():
                self._is_alone = True
                given.set_result(None)
                return
