"""Completion as a shell does it: bash runs what `--show-completion` prints, and what `--install-completion` leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What the tab key does: bash puts the words into variables, and calls the function that is registered.
COMPLETE = """
complete -p eventstore >&2
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_eventstore_completion eventstore
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's folder, with the program in it."""
    program = tmp_path / "bin" / "eventstore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m eventstore.cli "$@"\n', "utf-8")
    program.chmod(0o700)
    return tmp_path


def bash(home: Path, script: str) -> list[str]:
    environment = {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("how", ["eval", "install"])
def test_bash_completes_commands_and_options(home: Path, how: str) -> None:
    if how == "install":
        # A command at the end of a script would take the place of the shell that is looked for.
        bash(home, "eventstore --install-completion; true")
        begin = 'source "$HOME/.bashrc"'
    else:
        (home / "completion.sh").write_text("\n".join(bash(home, "eventstore --show-completion; true")), "utf-8")
        begin = "source completion.sh"

    def completed(words: str) -> list[str]:
        return bash(home, begin + COMPLETE.format(words=words))

    assert completed("eventstore bis") == ["bisect"]
    assert completed("eventstore audit query sqlite:///bank.db --us") == ["--user"]
    if how == "eval":
        assert {"query", "trace", "stats", "seal", "verify", "prove", "keys"} == set(completed("eventstore audit ''"))
