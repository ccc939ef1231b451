"""Leases of the contract's tests: each is made, renewed and ended in the event loop of another thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from eventstore.backend import Backend, Claim, Holder, Lease, Owner
from eventstore.codec import new_event_id
from eventstore.errors import StoreClosed

_T = TypeVar("_T")

_SECONDS = 20.0
"""No single call takes longer than this."""


class Leases:
    """Owners with leases. `close` ends those that are not ended yet, and the thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="leases", daemon=True)
        self._thread.start()
        self._running: list[HeldLease] = []

    async def make(self, backend: Backend, owner: Owner) -> HeldLease:
        """A lease that has not begun."""

        async def made() -> Lease:
            return backend.lease(owner)

        return HeldLease(owner, await self.call(made), self)

    async def begin(
        self, backend: Backend, name: str = "alice", *, seconds: float = 30.0, report: bytes = b"{}"
    ) -> HeldLease:
        """A new owner with a lease that runs."""
        held = await self.make(backend, Owner(new_event_id(), name, seconds))
        await held.renew(report)
        return held

    async def call(self, make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine in the other thread's loop."""
        async with asyncio.timeout(_SECONDS):
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), self._loop))

    async def close(self) -> None:
        try:
            for held in list(self._running):
                # A lease may need its store, which the test has closed then.
                with contextlib.suppress(StoreClosed):
                    await held.end()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join, _SECONDS)
            self._loop.close()

    def begun(self, held: HeldLease) -> None:
        if held not in self._running:
            self._running.append(held)

    def ended(self, held: HeldLease) -> None:
        if held in self._running:
            self._running.remove(held)


class HeldLease:
    def __init__(self, owner: Owner, lease: Lease, leases: Leases) -> None:
        self.owner = owner
        self._lease = lease
        self._leases = leases

    @property
    def id(self) -> bytes:
        return self.owner.id

    async def renew(self, report: bytes = b"{}") -> None:
        self._leases.begun(self)
        await self._leases.call(lambda: self._lease.renew(report))

    async def end(self) -> None:
        await self._leases.call(self._lease.end)
        self._leases.ended(self)

    async def claim(self, backend: Backend, stream_id: str, *, lapsed: int | None = None) -> int | Holder:
        (answer,) = await backend.claim([Claim(stream_id, self.id, lapsed)])
        return answer

    async def granted(self, backend: Backend, stream_id: str, *, lapsed: int | None = None) -> int:
        """The epoch of a claim that must not be refused."""
        answer = await self.claim(backend, stream_id, lapsed=lapsed)
        assert isinstance(answer, int), f"{stream_id!r} is held: {answer}"
        return answer
