"""OpenTransactions: the transactions with SQL of the users' own that are open on a store, and what works for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, Protocol, TypeVar


class _Transaction(Protocol):
    async def rollback(self) -> None: ...


_T = TypeVar("_T")
_Tx = TypeVar("_Tx", bound=_Transaction)


class OpenTransactions(Generic[_Tx]):
    """None of them, and no task, outlives `close`."""

    def __init__(self) -> None:
        self._open: set[_Tx] = set()
        self._tasks: set[asyncio.Future[Any]] = set()

    def add(self, transaction: _Tx) -> None:
        """It has begun."""
        self._open.add(transaction)

    def discard(self, transaction: _Tx) -> None:
        """It has ended."""
        self._open.discard(transaction)

    def own(self, work: Coroutine[Any, Any, _T]) -> asyncio.Future[_T]:
        """Run work, whatever becomes of whoever waits for it."""
        return self.keep(asyncio.ensure_future(work))

    def keep(self, task: asyncio.Future[_T]) -> asyncio.Future[_T]:
        """Wait for a future, too, when it closes."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def begun(self, work: Coroutine[Any, Any, _Tx]) -> _Tx:
        """What work begins. If the caller is cancelled it is rolled back, in the background."""
        beginning = self.own(work)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(self._abandon)
            raise

    async def close(self) -> None:
        """Roll back what is open, and finish what is being committed."""
        while self._open or self._tasks:
            await asyncio.gather(*(transaction.rollback() for transaction in self._open))
            if self._tasks:
                await asyncio.wait(self._tasks)

    def _abandon(self, beginning: asyncio.Future[_Tx]) -> None:
        if not beginning.cancelled() and beginning.exception() is None:
            self.own(beginning.result().rollback())
