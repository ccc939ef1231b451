"""Server: one server process on one directory, which a test may stop, crash, pause and start again."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from .home import kill_all_in, make_home, remove
from .privileges import Account, leash

_START_SECONDS = 180.0
_STOP_SECONDS = 20.0

# Below the range the kernel takes clients' ports from: a server must get its port back when it is started again. Each
# of several workers has its own, or one would take what another's server has let go of meanwhile.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(20_000, 32_000)[_WORKER :: int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))]


class Server:
    """Listens on 127.0.0.1 and a unix socket alone, and writes to a log file: a child that holds the pipe of the
    test run's output would keep its reader waiting.

    Start it from the main thread (`leash`).
    """

    stop_signals: ClassVar[tuple[signal.Signals, ...]] = (signal.SIGTERM,)

    def __init__(self, account: Account | None = None) -> None:
        self.account = account or Account()
        self.home = make_home()
        self.log = self.home / "log"
        self.host = "127.0.0.1"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._was_started = False
        if self.account.uid is not None and self.account.gid is not None:
            os.chown(self.home, self.account.uid, self.account.gid)

    # For subclasses

    def command(self) -> list[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    # Life

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start it, and wait until it serves. Started again it has the same port and the same data."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            log_start = self.log.stat().st_size if self.log.exists() else 0
            self._process = self._spawn()
            while self.is_running and time.monotonic() < deadline:
                if self.is_ready():
                    self._was_started = True
                    return self
                time.sleep(0.005)
            self.crash()
            said = self.log.read_bytes()[log_start:].decode(errors="replace")
            # Another server took the port first, or what a crashed one had has not been given back yet.
            if "in use" not in said or time.monotonic() >= deadline:
                raise RuntimeError(f"{self.command()[0]} did not start:\n{said[-3000:]}")
            if not self._was_started:
                self.port = free_port()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in good order."""
        if self._process is None:
            return
        self.resume()
        for stop_signal in self.stop_signals:
            if self.is_running:
                self._process.send_signal(stop_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_SECONDS)
        self.crash()

    def crash(self) -> None:
        """kill -9 of all its processes. What it has written is kept by the operating system: no loss of power."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
            # Postgres's sessions would go on for a moment without their parent, and commit.
            kill_all_in(self.home)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop every process of it where it stands: connections stay open, and nothing answers."""
        if self.is_running:
            # It first: afterwards it has no new children.
            _signal(self.pid, signal.SIGSTOP)
        for pid in self.family():
            _signal(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self.family():
            _signal(pid, signal.SIGCONT)

    def family(self) -> list[int]:
        """The pids of the server's process and of its children, as long as it runs."""
        if not self.is_running:
            return []
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with contextlib.suppress(OSError):
            return [self.pid, *map(int, children.read_text().split())]
        return [self.pid]

    def close(self) -> None:
        """Stop it, and remove everything it had."""
        self.stop()
        remove(self.home)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _spawn(self) -> subprocess.Popen[bytes]:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("start a server from the main thread: it ends with the thread that started it")
        # SIGINT is Postgres's orderly, fast end; for the others it is one too.
        command = [*self.account.prefix, *leash("INT"), *self.command()]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.home,
                env=server_environment(),
                user=self.account.uid,
                group=self.account.gid,
                extra_groups=None if self.account.uid is None else [],
            )


def server_environment() -> dict[str, str]:
    """The environment without what would set up a Postgres client or another program's libraries."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LD_"))}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def free_port() -> int:
    """A port that nobody listens on now."""
    while True:
        port = random.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
