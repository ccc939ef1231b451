"""RedisListener: hears that other stores have appended, so that subscribers need not wait for their next poll."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from redis import exceptions as driver

from backends.redis_connection import RedisConnection, ReplyLost
from backends.redis_url import RedisTarget
from eventstore.errors import EventStoreError

logger = logging.getLogger(__name__)

# The server is asked so often whether it is there. One that has said nothing for so long is not.
_QUIET_SECONDS = 15.0
_SILENT_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 5.0


class RedisListener:
    """A connection of its own, and the task that reads it. What it says is a hint: polling is the truth, so a listener
    that has lost its connection, or may not listen, costs time and nothing else.

    `on_news` is called with the position of an event that has been stored. What is told of another journal than the one
    of this identity is passed over: all databases of a server share their channels, and one of another database would
    have whoever waits look for what is not there, again and again.
    """

    def __init__(self, target: RedisTarget, identity: bytes, on_news: Callable[[int], None]) -> None:
        self._target = target
        self._identity = identity
        self._channel = target.key + b":news"
        self._on_news = on_news
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen from now on. Starting twice does nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._listen(), name="eventstore-redis-listener")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_SECONDS
        while True:
            connection = RedisConnection(self._target)
            try:
                async with asyncio.timeout(_SILENT_SECONDS) as silence, _asked_again(connection):
                    await connection.send(b"SUBSCRIBE", self._channel)
                    while True:
                        message: Sequence[bytes] = await connection.receive()
                        silence.reschedule(loop.time() + _SILENT_SECONDS)
                        pause = _FIRST_PAUSE_SECONDS
                        if message[0] == b"message":
                            position, _, identity = message[2].partition(b" ")
                            if identity == self._identity:
                                self._on_news(int(position))
            except driver.NoPermissionError:
                logger.info("this user may not subscribe to %r: new events are found by polling", self._channel)
                return
            except (EventStoreError, ReplyLost, driver.RedisError, OSError, ValueError, TypeError, IndexError) as error:
                logger.debug("the listener's connection is lost, and made anew in %g s: %s", pause, error)
            finally:
                with suppress(driver.RedisError, OSError):
                    await connection.close()
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


@asynccontextmanager
async def _asked_again(connection: RedisConnection) -> AsyncGenerator[None, None]:
    """Ask the server now and then whether it is still there, so that it is never silent for long."""

    async def ask() -> None:
        # A connection that cannot be written to is one that says nothing more, either.
        with suppress(EventStoreError, driver.RedisError, OSError):
            while True:
                await asyncio.sleep(_QUIET_SECONDS)
                await connection.send(b"PING")

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.wait([asking])
