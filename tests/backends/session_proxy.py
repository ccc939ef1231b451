"""SessionProxy: gives each client one session for as long as it stays, as pgbouncer does in session mode."""

from __future__ import annotations

import asyncio
import struct
from types import TracebackType
from typing import Self

_SSL_REQUEST = 80877103
_PROTOCOL = struct.pack("!I", 196608)
_KNOWN = {b"user", b"database", b"application_name", b"client_encoding"}


class SessionProxy:
    """What else than these a client asks for when it connects is `left_out` of what the server hears, without a word
    (pgbouncer's `ignore_startup_parameters`)."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._tasks: set[asyncio.Task[None]] = set()
        self.host, self.port = "127.0.0.1", 0
        self.left_out: set[str] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            packet = await _packet(reader)
            while struct.unpack("!I", packet[:4]) == (_SSL_REQUEST,):
                writer.write(b"N")
                packet = await _packet(reader)
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            try:
                wanted = self._wanted(packet)
                server_writer.write(struct.pack("!I", len(wanted) + 4) + wanted)
                ways = (_pass_on(reader, server_writer), _pass_on(server_reader, writer))
                done, others = await asyncio.wait(
                    [asyncio.ensure_future(way) for way in ways], return_when=asyncio.FIRST_COMPLETED
                )
                for other in others:
                    other.cancel()
                await asyncio.gather(*done, *others, return_exceptions=True)
            finally:
                server_writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    def _wanted(self, packet: bytes) -> bytes:
        words = packet[4:].rstrip(b"\0").split(b"\0")
        named = dict(zip(words[::2], words[1::2], strict=True))
        self.left_out |= {name.decode() for name in named.keys() - _KNOWN}
        kept = (name + b"\0" + value + b"\0" for name, value in named.items() if name in _KNOWN)
        return _PROTOCOL + b"".join(kept) + b"\0"


async def _packet(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    return await reader.readexactly(length - 4)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while some := await reader.read(65536):
        writer.write(some)
        await writer.drain()
