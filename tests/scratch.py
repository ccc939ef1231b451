"""Scratch: the folder in which the tests of a run write, in memory where that has the room.

Tests make and remove files all the time, some of them a whole database for each. On a disk that takes a good part of a
run. What is killed, and not the machine, loses nothing in memory either; a disk that fails has a stand-in anyway.

    python -m tests.scratch     says which folder it is
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_IN_MEMORY = Path("/dev/shm")
# Several times what the tests of a run have there at once.
ROOM = 4 << 30


def scratch(*, in_memory: Path = _IN_MEMORY, available: int | None = None) -> Path:
    """`TMPDIR` if that is set. A small file system, or one that runs no programs, is left alone."""
    usual = Path(tempfile.gettempdir())
    if "TMPDIR" in os.environ or not os.access(in_memory, os.W_OK | os.X_OK):
        return usual
    found = os.statvfs(in_memory)
    free = min(found.f_bavail * found.f_frsize, _available() if available is None else available)
    return usual if free < ROOM or found.f_flag & os.ST_NOEXEC else in_memory


def _available() -> int:
    """How many bytes of memory programs may still take without others being swapped out."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    print(scratch())
