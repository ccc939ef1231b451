"""SmallDisk: a file system of a few megabytes that only one server sees, and that is gone when the test ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.servers.privileges import Account
from tests.servers.server import Server

# As much as the test needs, and the time after which it ends at the latest.
_SECONDS = 600


class SmallDisk:
    """Held by a process of its own, so that it outlives a server that crashes. `folder` is the way to it in that
    process's view, and the server's; `seen` is ours."""

    def __init__(self, folder: Path, size: str) -> None:
        self.folder = folder
        self._size = size

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        script = f'mount -t tmpfs -o size={self._size} none "$0" && echo mounted && exec sleep {_SECONDS}'
        if shutil.which("unshare") is None or shutil.which("nsenter") is None:
            pytest.skip("unshare and nsenter are not installed")
        self._holder = subprocess.Popen(
            ["unshare", *user, "--mount", "--", "setpriv", "--pdeathsig", "KILL", "sh", "-c", script, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline().strip()
        if said != "mounted":
            self._end()
            pytest.skip(f"no file system can be mounted here: {said}")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    @property
    def seen(self) -> Path:
        return Path(f"/proc/{self._holder.pid}/root{self.folder}")

    @property
    def entering(self) -> tuple[str, ...]:
        """What stands before a command that is to see the disk."""
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", f"--target={self._holder.pid}", *user, "--mount", "--")

    def give_to(self, server: Server) -> None:
        """Let a server that is not started yet see it."""
        account = server.account
        if account.uid is not None:
            pytest.skip("the server changes its user here, who may not enter the disk")
        # Whoever is nobody of importance here is root where the disk is, and some servers refuse that.
        nobody = () if os.geteuid() == 0 else ("unshare", "--user", "--map-user=1000", "--map-group=1000", "--")
        server.account = Account((*self.entering, *nobody, *account.prefix))

    def fill(self, leave: int) -> None:
        """Take all room but so many bytes."""
        self.make_room()
        free = os.statvfs(self.seen)
        with self._ballast.open("wb") as file:
            file.write(bytes(max(0, free.f_bavail * free.f_bsize - leave)))

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)

    @property
    def free(self) -> int:
        return os.statvfs(self.seen).f_bavail * os.statvfs(self.seen).f_bsize

    @property
    def _ballast(self) -> Path:
        return self.seen / "ballast"

    def _end(self) -> None:
        self._holder.kill()
        self._holder.communicate(timeout=60)
