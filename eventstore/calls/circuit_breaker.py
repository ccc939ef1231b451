"""CircuitBreaker: while the database does not serve, calls are refused at once instead of waiting for it one by one."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from eventstore.errors import (
    BackendUnavailable,
    CircuitOpen,
    ConnectionsBusy,
    EventStoreError,
    LeaseLost,
    OutcomeUnknown,
    StorageFull,
    StoreBusy,
)

logger = logging.getLogger(__name__)

# So many failures in a row open it.
FAILURES = 5

# Open, it lets a call pass after the first pause, and the next one after twice as long, up to the longest.
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0

# Errors of a database that serves: others go on beside them.
_SERVING = (StoreBusy, StorageFull, LeaseLost)

_P = ParamSpec("_P")
_T = TypeVar("_T")


class CircuitBreaker:
    """One for each store. Closed, everything passes; open, only a probe does, and what the database answers closes it.

    A probe is not waited for: if none has answered by the end of the pause, one more may go. So one that hangs, or
    whose caller was cancelled, holds nobody up.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_closed = True
        self.on_change: list[Callable[[], None]] = []
        """Called after it has opened or closed."""
        self._clock = clock
        self._failures = 0
        self._since = 0.0
        self._last = ""
        self._pause = FIRST_PAUSE_SECONDS
        self._next_probe = 0.0

    async def call(self, function: Callable[_P, Awaitable[_T]], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call the database, and learn from what comes of it. Raises `CircuitOpen` instead while that is no use."""
        if not self.is_closed and not self.admits():
            raise self.error()
        try:
            result = await function(*args, **kwargs)
        except EventStoreError as error:
            self.failed(error)
            raise
        if self._failures:
            self.answered()
        return result

    def refusal(self) -> CircuitOpen | None:
        """What a call would be refused with now; None also where it would be the probe."""
        if self.is_closed or self._clock() >= self._next_probe:
            return None
        return self.error()

    def admits(self) -> bool:
        """Whether a call may go now. If it is open, that call is the probe, and the next one may go after a pause."""
        if self.is_closed:
            return True
        now = self._clock()
        if now < self._next_probe:
            return False
        self._next_probe = now + _jittered(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        return True

    def error(self) -> CircuitOpen:
        """What a call is refused with while it is open."""
        now = self._clock()
        retry_after = max(0.0, self._next_probe - now)
        return CircuitOpen(
            f"nothing was done: the database has not served for {now - self._since:.1f} s ({self._last}); "
            f"it is tried again in {retry_after:.1f} s",
            retry_after=retry_after,
        )

    def answered(self) -> None:
        """The database has answered a call."""
        self._failures = 0
        if not self.is_closed:
            self.is_closed = True
            logger.info("the database serves again, after %.1f s", self._clock() - self._since)
            self._changed()

    def failed(self, error: EventStoreError) -> None:
        """A call has failed: count it, unless the error comes of a database that serves."""
        if isinstance(error, ConnectionsBusy):
            # The database was not asked, so nothing was learned of it.
            return
        if not isinstance(error, (BackendUnavailable, OutcomeUnknown)) or isinstance(error, _SERVING):
            self.answered()
            return
        self._count(error)
        if self._failures >= FAILURES:
            self._open()

    def give_up(self, error: EventStoreError) -> None:
        """One call has failed for so long that the others need not try for themselves."""
        self._count(error)
        self._open()

    def _count(self, error: EventStoreError) -> None:
        # Only the text: the error holds everything that its traceback goes through.
        self._last = f"{type(error).__name__}: {error}"
        if self._failures == 0:
            self._since = self._clock()
        self._failures += 1

    def _open(self) -> None:
        if not self.is_closed:
            return
        self.is_closed = False
        self._pause = FIRST_PAUSE_SECONDS
        self._next_probe = self._clock() + _jittered(self._pause)
        logger.warning("the database does not serve, calls are refused until it does: %s", self._last)
        self._changed()

    def _changed(self) -> None:
        for callback in self.on_change:
            callback()


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  (spreads the probes of many processes, hides nothing)
