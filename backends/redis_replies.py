"""RedisReplies: what the server says on one connection, each reply handed over at once by whoever reads the socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis import exceptions as driver

OnReply = Callable[[Any, BaseException | None], None]
"""Takes a reply, or what has become of the connection. An error that the server replied is a reply like any other."""

_NOT_YET = object()


class RedisReplies(asyncio.Protocol):
    """The protocol of a connection that redis-py has made. With its streams, a reply would wake a task a turn of the
    event loop later, and the server would do nothing until that has sent the next command.

    `error_of` makes an exception of what the server says as an error.
    """

    def __init__(self, error_of: Callable[[str], Exception]) -> None:
        self._reader: Any = cast("Any", hiredis).Reader(
            protocolError=driver.InvalidResponse, replyError=error_of, notEnoughData=_NOT_YET
        )
        self._transport: Any = None
        # What came while nobody waited for it, as news do.
        self._kept: deque[Any] = deque()
        self._on_reply: OnReply | None = None
        self._lost: BaseException | None = None

    def take_over(self, transport: Any) -> None:
        """Be given what comes from now on."""
        self._transport = transport
        transport.set_protocol(self)

    @property
    def lost(self) -> BaseException | None:
        """What the connection ended with, if it has ended."""
        return self._lost

    @property
    def is_stale(self) -> bool:
        """Whether a command had better go by another connection: it has ended, or something came unasked for."""
        return self._lost is not None or bool(self._kept) or bool(self._reader.has_data())

    def next(self, on_reply: OnReply) -> None:
        """Have the next reply handed over: at once if it is there, otherwise while the socket is read."""
        if self._kept:
            on_reply(self._kept.popleft(), None)
        elif self._lost is not None:
            on_reply(None, self._lost)
        else:
            self._on_reply = on_reply

    def forget(self) -> None:
        """Hand nothing over any more."""
        self._on_reply = None

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets(False)) is not _NOT_YET:
                on_reply, self._on_reply = self._on_reply, None
                if on_reply is None:
                    self._kept.append(reply)
                else:
                    on_reply(reply, None)
        except driver.InvalidResponse as error:
            self._transport.abort()
            self._end(error)

    def eof_received(self) -> None:
        self._end(driver.ConnectionError("Connection closed by server."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or driver.ConnectionError("the connection was closed"))

    def _end(self, error: BaseException) -> None:
        if self._lost is None:
            self._lost = error
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(None, self._lost)
