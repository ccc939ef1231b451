"""Passivation: actors that nobody has needed for long leave memory, and some at once where there are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from actors.cells.cell import Cell

# Cells looked at in one turn of the loop when idle ones are sought.
_SWEEP_TURN = 2000


class Passivation:
    """Looks at the live cells, and hands those that may leave to `passivate`. One timer for all, and none for none."""

    def __init__(
        self,
        cells: Mapping[str, Cell],
        passivate: Callable[[Cell], None],
        *,
        most: int,
        idle_seconds: float,
        next_use: Callable[[], int],
        swept: Callable[[], None],
    ) -> None:
        self._cells = cells
        self._passivate = passivate
        self._most = most
        self._idle_seconds = idle_seconds
        self._next_use = next_use
        self._swept = swept
        self._loop = asyncio.get_running_loop()
        self._scans_skipped = 0
        self._is_ended = False
        self._sweeper: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """There is a cell: look for idle ones from time to time, until there is none."""
        if self._sweeper is None and not self._is_ended:
            # An actor is found idle between one and two times idle_seconds after its last message.
            self._sweeper = self._loop.call_later(self._idle_seconds, self._begin_sweep, self._next_use())

    def end(self) -> None:
        """Look for none any more."""
        self._is_ended = True
        if self._sweeper is not None:
            self._sweeper.cancel()

    def make_room(self) -> None:
        """For one more: passivate the least recently used, a twentieth at a time, so that looking costs little."""
        if len(self._cells) < self._most:
            return
        if self._scans_skipped:
            self._scans_skipped -= 1
            return
        idle = sorted((cell for cell in self._cells.values() if cell.is_idle), key=_last_use)
        for cell in idle[: len(self._cells) - self._most + max(1, self._most // 20)]:
            self._passivate(cell)
        if len(self._cells) >= self._most:
            # All others are busy. They are not looked at again for each actor that comes to life.
            self._scans_skipped = len(self._cells) // 20

    def _begin_sweep(self, mark: int) -> None:
        self._sweep(list(self._cells.values()), mark)

    def _sweep(self, cells: list[Cell], mark: int) -> None:
        if self._is_ended:
            return
        for cell in cells[-_SWEEP_TURN:]:
            if cell.used < mark and cell.is_idle:
                self._passivate(cell)
        del cells[-_SWEEP_TURN:]
        if cells:
            self._loop.call_soon(self._sweep, cells, mark)
            return
        self._swept()
        self._sweeper = None
        if self._cells:
            self.begin()


def _last_use(cell: Cell) -> int:
    return cell.used
