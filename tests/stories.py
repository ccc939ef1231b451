"""Stories: pages whose programs and commands are run in one folder, in the order in which they stand there."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .starter import ENVIRONMENT, Done, Starter

DOCS = Path(__file__).parents[1] / "docs"

INTERRUPTED = "^C"
"""What a terminal shows where the reader ends a command, as the first line of its output."""


class Program(NamedTuple):
    """A block of Python, which begins with its name."""

    name: str
    code: str


class Command(NamedTuple):
    """A line for the shell, and what it prints according to the page."""

    line: str
    output: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def story(page: str) -> list[Program | Command]:
    """What is to be done to follow a page."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    steps: list[Program | Command] = []
    for language, block in re.findall(r"```(python|console)\n(.*?)```\n", text, re.DOTALL):
        if language == "python":
            name = block.partition("\n")[0].removeprefix("# ")
            assert name.endswith(".py"), block
            steps.append(Program(name, block))
        else:
            found = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
            steps.extend(Command(line, output) for line, output in found)
    assert sum(isinstance(step, Command) for step in steps) == text.count("\n$ ") > 0
    return steps


class Teller:
    """Does what a page says, in a folder."""

    def __init__(self, folder: Path, starter: Starter) -> None:
        self.folder = folder
        self._starter = starter

    def write(self, program: Program) -> None:
        """Put a program where the commands find it."""
        path = self.folder / program.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(program.code, "utf-8")

    def run(self, words: list[str]) -> str:
        """What a command of a page shows. Its exit code may be 1: some have something to say."""
        done = self._done(words)
        assert done.code <= 1, done.err
        return _without_notes(done.err) + done.out

    def interrupt(self, words: list[str], is_at_work: Callable[[], bool]) -> str:
        """What a command shows that is ended with Ctrl-C as soon as it is at work. Nothing if it ended by itself."""
        process = subprocess.Popen(
            self._command_line(words),
            cwd=self.folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not is_at_work() and process.poll() is None:
                assert time.monotonic() < deadline, words
                time.sleep(0.002)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            return ""
        assert process.returncode == 130, (process.returncode, err)
        return f"{INTERRUPTED}\n{_without_notes(err)}{out}"

    def _done(self, words: list[str]) -> Done:
        goes_to, given = None, None
        match words:
            case [*words, ">", name]:
                goes_to = self.folder / name
            case [*words, "<", name]:
                given = self.folder / name
            case _:
                pass
        if words[0] == "eventstore":
            done = self._starter.run(words[1:], self.folder, given)
        else:
            ended = subprocess.run(
                self._command_line(words),
                cwd=self.folder,
                env=ENVIRONMENT,
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
            done = Done(ended.returncode, ended.stdout, ended.stderr)
        if goes_to is None:
            return done
        goes_to.write_text(done.out, "utf-8")
        return Done(done.code, "", done.err)

    def _command_line(self, words: list[str]) -> list[str]:
        start = {"python": ["-B"], "eventstore": ["-B", "-m", "eventstore.cli"]}[words[0]]
        return [sys.executable, *start, *words[1:]]


def _without_notes(errors: str) -> str:
    return re.sub(r"^note: .*\n", "", errors, flags=re.MULTILINE)


def cells_of(output: str) -> list[list[str]]:
    """Lines as columns, however wide these are. Moments, ids that are made by themselves, what follows from both,
    and what depends on the machine, are not compared."""
    own = (
        r"\d{4}-\d\d-\d\dT[\d:.]+(?:Z|\+00:00)?|\d{4}-\d\d-\d\d|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
        r"|\b[0-9a-f]{64}\b"
    )
    rest = r"((?:runner|digest|fenced|database|size)  ).*"
    return [
        re.split(r"\t| {2,}", re.sub(own, "…", re.sub(rest, r"\1…", line.rstrip()))) for line in output.splitlines()
    ]
