"""OpenFiles: what a process has open in SQLite, so that no child of it opens that beside what it inherits.

A process has its locks on a file by itself, and a child gets none of them. But SQLite keeps account of them in memory,
which the child does get: there, a connection of the child's own takes it that the locks are held, and asks the system
for none. Whoever else closes the file then believes to be the last, and removes the log that the child still writes to:
commits that the child was told of are gone. Nothing that the child could do makes good for it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from eventstore.errors import StoreClosed

File = tuple[int, int]
"""Its device and its number there: a file may have several names."""

NO_FILE: File = (0, 0)


class OpenFiles:
    """Those of this process, and those of the process that it is a child of.

    A list and no lock, because other threads open files, too, and its changes are whole ones: a lock that is held while
    somebody forks would be held for ever in the child.
    """

    def __init__(self) -> None:
        self._open: list[File] = []
        self._inherited: set[File] = set()
        self._pid = os.getpid()

    def opened(self, path: Path) -> File:
        """Take note that a file is being opened, until it is `closed`. One that is not there is none yet.

        Raises `StoreClosed` for a file that was open when the process was forked.
        """
        self._look_for_a_fork()
        try:
            status = path.stat()
        except OSError:
            return NO_FILE
        file = (status.st_dev, status.st_ino)
        if file in self._inherited:
            raise StoreClosed(
                f"{path} was open when this process was forked, and SQLite's locks do not survive that: what was "
                "stored from here could be lost. Open it after the fork alone, or start the process by another method: "
                "'spawn' or 'forkserver'"
            )
        self._open.append(file)
        return file

    def closed(self, file: File) -> None:
        """The file is closed, by one of those who had `opened` it."""
        self._look_for_a_fork()
        with suppress(ValueError):  # None, or it was opened before a fork.
            self._open.remove(file)

    def _look_for_a_fork(self) -> None:
        if os.getpid() != self._pid:
            self._inherited.update(self._open)
            self._open.clear()
            self._pid = os.getpid()


OPEN_FILES = OpenFiles()
