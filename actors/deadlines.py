"""Deadlines: the timeouts of all asks, with one timer for many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from typing import Any

from eventstore.errors import InvalidArgument

# A timer of its own for each ask costs as much as deciding the command: made, put in order, and cancelled again.
# Here those that end within one tick share one, so a timeout may come up to a tick late.
_TICKS_PER_SECOND = 64

# With more ticks than this, those that nobody waits for any more are dropped: with a timeout of hours they would be
# kept for as long.
_MANY_TICKS = 1024


class Deadlines:
    """Futures that are given up at a time, unless they are done before.

    What is done is taken out by whoever waited for it, so what is kept is what is waited for, and some empty ticks.
    """

    __slots__ = ("_due", "_give_up", "_loop", "_many", "_timers")

    def __init__(self, loop: asyncio.AbstractEventLoop, give_up: Callable[[asyncio.Future[Any], Any], None]) -> None:
        self._loop = loop
        self._give_up = give_up
        self._due: dict[int, dict[asyncio.Future[Any], Any]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._many = _MANY_TICKS

    def add(self, future: asyncio.Future[Any], seconds: float, about: Any) -> dict[asyncio.Future[Any], Any]:
        """Have `give_up(future, about)` called in so many seconds. Remove the future from what is returned before."""
        tick = int((self._loop.time() + seconds) * _TICKS_PER_SECOND) + 1
        due = self._due.get(tick)
        if due is None:
            if len(self._due) >= self._many:
                self._drop_empty()
            due = self._due[tick] = {}
            self._timers[tick] = self._loop.call_at(tick / _TICKS_PER_SECOND, self._expire, tick)
        due[future] = about
        return due

    def _drop_empty(self) -> None:
        for tick in [tick for tick, due in self._due.items() if not due]:
            del self._due[tick]
            self._timers.pop(tick).cancel()
        self._many = max(_MANY_TICKS, 2 * len(self._due))

    def _expire(self, tick: int) -> None:
        del self._timers[tick]
        for future, about in self._due.pop(tick).items():
            if not future.done():
                self._give_up(future, about)


def check_seconds(seconds: object, name: str) -> None:
    """Raises `InvalidArgument` for what is no number of seconds: a timer would raise only after the command."""
    # Every ask with a timeout comes here: to make `int | float` anew would take longer than all the rest.
    if not isinstance(seconds, (int, float)) or not seconds > -inf:
        raise InvalidArgument(f"{name} is a number of seconds, not {seconds!r}: nothing was done")
