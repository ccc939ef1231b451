"""Home: the directory of one server, which goes away with it, at the latest when the next test run starts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

# Short, because a unix socket in it has room for 107 bytes in all. The number is the pid of the test process.
_PREFIX = "es-test-"
_GONE_SECONDS = 30.0
_NAME = re.compile(rf"{_PREFIX}(\d+)-")


def make_home() -> Path:
    """A new directory for one server. Those of test processes that were killed are removed first."""
    sweep()
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def sweep() -> None:
    """Remove what dead test processes have left: their directories, and servers that are still in them.

    The kernel stops a server whose test process dies. It cannot stop one that a test had paused.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            match = _NAME.match(folder.name)
            if match and os.geteuid() in {0, folder.stat().st_uid} and not Path(f"/proc/{match[1]}").exists():
                remove(folder)


def remove(folder: Path) -> None:
    """Remove a server's directory, and the server if it is still there."""
    kill_all_in(folder)
    _free_shared_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)


def kill_all_in(folder: Path) -> None:
    """Kill every process that works in a directory or below it, and wait until they are gone."""
    deadline = time.monotonic() + _GONE_SECONDS
    while _killed_in(folder):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes in {folder} do not end")
        time.sleep(0.002)


def _free_shared_memory(folder: Path) -> None:
    # A Postgres that was killed leaves a small piece, of which a machine has a limited number. Its pid file says which.
    for pid_file in folder.glob("*/postmaster.pid"):
        lines = pid_file.read_text().splitlines()
        if len(lines) > 6 and len(key_and_id := lines[6].split()) == 2:
            subprocess.run(["ipcrm", "-m", key_and_id[1]], capture_output=True, timeout=60, check=False)


def _killed_in(folder: Path) -> int:
    killed = 0
    for process in Path("/proc").glob("[0-9]*"):
        # Processes end while they are looked at, and those of others cannot be looked at.
        with contextlib.suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                os.kill(int(process.name), signal.SIGKILL)
                killed += 1
    return killed
