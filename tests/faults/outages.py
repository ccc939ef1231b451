"""Outages: the ways in which a database goes away and comes back."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from tests.backends.postgres_help import via, with_parameters
from tests.servers.proxy import FaultProxy
from tests.servers.server import Server

# No call waits longer than this for a database that says nothing.
CALL_SECONDS = 0.5
_LIMITS = {"command_timeout": CALL_SECONDS, "connect_timeout": CALL_SECONDS}


class Outage:
    """A database, reached by the store under `url` and by everybody else under `true_url`."""

    def __init__(self, url: str, true_url: str) -> None:
        self.url = url
        self.true_url = true_url

    async def begin(self, losing: bytes = b"faults.deposited") -> None:
        """A network begins with an append that holds these bytes: it is stored, and nobody hears of it."""
        raise NotImplementedError

    async def end(self) -> None:
        """Returns when it serves again."""
        raise NotImplementedError

    async def is_on(self) -> bool:
        """Whether the database is away, as a stranger sees it who wants to talk to it."""
        parts = urlsplit(self.url)
        try:
            async with asyncio.timeout(0.2):
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                try:
                    # A question that both servers answer: Postgres takes it for an offer of TLS.
                    writer.write(b"\0\0\0\x08\x04\xd2\x16\x2f" if parts.scheme == "postgresql" else b"PING\r\n")
                    return not await reader.read(1)
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return True


class OfServer(Outage):
    """The server is stopped, or killed, and started again on the same data."""

    def __init__(self, server: Server, url: str, *, is_killed: bool) -> None:
        limited = with_parameters(url, **_LIMITS)
        super().__init__(limited, url)
        self._server = server
        self._is_killed = is_killed

    async def begin(self, losing: bytes = b"") -> None:
        if self._is_killed:
            self._server.crash()
        else:
            self._server.stop()

    async def end(self) -> None:
        # Here, because it ends with the thread that starts it.
        self._server.start()


class OfNetwork(Outage):
    """The server refuses connections, or does not say anything any more."""

    def __init__(self, proxy: FaultProxy, url: str, *, is_silent: bool) -> None:
        super().__init__(via(proxy, url, **_LIMITS), url)
        self.proxy = proxy
        self._is_silent = is_silent

    async def begin(self, losing: bytes = b"faults.deposited") -> None:
        self.proxy.lose_reply(to=losing, reset=not self._is_silent)
        async with asyncio.timeout(30):
            await self.proxy.reply_was_lost.wait()
        if self._is_silent:
            self.proxy.stall()
        else:
            self.proxy.refuse()
            self.proxy.reset()

    async def end(self) -> None:
        self.proxy.resume()
        await self.proxy.accept()
