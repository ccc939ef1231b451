"""What the machine gives this process, and what it takes."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

_TICK_SECONDS = 0.005


def resident_megabytes() -> float:
    """The memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class StolenTime:
    """When the event loop was late although this process did nothing: the processor was somebody else's."""

    def __init__(self) -> None:
        self._stolen: list[tuple[float, float, float]] = []

    async def watch(self, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            start, worked = time.monotonic(), time.process_time()
            await asyncio.sleep(_TICK_SECONDS)
            end = time.monotonic()
            stolen = end - start - _TICK_SECONDS - (time.process_time() - worked)
            if stolen > _TICK_SECONDS:
                self._stolen.append((start, end, stolen))

    def within(self, start: float, end: float) -> float:
        """So many seconds of that time were stolen."""
        return sum(min(stolen, max(0.0, min(end, until) - max(start, since))) for since, until, stolen in self._stolen)
