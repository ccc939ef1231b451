"""PostgresPool: the few sessions that everything but appending shares."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from backends.postgres_driver import DRIVER_ERRORS
from backends.postgres_errors import is_lost, translated
from backends.postgres_session import PLANNING, PostgresSession
from backends.tasks import Tasks
from eventstore.errors import ConnectionsBusy
from eventstore.postgres_url import PostgresTarget

_T = TypeVar("_T")

_READ_TRIES = 3


class PostgresPool:
    """At most `pool_size` sessions; who finds none free waits for one, with a deadline.

    Work runs to its end even if its caller is cancelled, because a statement cannot be cancelled without a second
    connection. asyncpg's own pool does neither, and asks the server for a reset after every use.
    """

    def __init__(self, target: PostgresTarget, connect: Callable[[], Awaitable[PostgresSession]]) -> None:
        self._target = target
        self._connect = connect
        self._free: list[PostgresSession] = []
        self._places = asyncio.Semaphore(target.pool_size)
        self._taken = 0
        self._tasks = Tasks()

    async def run(
        self,
        work: Callable[[PostgresSession], Coroutine[Any, Any, _T]],
        *,
        writing: bool = False,
        planning: Mapping[str, str] = PLANNING,
    ) -> _T:
        """Do some work on a session that has its statements planned so. Raises this package's errors.

        Work that only reads is done again if its session turns out to be gone: the server may have been restarted since
        it was used last, or may end all sessions right now because one of them crashed.
        """
        return await self._tasks.finish(self._run(work, writing=writing, planning=planning))

    async def close(self) -> None:
        """Let the work that is under way end, and close every session."""
        await self._tasks.join()
        free, self._free = self._free, []
        await asyncio.gather(*(session.close() for session in free))

    async def _run(
        self, work: Callable[[PostgresSession], Awaitable[_T]], *, writing: bool, planning: Mapping[str, str]
    ) -> _T:
        async with self._place():
            for tries_left in reversed(range(1 if writing else _READ_TRIES)):
                session = await self._session(planning)
                try:
                    await session.plan(planning)
                    return await work(session)
                except DRIVER_ERRORS as error:
                    if not tries_left or not is_lost(error) or isinstance(error, TimeoutError):
                        raise translated(error, writing=writing) from error
                finally:
                    if session.is_usable:
                        self._free.append(session)
                    else:
                        session.cut()
        raise AssertionError("unreachable: the last try returns or raises")

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[None, None]:
        seconds = self._target.command_timeout
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError as error:
            raise ConnectionsBusy(
                f"all {self._target.pool_size} connections were in use for {seconds:g} s: try again, or give the URL a "
                "larger pool_size"
            ) from error
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._places.release()

    async def _session(self, planning: Mapping[str, str]) -> PostgresSession:
        self._free = [session for session in self._free if session.is_usable]
        for session in reversed(self._free):
            if session.planning is planning or session.is_pooled:
                self._free.remove(session)
                return session
        # While there is room each way of planning gets sessions of its own: to change one's takes a trip, and another
        # to change it back.
        if not self._free or self._taken + len(self._free) <= self._target.pool_size:
            return await self._connect()
        return self._free.pop()
