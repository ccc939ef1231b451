"""LeaseKeeper: renews a process's lease in a thread of its own, whatever keeps the event loop busy."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from eventstore.backend import Lease
from eventstore.calls.finishing import thread_ended
from eventstore.errors import LeaseLost

logger = logging.getLogger(__name__)

# Here the lease ends a little earlier than there: clocks do not run at quite the same speed.
_OWN_SHARE = 0.9

# Renewed so often that two may be lost.
_RENEWALS = 3
_RETRIES = 15

_END_SECONDS = 2.0


class LeaseKeeper:
    """Whether the lease runs is told by this machine's monotonic clock, from the moment each renewal was asked for.

    So it has ended here before it ends at the database, also when the whole process was stopped meanwhile.
    """

    def __init__(self, lease: Lease, seconds: float, report: Callable[[], bytes]) -> None:
        self.ends_at = 0.0
        """When it runs out, by `time.monotonic()`."""
        self.number = 0
        """How many leases there were. One that had run out before it was renewed is a new one, and what was claimed
        under the old one may have another owner."""
        self._lease = lease
        self._seconds = seconds
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._waiters: set[asyncio.Future[None]] = set()
        self._problem = "it was not answered yet"
        self._stopping = threading.Event()
        self._wake: Callable[[], object] = lambda: None
        # A daemon: a program that ends without closing its actors is not held up.
        self._thread = threading.Thread(target=self._run, name="eventstore-lease", daemon=True)
        self._thread.start()

    @property
    def is_held(self) -> bool:
        """Whether the lease runs."""
        return time.monotonic() < self.ends_at

    async def held(self) -> None:
        """Return once the lease runs. Raises `LeaseLost` when it does not for as long as a lease lasts."""
        deadline = time.monotonic() + self._seconds
        while not self.is_held:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiters.add(waiter)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await waiter
            except TimeoutError as error:
                raise LeaseLost(
                    f"this process has had no lease for {self._seconds:g} s, so it owns nothing ({self._problem}); "
                    "nothing was done, try again"
                ) from error
            finally:
                self._waiters.discard(waiter)

    async def close(self) -> None:
        """End the lease, which lets others claim what was owned, and the thread."""
        self._stopping.set()
        with suppress(RuntimeError):  # The thread's loop may have been closed just now.
            self._wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds + _END_SECONDS):
                await thread_ended(self._thread)
        self.ends_at = 0.0

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except Exception:
            logger.exception("the lease is no longer renewed: this process will own nothing")

    async def _keep(self) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._wake = lambda: loop.call_soon_threadsafe(stop.set)
        if self._stopping.is_set():
            stop.set()
        try:
            while not stop.is_set():
                pause = await self._renew()
                try:
                    async with asyncio.timeout(pause):
                        await stop.wait()
                except TimeoutError:
                    pass
        finally:
            self._wake = lambda: None
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._lease.end()
        except Exception as error:
            logger.warning("the lease could not be ended, it runs out by itself: %s", error)

    async def _renew(self) -> float:
        """Renew the lease once. Returns the seconds until the next time."""
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                await self._lease.renew(self._report())
        except Exception as error:
            # Whatever it is, such as an OSError when there are no file descriptors left: the next time may go well.
            self._problem = f"{type(error).__name__}: {error}"
            logger.warning("the lease was not renewed: %s", self._problem)
            return self._seconds / _RETRIES
        if time.monotonic() >= self.ends_at:
            # First, so that nobody sees the old number with the new end.
            self.number += 1
        self.ends_at = asked_at + self._seconds * _OWN_SHARE
        self._loop.call_soon_threadsafe(self._on_renewed)
        return self._seconds / _RENEWALS

    def _on_renewed(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
