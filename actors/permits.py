"""Permits: so many actors recover at once, and nobody queues up for a database that does not serve."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from eventstore.calls.circuit_breaker import CircuitBreaker


class Permits:
    """Entered with a permit, or with `CircuitOpen` if all are taken and the breaker is open.

    Each of those that have one may hold it for as long as a call to a silent database takes, so whoever waited for
    them would learn much later what is known already. They are the probes; the others are told at once.
    """

    def __init__(self, count: int, breaker: CircuitBreaker) -> None:
        self._free = count
        self._breaker = breaker
        self._waiting: deque[asyncio.Future[None]] = deque()
        breaker.on_change.append(self._on_breaker)

    def close(self) -> None:
        """The breaker lives longer than whoever asks here."""
        self._breaker.on_change.remove(self._on_breaker)

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        if not self._breaker.is_closed:
            raise self._breaker.error()
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(permit)
        try:
            await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled() and permit.exception() is None:
                # It came too late for this one.
                self._give_back()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        while self._waiting:
            permit = self._waiting.popleft()
            if not permit.done():
                permit.set_result(None)
                return
        self._free += 1

    def _on_breaker(self) -> None:
        if self._breaker.is_closed:
            return
        waiting, self._waiting = self._waiting, deque()
        for permit in waiting:
            if not permit.done():
                permit.set_exception(self._breaker.error())
