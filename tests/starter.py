"""Starter: runs the command line in forks of one process that has imported it, because to import it takes most of the
time of a short command.

Each run is a process of its own all the same, started in a folder, with its own streams. Run as a program, this takes
orders, one a line, and answers each with a number: the id of the process, or its exit code.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).parents[1]
_SECONDS = 180
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
        return self.wait(self.start(arguments, folder, given), folder)

    def start(self, arguments: list[str], folder: Path, given: Path | None = None) -> int:
        """Let it begin. Gives the id of its process, which is there until it is waited for."""
        streams = [str(given or os.devnull), str(folder / ".out"), str(folder / ".err")]
        return self._order({"arguments": arguments, "folder": str(folder), "streams": streams})

    def wait(self, process: int, folder: Path) -> Done:
        """How it ended."""
        code = self._order({"process": process})
        return Done(code, (folder / ".out").read_text("utf-8"), (folder / ".err").read_text("utf-8"))

    def has_ended(self, process: int) -> bool:
        """Whether it has. It still has to be waited for."""
        return bool(self._order({"process": process, "only_ask": True}))

    def _order(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the starter ended"
        return int(answer)


def _serve() -> None:
    import backends.sqlite  # pyright: ignore[reportUnusedImport]  # noqa: F401
    import eventstore.cli.app

    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        if "only_ask" in order:
            ended = os.waitid(os.P_PID, order["process"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            answer = int(ended is not None)
        elif "process" in order:
            # Whatever it hangs in, the tests go on.
            end = threading.Timer(_SECONDS, os.kill, (order["process"], signal.SIGKILL))
            end.start()
            _, status = os.waitpid(order["process"], 0)
            end.cancel()
            end.join()
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                _become(order)
                code = 70
                try:
                    code = eventstore.cli.app.main(order["arguments"])
                    sys.stdout.flush()
                    sys.stderr.flush()
                finally:
                    os._exit(code)
        sys.stdout.write(f"{answer}\n")
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
