"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from eventstore.cli.exits import OutputFailed, WrongUsage

_MOST_BYTES = 256 * 1024 * 1024


def read_file(path: Path) -> bytes:
    """What a file holds. Raises `WrongUsage`."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise WrongUsage(f"{path} cannot be read: {error.strerror}") from error


def check_is_new(path: Path) -> None:
    """Raise `WrongUsage` for a file that exists: it is not overwritten."""
    # It does not raise where nobody may look: who writes there says so.
    if os.path.lexists(path):
        raise WrongUsage(f"{path} exists: remove it, or write to another file")


def write_file(path: Path, data: bytes) -> None:
    """Put a file in the place of another one, on the disk. Raises `OutputFailed`: the other one is still there then."""
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise OutputFailed(f"{path} cannot be written: {error.strerror}") from error
