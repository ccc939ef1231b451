"""PoolingProxy: pools connections by transaction, as pgbouncer does, and changes sessions whenever it may."""

from __future__ import annotations

import asyncio
import itertools
import struct
from types import TracebackType

from tests.servers.front import Front

_SSL_REQUEST = 80877103
_STARTUP = 196608
# What pgbouncer passes on; anything else in the request to connect it refuses.
_KNOWN = {b"user", b"database", b"application_name", b"client_encoding"}


class PoolingProxy(Front):
    """Several clients share `sessions` sessions of the server. Each transaction gets the one that was idle longest.

    `changes` counts how often a client got another session than the time before.
    """

    def __init__(self, host: str, port: int, *, sessions: int = 3) -> None:
        super().__init__(host, port)
        self._size = sessions
        self._idle: asyncio.Queue[_Session] = asyncio.Queue()
        self._sessions: list[_Session] = []
        self._greeting = b""
        self._packet = b""
        self._keys = itertools.count(1_000_000)
        self._starting = asyncio.Lock()
        self.changes = 0
        self.refused: list[bytes] = []

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await super().__aexit__(exc_type, exc, traceback)
        for session in self._sessions:
            session.writer.transport.abort()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await self._greet(reader, writer):
            await self._relay(reader, writer)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            packet = await reader.readexactly(length - 4)
            (code,) = struct.unpack("!I", packet[:4])
            if code == _STARTUP:
                break
            if code != _SSL_REQUEST:
                return False
            writer.write(b"N")
        words = packet[4:].rstrip(b"\0").split(b"\0")
        unknown = sorted(set(words[::2]) - _KNOWN)
        if unknown:
            self.refused += unknown
            fields = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: " + unknown[0] + b"\0\0"
            writer.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
            await writer.drain()
            return False
        async with self._starting:
            if not self._sessions:
                await self._start(packet)
        key = struct.pack("!cIII", b"K", 12, next(self._keys), 7)
        writer.write(self._greeting + key + b"Z\0\0\0\x05I")
        return True

    async def _start(self, packet: bytes) -> None:
        self._packet = packet
        for _ in range(self._size):
            await self._start_one()

    async def _start_one(self) -> None:
        reader, writer = await asyncio.open_connection(*self._target)
        try:
            self._greeting = await self._greeted(reader, writer)
        except BaseException:
            # The proxy may be closed meanwhile.
            writer.transport.abort()
            raise
        self._sessions.append(_Session(reader, writer))
        self._idle.put_nowait(self._sessions[-1])

    async def _greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(struct.pack("!I", len(self._packet) + 4) + self._packet)
        greeting = b""
        while (message := await _message(reader))[:1] != b"Z":
            # The process id and the key for cancelling are the proxy's own.
            greeting += b"" if message[:1] == b"K" else message
        return greeting

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        last: _Session | None = None
        asking = asyncio.ensure_future(_message(reader))
        try:
            while (message := await asking)[:1] != b"X":
                session = await self._idle.get()
                self.changes += last is not None and session is not last
                last = session
                asking = await self._transact(session, message, reader, writer)
        finally:
            asking.cancel()

    async def _transact(
        self, session: _Session, message: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> asyncio.Future[bytes]:
        """Both ways, until the session says that it is in no transaction. Returns what the client says next."""
        session.writer.write(message)
        asking = asyncio.ensure_future(_message(reader))
        answering = asyncio.ensure_future(self._answer(session, writer))
        is_idle = False
        try:
            while not answering.done():
                await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                if asking.done() and not answering.done():
                    if asking.result()[:1] == b"X":
                        raise ConnectionAbortedError
                    session.writer.write(asking.result())
                    asking = asyncio.ensure_future(_message(reader))
            answering.result()
            is_idle = True
            return asking
        finally:
            if is_idle:
                self._idle.put_nowait(session)
            else:
                # The client is gone in the middle of a transaction, or the server has ended the session: nobody else
                # may have it.
                asking.cancel()
                answering.cancel()
                session.writer.transport.abort()
                self._sessions.remove(session)
                await self._start_one()

    async def _answer(self, session: _Session, writer: asyncio.StreamWriter) -> None:
        while True:
            answer = await _message(session.reader)
            writer.write(answer)
            if answer[:1] == b"Z" and answer[5:6] == b"I":
                await writer.drain()
                return


class _Session:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!I", head[1:])
    return head + await reader.readexactly(length - 4)
