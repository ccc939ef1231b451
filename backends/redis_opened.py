"""OpenedRedis: a journal that is open, with the connections that read it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from backends.redis_connection import Argument, Script
from backends.redis_journal import RedisJournal
from backends.redis_pool import RedisPool
from backends.redis_tenant import RedisTenant
from backends.redis_url import RedisTarget
from backends.tasks import Tasks
from eventstore.errors import StoreClosed


class OpenedRedis:
    """What a backend has while it is open. It belongs to one process and one event loop."""

    def __init__(self, target: RedisTarget, whose: RedisTenant) -> None:
        self._target = target
        self._whose = whose
        self.tenant = whose.tenant
        self._tasks = Tasks()
        self._pool: RedisPool | None = None
        self._journal: RedisJournal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    def open_reader(self, journal: RedisJournal) -> None:
        """Make reading possible; connections are made when they are first needed."""
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._pool = RedisPool(self._target)
        self._journal = journal

    async def close_reader(self) -> None:
        """Finish what is being read, and close the connections."""
        await self._tasks.join()
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    def check_open(self) -> None:
        """Raise `StoreClosed` unless the store is open, in this process and this event loop."""
        self.opened_journal()
        if asyncio.get_running_loop() is not self._loop:
            raise StoreClosed("this store was opened in another event loop: open one of its own in this one")

    def opened_journal(self) -> RedisJournal:
        """The journal, for whatever event loop. Raises `StoreClosed` unless the store is open, in this process."""
        if self._pool is None or self._journal is None:
            raise StoreClosed("the store is not open: use it inside `async with EventStore.open(url) as store`")
        if os.getpid() != self._pid:
            raise StoreClosed("this store was opened before a fork: open one of its own in the child process")
        return self._journal

    @property
    def _opened(self) -> RedisJournal:
        self.check_open()
        return self.opened_journal()

    async def _run(self, script: Script, arguments: Sequence[Argument]) -> Any:
        journal = self._opened
        if self._pool is None:
            raise StoreClosed("the store is not open")
        return await self._tasks.finish(self._pool.run(script, journal.key, [*journal.arguments, *arguments]))
