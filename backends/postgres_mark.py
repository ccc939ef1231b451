"""PostgresMark: the position up to which the log is settled, and what tells that the server has lost events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from backends.postgres_pool import PostgresPool
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from eventstore.errors import JournalLost, StoreBusy

# How often it is looked whether the appends that a reader waits for have ended. They take about a millisecond, unless
# their process or its connection has stopped in the middle.
_FIRST_LOOK_SECONDS = 0.001
_LONGEST_LOOK_SECONDS = 0.05


class Seen(NamedTuple):
    """An event that was there."""

    position: int
    event_id: bytes


def seen(position: int | None, event_id: bytes) -> Seen | None:
    """The event that a statement has found, if there was one."""
    return None if position is None else Seen(position, event_id)


class PostgresMark:
    """All up to `settled` is final, and the `newest` event was seen.

    `stored_through` tells up to which position events are known to be stored that this store has appended.
    """

    def __init__(
        self, sql: PostgresSQL, pool: PostgresPool, *, settle_seconds: float, stored_through: Callable[[], int]
    ) -> None:
        self._sql = sql
        self._pool = pool
        self._settle_seconds = settle_seconds
        self._stored_through = stored_through
        self.settled = 0
        self.newest = Seen(0, b"")

    @property
    def known_end(self) -> int:
        """The log does not end before this position: it has an event there."""
        return max(self.newest.position, self._stored_through())

    async def settle(self) -> int:
        """A position up to which the log is final: nothing appears below it any more.

        Positions are taken before they can be seen, and a later one may be seen first. So the sequence is read, then
        the appends that are under way: once these have ended, whatever they stored up to there can be seen. No
        connection is kept while they are waited for: others may have work for it.

        Raises `JournalLost` for a server that has lost events, whose positions it gives to others.
        """
        known, last = self.known_end, self.newest
        ((end, appends, newest, newest_id, event_id),) = await self._rows(self._sql.settle, last.position)
        check_event(event_id, last)
        return await self.settled_at(end, appends, seen(newest, newest_id), known)

    async def check_kept(self, session: PostgresSession) -> None:
        """Raise `JournalLost` if the server of a new session has lost events that were there. Raises the driver's
        errors."""
        known, last = self.known_end, self.newest
        if known > 0:
            ((end, _, _, _, event_id),) = await session.fetch(self._sql.settle, last.position)
            check_event(event_id, last)
            check_end(end, known)

    async def settled_at(self, end: int, appends: Sequence[str] | None, newest: Seen | None, known: int) -> int:
        """As `settle`, out of what a statement told: where the log ends, which appends were under way then, and the
        newest event. By then an event at the `known` position had been seen."""
        check_end(end, known)
        deadline = time.monotonic() + self._settle_seconds
        pause = _FIRST_LOOK_SECONDS
        while appends:
            if time.monotonic() > deadline:
                # Not that the database does not serve: only this part of the log has to be waited for.
                raise StoreBusy(
                    f"an append has been under way for {self._settle_seconds:g} s, and may still store events before "
                    f"position {end}: the log cannot be read past it yet. Its process may hang: pg_stat_activity shows "
                    "it; try again"
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK_SECONDS)
            ((now, appends),) = await self._rows(self._sql.still_appending, appends)
            if now < end:
                # The server broke down, and those appends are gone with their positions, which others will get.
                return await self.settle()
        if newest is not None and newest.position > self.newest.position:
            # Behind an event that is stored, and not behind positions that were taken and hold none: when a server
            # breaks down these may be given to others.
            self.newest = newest
            self.settled = newest.position
        return int(end)

    async def _rows(self, statement: str, *parameters: object) -> Sequence[Any]:
        return await self._pool.run(lambda session: session.fetch(statement, *parameters))


def check_end(end: int, known: int) -> None:
    """Raise `JournalLost` for a log that ends before a position at which an event is known to have been."""
    if end < known:
        raise _lost(f"its log ends at position {end}, and has had an event at {known}")


def check_event(event_id: bytes | None, last: Seen) -> None:
    """Raise `JournalLost` for another event than the one that was seen. None: it was truncated since."""
    if event_id is not None and event_id != last.event_id:
        raise _lost(f"another event is at position {last.position} now")


def _lost(how: str) -> JournalLost:
    return JournalLost(
        "the server has lost events that it had stored: it was restored from an older copy, or a standby that lagged "
        f"has taken over ({how}); nothing was read or stored. Restore the newer data, or open a new store to go on "
        "without those events"
    )
