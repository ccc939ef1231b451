"""Starter: runs the command line in forks of one process that has imported it, because to import it takes most of the
time of a short command.

Each run is a process of its own all the same, started in a folder, with its own streams. Run as a program, this takes
orders, one a line, and answers each with an exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": ""}


class Done(NamedTuple):
    """How a run ended, and what it printed."""

    code: int
    out: str
    err: str


class Starter:
    """Runs commands one after another."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-B", __file__], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=180)

    def run(self, arguments: list[str], folder: Path, given: Path | None = None) -> Done:
        """Run `eventstore` in a folder to its end, with a file for its stdin."""
        out, err = folder / ".out", folder / ".err"
        order = {
            "arguments": arguments,
            "folder": str(folder),
            "streams": [str(given or os.devnull), str(out), str(err)],
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the starter ended"
        return Done(int(answer), out.read_text("utf-8"), err.read_text("utf-8"))


def _serve() -> None:
    import backends.sqlite  # pyright: ignore[reportUnusedImport]  # noqa: F401
    import eventstore.cli.app

    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(order)
            code = 70
            try:
                code = eventstore.cli.app.main(order["arguments"])
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _become(order: dict[str, Any]) -> None:
    os.chdir(order["folder"])
    sys.path[0] = order["folder"]
    flags = (os.O_RDONLY, *[os.O_WRONLY | os.O_CREAT | os.O_TRUNC] * 2)
    for number, (path, flag) in enumerate(zip(order["streams"], flags, strict=True)):
        opened = os.open(path, flag, 0o600)
        os.dup2(opened, number)
        os.close(opened)


if __name__ == "__main__":
    _serve()
