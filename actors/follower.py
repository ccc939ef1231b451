"""Follower: finds out which live actors other processes have moved on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from actors.cell import Cell
from eventstore.errors import BackendUnavailable, EventStoreError, StoreClosed
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# What this process itself appends wakes it too: so often it looks at most.
_SHORTEST_SECONDS = 0.1


class Follower:
    """While it runs, an actor that others have moved on catches up before it serves its next command.

    It learns of that by the store's wake-ups, at the latest after `seconds`. Nothing rests on it: what it misses, the
    next append finds out.
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
                    position = (await self._store.read_page(limit=1)).end
                else:
                    await self._store.wait(position, self._seconds)
                    position = await self._look(position)
                await asyncio.sleep(min(_SHORTEST_SECONDS, self._seconds))
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
