"""Redis: a server of the tests' own, which may be Valkey."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from .binaries import redis_program
from .server import Server

_DURABLE = {"appendonly": "yes", "appendfsync": "always"}
_NOT_DURABLE = {"appendonly": "yes", "appendfsync": "no"}
_SETTINGS = {"save": "", "daemonize": "no", "maxmemory-policy": "noeviction"}


class Redis(Server):
    """Without a password. It keeps what it has acknowledged over a crash, and if `durable` over a loss of power."""

    def __init__(self, *, durable: bool, settings: Mapping[str, str] | None = None) -> None:
        self.program = redis_program()
        super().__init__()
        self.is_durable = durable
        self.settings = {**_SETTINGS, **(_DURABLE if durable else _NOT_DURABLE), **(settings or {})}
        self.socket = self.home / "socket"

    def url(self, prefix: str | None = None, *, database: int = 0) -> str:
        """The server as a store URL; `prefix` sets a journal apart from others."""
        parameters = {"prefix": prefix, "durability": None if self.is_durable else "process-crash"}
        query = "&".join(f"{name}={value}" for name, value in parameters.items() if value is not None)
        return self.dsn(database) + (f"?{query}" if query else "")

    def dsn(self, database: int = 0) -> str:
        return f"redis://{self.host}:{self.port}/{database}"

    def command(self) -> list[str]:
        settings = [part for name, value in self.settings.items() for part in (f"--{name}", value)]
        where = ["--bind", self.host, "--port", str(self.port), "--unixsocket", str(self.socket)]
        return [str(self.program), *where, "--dir", str(self.home), *settings]

    def is_ready(self) -> bool:
        # Over the socket in its own directory: on the port another server may answer.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(self.socket))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        return False
