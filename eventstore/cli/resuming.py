"""ResumeFile: how far a long command has come, so that it can be gone on with after it was ended."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventstore.cli.escaping import printable
from eventstore.cli.exits import OutputFailed, WrongUsage


class ResumeFile:
    """A small file of JSON. It is replaced as a whole, so one that a kill leaves behind is complete; it goes when the
    work is done.

    `work` names what is being done: a file that belongs to something else is refused with `WrongUsage`.
    """

    def __init__(self, path: Path, work: Mapping[str, Any]) -> None:
        self._path = path
        self._work = dict(work)
        self.after: str | None = None
        self.so_far: dict[str, int] = {}
        try:
            found = json.loads(path.read_text("utf-8"))
            work_there, self.after = found["work"], str(found["after"])
            self.so_far = {str(name): int(count) for name, count in found["so_far"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise WrongUsage(f"{printable(str(path))} cannot be read as a file to resume from: {error}") from error
        if work_there != self._work:
            raise WrongUsage(
                f"{printable(str(path))} was left by something else: {work_there}; name another file, or remove it"
            )

    def save(self, after: str, so_far: Mapping[str, int]) -> None:
        """Everything up to `after` is done. Raises `OutputFailed`."""
        text = json.dumps({"work": self._work, "after": after, "so_far": dict(so_far)})
        beside = self._path.with_name(f"{self._path.name}.new")
        try:
            beside.write_text(text, "utf-8")
            os.replace(beside, self._path)
        except OSError as error:
            raise OutputFailed(f"{printable(str(self._path))} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """All is done."""
        self._path.unlink(missing_ok=True)
