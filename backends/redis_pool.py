"""RedisPool: the few connections that all reads share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from redis import exceptions as driver

from backends.redis_connection import Argument, RedisConnection, ReplyLost, Script, translated
from backends.redis_url import RedisTarget
from eventstore.errors import ConnectionsBusy

_T = TypeVar("_T")


class RedisPool:
    """At most `pool_size` connections, made when they are needed. Who finds none free waits, with a deadline."""

    def __init__(self, target: RedisTarget) -> None:
        self._target = target
        self._slots = asyncio.Semaphore(target.pool_size)
        self._free: list[RedisConnection] = []

    async def run(self, script: Script, key: bytes, arguments: Sequence[Argument]) -> Any:
        """Run a script that only reads. Raises this package's errors."""
        seconds = self._target.command_timeout
        try:
            async with asyncio.timeout(seconds):
                await self._slots.acquire()
        except TimeoutError as error:
            raise ConnectionsBusy(
                f"no reading connection was free for {seconds:g} s: too many reads at once (pool_size is "
                f"{self._target.pool_size}); try again"
            ) from error
        connection = self._free.pop() if self._free else RedisConnection(self._target)
        try:
            return await connection.run(script, key, arguments)
        except (ReplyLost, driver.RedisError) as error:
            raise translated(error, writing=False) from error
        finally:
            # One that failed is closed by now, and connects again when it is used.
            self._free.append(connection)
            self._slots.release()

    async def close(self) -> None:
        """Close the connections. No command may be under way."""
        while self._free:
            await self._free.pop().close()
