"""FaultProxy: stands between a client and a server, and is every network that a test needs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from types import TracebackType
from typing import Self

from .server import free_port

_CHUNK = 65_536
# Closing with no time to linger sends a reset instead of an orderly end.
_NO_LINGER = struct.pack("ii", 1, 0)


class FaultProxy:
    """Passes bytes on between the clients that connect to `port` and a server; each fault is a setting or a call.

        async with FaultProxy(server.host, server.port) as proxy:
            proxy.lose_reply(to=b"COMMIT")

    It runs in the test's event loop. What has happened is counted, so that a test can show that its fault came.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.host = "127.0.0.1"
        self.port = free_port()
        # Seconds by which each piece is late, in both directions.
        self.latency = 0.0
        # Seconds by which each piece that the server sends is late, beside that.
        self.late_replies = 0.0
        # Pieces of so many bytes, and seconds between two of them.
        self.slice_bytes: int | None = None
        self.slice_seconds = 0.0
        # Every connection is reset once the server has sent it so many bytes.
        self.cut_after: int | None = None
        self.accepted = 0
        self.resets = 0
        self.lost_replies = 0
        self.bytes_from_server = 0
        # What a client sends at once is one, unless it is large.
        self.pieces_from_clients = 0
        self.reply_was_lost = asyncio.Event()
        self._lose_reply_to: bytes | None = None
        self._resets_after_loss = True
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._kept: socket.socket | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        while True:
            try:
                await self.accept()
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                # Another process took it first.
                self.port = free_port()
            else:
                return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        self._give_back()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Faults

    def stall(self) -> None:
        """Be a black hole: connections are made and stay, and nothing comes through until `resume`."""
        self._flows.clear()

    def resume(self) -> None:
        self._flows.set()

    def reset(self) -> None:
        """Reset every connection there is. New ones are served."""
        for link in tuple(self._links):
            self._reset(link)

    def refuse(self) -> None:
        """Refuse new connections, as a server that is not there, until `accept`. Those there are stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            # Nobody listens on it, and nobody else can have it meanwhile.
            self._kept = socket.socket()
            self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._kept.bind((self.host, self.port))

    async def accept(self) -> None:
        """Listen again, on the same port."""
        if self._server is None:
            self._give_back()
            self._server = await asyncio.start_server(self._serve, self.host, self.port)

    def _give_back(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def lose_reply(self, *, to: bytes = b"", reset: bool = True) -> None:
        """Lose the server's reply to the next piece a client sends that holds the bytes `to`: it arrives, and what
        comes back does not. Then that connection is reset, or, with `reset=False`, stays silent."""
        self.reply_was_lost.clear()
        self._lose_reply_to = to
        self._resets_after_loss = reset

    def keep_replies(self) -> None:
        """Lose no reply after all, if nothing was sent yet that `lose_reply` waits for."""
        self._lose_reply_to = None

    # Passing on

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link: _Link | None = None
        try:
            await self._flows.wait()
            link = _Link(writer, *await asyncio.open_connection(*self._target))
            self._links.add(link)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_up(reader, link))
                group.create_task(self._pass_down(link))
        except (OSError, ExceptionGroup):
            # One of the two ends is gone, so the other is to be told.
            pass
        except asyncio.CancelledError:
            # The proxy closes. A cancelled handler would be reported as an error of the server's.
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            if link is not None:
                self._links.discard(link)
                link.server.transport.abort()

    async def _pass_up(self, reader: asyncio.StreamReader, link: _Link) -> None:
        while piece := await reader.read(_CHUNK):
            self.pieces_from_clients += 1
            await self._delay()
            if self._lose_reply_to is not None and self._lose_reply_to in piece:
                self._lose_reply_to = None
                link.loses_reply = True
            await self._write(link.server, piece)
        link.server.write_eof()

    async def _pass_down(self, link: _Link) -> None:
        sent = 0
        while piece := await link.replies.read(_CHUNK):
            self.bytes_from_server += len(piece)
            if link.loses_reply:
                if not link.has_lost:
                    link.has_lost = True
                    self.lost_replies += 1
                    self.reply_was_lost.set()
                if self._resets_after_loss:
                    self._reset(link)
                    return
                continue
            if self.late_replies:
                await asyncio.sleep(self.late_replies)
            await self._delay()
            if self.cut_after is not None and sent + len(piece) > self.cut_after:
                link.client.write(piece[: max(0, self.cut_after - sent)])
                # What is still in the transport's buffer would be lost with the reset.
                await link.client.drain()
                self._reset(link)
                return
            sent += len(piece)
            await self._write(link.client, piece)
        # The server has ended the connection, and both pipes end with it.
        raise ConnectionResetError

    async def _delay(self) -> None:
        if self.latency:
            await asyncio.sleep(self.latency)
        await self._flows.wait()

    async def _write(self, writer: asyncio.StreamWriter, piece: bytes) -> None:
        size = self.slice_bytes or len(piece)
        for start in range(0, len(piece), size):
            writer.write(piece[start : start + size])
            await writer.drain()
            if self.slice_bytes:
                await asyncio.sleep(self.slice_seconds)

    def _reset(self, link: _Link) -> None:
        self.resets += 1
        for writer in (link.client, link.server):
            connection: socket.socket = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            writer.transport.abort()


class _Link:
    """One client's connection and the proxy's own, to the server."""

    def __init__(
        self, client: asyncio.StreamWriter, replies: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        self.client = client
        self.replies = replies
        self.server = server
        self.loses_reply = False
        self.has_lost = False
