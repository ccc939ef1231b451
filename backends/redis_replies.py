"""RedisReplies: what the server says on one connection, each reply handed over at once by whoever reads the socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis import exceptions as driver

from backends.server_forks import OPEN_CONNECTIONS

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
        self._stream: Any = None
        # What came while nobody waited for it, as news do.
        self._kept: deque[Any] = deque()
        self._waiting: deque[OnReply] = deque()
        self._lost: BaseException | None = None

    def take_over(self, stream: asyncio.StreamWriter) -> None:
        """Be given what comes from now on, instead of the stream's reader."""
        # Kept as long as the socket is read, whoever lets go of the connection: without its stream it would be closed,
        # and in the child of a fork it is the parent's.
        self._stream = stream
        stream.transport.set_protocol(self)
        OPEN_CONNECTIONS.opened(self)

    @property
    def transport(self) -> asyncio.WriteTransport | None:
        return None if self._stream is None else cast("asyncio.WriteTransport", self._stream.transport)

    def cut_off(self) -> None:
        self._lost = self._lost or driver.ConnectionError(
            "it is the connection of the process that this was forked from"
        )

    def send(self, command: bytes) -> None:
        self._stream.transport.write(command)

    def close(self) -> None:
        """Whoever waits is told that no reply comes."""
        # At once: what was not sent yet would keep the connection open, for as long as the server does not read.
        self._stream.transport.abort()
        self.end(driver.ConnectionError("the connection was closed"))

    @property
    def lost(self) -> BaseException | None:
        """What the connection ended with, if it has ended."""
        return self._lost

    @property
    def is_stale(self) -> bool:
        """Whether a command had better go by another connection: it has ended, or something came unasked for."""
        return self._lost is not None or bool(self._kept) or (not self._waiting and bool(self._reader.has_data()))

    def next(self, on_reply: OnReply) -> None:
        """Have the next reply that nobody waits for yet handed over: at once if it is there, otherwise while the socket
        is read."""
        if self._kept:
            on_reply(self._kept.popleft(), None)
        elif self._lost is not None:
            on_reply(None, self._lost)
        else:
            self._waiting.append(on_reply)

    def end(self, error: BaseException) -> None:
        """Tell everybody who waits that no reply comes any more."""
        if self._lost is None:
            self._lost = error
        while self._waiting:
            self._waiting.popleft()(None, self._lost)

    def data_received(self, data: bytes) -> None:
        if self._lost is not None:
            return
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets(False)) is not _NOT_YET:
                if self._waiting:
                    self._waiting.popleft()(reply, None)
                else:
                    self._kept.append(reply)
        except driver.InvalidResponse as error:
            self._stream.transport.abort()
            self.end(error)

    def eof_received(self) -> None:
        self.end(driver.ConnectionError("Connection closed by server."))

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(exc or driver.ConnectionError("the connection was closed"))
