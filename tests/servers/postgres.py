"""Postgres: a server of the tests' own."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from .binaries import postgres_programs
from .home import make_home, remove
from .privileges import unprivileged
from .server import Server, server_environment

USER = "postgres"

# A crash of the server loses nothing without fsync, because the operating system keeps what was written. A loss of
# power would: whoever measures, or claims to survive that, needs a durable server.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}
_SETTINGS = {
    "max_connections": "100",
    "shared_buffers": "32MB",
    # In containers /dev/shm is often too small.
    "dynamic_shared_memory_type": "mmap",
    "log_line_prefix": "%m [%p] %a ",
}


# Data directories that were made once in this process: to copy one takes a fraction of the time. By their programs.
_TEMPLATES: dict[Path, Path] = {}


class Postgres(Server):
    """Its superuser is `postgres`, without a password; its database `postgres` is empty."""

    # First the fast end, which rolls transactions back, then the immediate one, which recovers at the next start.
    stop_signals: ClassVar = (signal.SIGINT, signal.SIGQUIT)

    def __init__(self, *, durable: bool, settings: Mapping[str, str] | None = None) -> None:
        self.programs = postgres_programs()
        super().__init__(unprivileged())
        self.is_durable = durable
        self.settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self.data = self.home / "data"
        if self.programs not in _TEMPLATES:
            _TEMPLATES[self.programs] = self._made()
        self._done("cp", "-a", str(_TEMPLATES[self.programs]), str(self.data))

    def url(self, database: str = "postgres") -> str:
        """The database as a store URL; it is a DSN for asyncpg as well when `?durability=…` is left out."""
        return self.dsn(database) + ("" if self.is_durable else "?durability=process-crash")

    def dsn(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@{self.host}:{self.port}/{database}"

    def psql(self, database: str, text: str, *options: str) -> str:
        """What psql prints when it runs an SQL text, which ends at its first error."""
        where = ("-h", self.host, "-p", str(self.port), "-U", USER, "-d", database)
        return self.run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", *options, *where, text=text)

    def _made(self) -> Path:
        """A new data directory, which goes away with this process."""
        home = make_home()
        atexit.register(remove, home)
        if self.account.uid is not None and self.account.gid is not None:
            os.chown(home, self.account.uid, self.account.gid)
        data = home / "data"
        self.run("initdb", "-D", str(data), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        return data

    def run(self, program: str, *arguments: str, text: str = "") -> str:
        """What one of Postgres's own programs prints. Raises if it fails."""
        return self._done(str(self.programs / program), *arguments, text=text)

    def _done(self, program: str, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [*self.account.prefix, program, *arguments],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            env=server_environment(),
            user=self.account.uid,
            group=self.account.gid,
            extra_groups=None if self.account.uid is None else [],
            timeout=180,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed:\n{done.stdout[-3000:]}")
        return done.stdout

    def command(self) -> list[str]:
        settings = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        where = ["-D", str(self.data), "-h", self.host, "-p", str(self.port), "-k", str(self.home)]
        return [str(self.programs / "postgres"), *where, *settings]

    def is_ready(self) -> bool:
        # The server says so itself, in the last line of its pid file: no connection is needed to know.
        lines = self._pid_file()
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _pid_file(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return Path(self.data / "postmaster.pid").read_text().splitlines()
        return []
