"""SessionProxy: gives each client one session for as long as it stays, as pgbouncer does in session mode."""

from __future__ import annotations

import asyncio
import struct

from tests.servers.front import Front

_SSL_REQUEST = 80877103
_PROTOCOL = struct.pack("!I", 196608)
_KNOWN = {b"user", b"database", b"application_name", b"client_encoding"}


class SessionProxy(Front):
    """What else than these a client asks for when it connects is `left_out` of what the server hears, without a word
    (pgbouncer's `ignore_startup_parameters`)."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.left_out: set[str] = set()

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet = await _packet(reader)
        while struct.unpack("!I", packet[:4]) == (_SSL_REQUEST,):
            writer.write(b"N")
            packet = await _packet(reader)
        wanted = self._wanted(packet)
        await self.relay(reader, writer, first=struct.pack("!I", len(wanted) + 4) + wanted)

    def _wanted(self, packet: bytes) -> bytes:
        words = packet[4:].rstrip(b"\0").split(b"\0")
        named = dict(zip(words[::2], words[1::2], strict=True))
        self.left_out |= {name.decode() for name in named.keys() - _KNOWN}
        kept = (name + b"\0" + value + b"\0" for name, value in named.items() if name in _KNOWN)
        return _PROTOCOL + b"".join(kept) + b"\0"


async def _packet(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    return await reader.readexactly(length - 4)
