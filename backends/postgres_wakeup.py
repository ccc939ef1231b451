"""PostgresWakeUp: tells the readers of other processes that there is something new, and hears it from them.

It is a hint. Who waits looks again after his own time-out, so a notification that is lost, or a proxy that passes none
on, makes readers later and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from backends.postgres_driver import DRIVER_ERRORS
from backends.postgres_pool import PostgresPool
from backends.postgres_session import PostgresSession
from backends.waiters import Waiters
from eventstore.errors import EventStoreError

logger = logging.getLogger(__name__)

# Notifying takes a lock that all databases of the server share, so a busy writer does not notify for each commit. Where
# nobody listened the last time, it asks again less often: who begins to listen looks by himself first.
_NOTIFY_SECONDS = 0.02
_UNHEARD_SECONDS = 0.2
# A connection that is only listened on says nothing when the network has gone: it is asked.
_PING_SECONDS = 30.0
_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 10.0

# Who listens has a shared lock. A notification is a transaction that writes, and would wait for the disk if that were
# not left out: nothing is lost with it.
_LISTENS = "SELECT pg_advisory_lock_shared($1)"
_NOTIFY = """
SELECT pg_notify($1, ''), set_config('synchronous_commit', 'off', true) WHERE NOT pg_try_advisory_xact_lock($2)
"""


class PostgresWakeUp:
    """One listening connection, made when somebody first waits, and made again whenever it is lost."""

    def __init__(
        self,
        channel: str,
        lock: int,
        pool: PostgresPool,
        connect: Callable[[], Awaitable[PostgresSession]],
        *,
        listens: bool,
    ) -> None:
        self._channel = channel
        self._lock = lock
        self._pause_seconds = _NOTIFY_SECONDS
        self._pool = pool
        self._connect = connect
        self._listens = listens
        self._waiters = Waiters()
        self._listener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._notification: asyncio.Task[None] | None = None
        self._is_closed = asyncio.Event()

    async def wait(self, timeout: float) -> None:
        """Return when something new may exist, at the latest after `timeout` seconds."""
        if self._listens and self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        await self._waiters.wait(timeout)

    def wake(self) -> None:
        """Wake those who wait here."""
        self._waiters.wake()

    def notify_soon(self) -> None:
        """Tell the other processes, once for all that is stored in the meantime."""
        if self._timer is None and self._listens and not self._is_closed.is_set():
            self._timer = asyncio.get_running_loop().call_later(self._pause_seconds, self._notify)

    async def close(self) -> None:
        """Release the waiters, and end the listener."""
        self._is_closed.set()
        self.wake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        tasks = [task for task in (self._listener, self._notification) if task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _notify(self) -> None:
        self._timer = None
        if self._notification is None or self._notification.done():
            self._notification = asyncio.get_running_loop().create_task(self._send())
        else:
            self.notify_soon()

    async def _send(self) -> None:
        try:
            is_heard = await self._pool.run(lambda session: session.fetch(_NOTIFY, self._channel, self._lock))
            self._pause_seconds = _NOTIFY_SECONDS if is_heard else _UNHEARD_SECONDS
        except EventStoreError as error:
            logger.debug("no notification was sent: %s", error)

    async def _listen(self) -> None:
        pause = _FIRST_RETRY_SECONDS
        while not self._is_closed.is_set():
            try:
                session = await self._connect()
            except EventStoreError as error:
                logger.warning("not listening for new events, trying again: %s", error)
            else:
                pause = _FIRST_RETRY_SECONDS
                await self._listen_on(session)
            pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
            await self._sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (spreads reconnects, hides nothing)

    async def _listen_on(self, session: PostgresSession) -> None:
        """Listen until the connection is lost or the store is closed."""
        is_lost = asyncio.Event()
        session.on_end(is_lost.set)
        try:
            await session.fetch(_LISTENS, self._lock)
            await session.listen(self._channel, self.wake)
            # Whatever was stored while nobody listened was not heard of.
            self.wake()
            while session.is_usable and not self._is_closed.is_set():
                await self._sleep(_PING_SECONDS, is_lost)
                if session.is_usable and not self._is_closed.is_set():
                    await session.fetch("SELECT 1")
        except DRIVER_ERRORS as error:
            logger.warning("the connection that listens for new events was lost: %s", error)
        finally:
            await session.close()

    async def _sleep(self, seconds: float, *events: asyncio.Event) -> None:
        """Sleep, until one of the events or the end of the store."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self._is_closed, *events)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
