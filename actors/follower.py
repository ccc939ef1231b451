"""Follower: finds out which live actors other processes have moved on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from actors.cell import Cell
from eventstore.errors import BackendUnavailable, EventStoreError, StoreClosed
from eventstore.store import EventStore

logger = logging.getLogger(__name__)


class Follower:
    """While it runs, an actor that others have moved on catches up before it serves its next command.

    After a quiet time it learns of that by the store's wake-up; then it looks again after `seconds`, because what this
    process itself appends wakes it too. Nothing rests on it: what it misses, the next append finds out.
    """

    def __init__(self, store: EventStore, cells: Mapping[str, Cell], seconds: float) -> None:
        self._store = store
        self._cells = cells
        self._seconds = seconds

    async def run(self) -> None:
        """Follow the log from its end on, as long as there are cells."""
        position: int | None = None
        while self._cells:
            try:
                if position is None:
                    position = await self._store.end()
                else:
                    await self._store.wait(position, self._seconds)
                    position = await self._look(position)
                await asyncio.sleep(self._seconds)
            except StoreClosed:
                return
            except BackendUnavailable:
                await asyncio.sleep(self._seconds)
            except EventStoreError as error:
                logger.warning("actors are not told any more what other processes append: %s", error)
                return

    async def _look(self, after: int) -> int:
        is_end = False
        while not is_end:
            versions, after, is_end = await self._store.moved(after=after)
            for stream_id, version in versions.items():
                cell = self._cells.get(stream_id)
                if cell is not None and cell.epoch is None and cell.version < version:
                    cell.doubt()
        return after
