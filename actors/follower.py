"""Follower: finds out which live actors other processes have moved on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress

from actors.cells.cell import Cell
from eventstore.errors import BackendUnavailable, StoreClosed
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# What cannot be read for a reason that may stay is tried again after pauses that double up to this.
_LONGEST_PAUSE_SECONDS = 30.0
_DOUBLINGS = 16

# So long a recovery waits at most for following to begin.
_BEGIN_SECONDS = 1.0


class Follower:
    """While it runs, an actor that others have moved on catches up before it serves its next command.

    It looks at the log at the latest `seconds` after it has looked last: after a quiet time at once when the store
    wakes it, and then after `seconds` again, because what this process itself appends wakes it too. No decision rests
    on it: what it has not seen yet, the next append finds out.
    """

    def __init__(self, store: EventStore, cells: Mapping[str, Cell], seconds: float) -> None:
        self._store = store
        self._cells = cells
        self._seconds = seconds
        self._position: int | None = None
        self._failures = 0
        self._was_woken = False
        self._tried = asyncio.Event()

    async def begun(self) -> None:
        """Return when it is known where the log ends, or soon if that takes long.

        Who recovers after that has missed nothing. For the others it is made good when following has begun.
        """
        if not self._tried.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEGIN_SECONDS):
                    await self._tried.wait()

    async def run(self) -> None:
        """Follow the log from its end on, as long as there are cells."""
        while self._cells:
            try:
                await self._turn()
                self._failures = 0
            except StoreClosed:
                return
            except BackendUnavailable:
                await asyncio.sleep(self._seconds)
            except Exception as error:
                # Whatever it is: without this, what is answered from memory could be of any age.
                self._failures += 1
                pause = min(
                    self._seconds * 2.0 ** min(self._failures, _DOUBLINGS), max(self._seconds, _LONGEST_PAUSE_SECONDS)
                )
                logger.warning(
                    "what other processes append was not found out, actors may answer from an older state; it is tried "
                    "again in %g s: %s: %s",
                    pause,
                    type(error).__name__,
                    error,
                )
                await asyncio.sleep(pause)

    async def _turn(self) -> None:
        """Look at the log, and wait until it is to be looked at again."""
        before = self._position
        if before is None:
            await self._begin()
        else:
            self._position = await self._look(before)
            if self._was_woken or self._position != before:
                self._was_woken = False
                await asyncio.sleep(self._seconds)
                return
        await self._quiet()

    async def _begin(self) -> None:
        try:
            self._position = await self._store.end()
        finally:
            self._tried.set()
        # Those that did not wait for it: what was appended after their recovery may be before that position.
        for cell in self._cells.values():
            if cell.epoch is None:
                cell.doubt()

    async def _quiet(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._store.wait(self._position or 0, self._seconds)
        self._was_woken = loop.time() - began < self._seconds

    async def _look(self, after: int) -> int:
        is_end = False
        while not is_end:
            versions, after, is_end = await self._store.moved(after=after)
            for stream_id, version in versions.items():
                cell = self._cells.get(stream_id)
                if cell is not None and cell.epoch is None and cell.version < version:
                    cell.doubt()
        return after
