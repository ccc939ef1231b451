"""What the tests of the examples share: each example is run as its reader runs it, as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


def command_of(name: str, *arguments: object) -> list[str]:
    """The command line of an example. A warning is an error there as well as here."""
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]


def run_in(folder: Path, command: list[str], **environment: str) -> Done:
    """Run a program to its end, in a folder that it also has its temporary files in."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(temporary)} | environment
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def run_example(tmp_path: Path) -> Run:
    """Run an example in the test's own folder."""
    return lambda name, *arguments: run_in(tmp_path, command_of(name, *arguments))


@pytest.fixture
def run_code(tmp_path: Path) -> Run:
    """Run code that imports the examples. Not in this process, because event names are one to a process."""
    return lambda code: run_in(tmp_path, [sys.executable, "-W", "error", "-c", code], PYTHONPATH=str(EXAMPLES))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that has SQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/permits.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
