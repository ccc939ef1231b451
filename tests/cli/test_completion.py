"""Completion as a shell does it: it runs what `--show-completion` prints, and what `--install-completion` leaves."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
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
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script],
        cwd=home,
        env=shell_environment(home),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def shell_environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


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


def needs(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no {shell} on this machine")


def installed_for(home: Path, shell: str) -> None:
    """Named, because another shell asks for it."""
    assert f"{shell} completion installed in" in "".join(bash(home, f"eventstore --install-completion {shell}; true"))


@needs("zsh")
@pytest.mark.parametrize("how", ["eval", "install"])
def test_zsh_completes_at_the_first_tab(home: Path, how: str) -> None:
    if how == "install":
        installed_for(home, "zsh")
    else:
        script = "autoload -Uz compinit; compinit\nsource <(eventstore --show-completion zsh)\n"
        (home / ".zshrc").write_text(script, "utf-8")
    with (home / ".zshrc").open("a", encoding="utf-8") as file:
        file.write("PS1='ready> '\n")
    terminal, inner = pty.openpty()
    environment = {**shell_environment(home), "TERM": "dumb"}
    words = ["setsid", "--ctty", "zsh", "-i"]
    process = subprocess.Popen(words, cwd=home, env=environment, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    try:
        read_until(terminal, b"ready> ")
        os.write(terminal, b"eventstore bis\t")
        read_until(terminal, b"ect ")
        os.write(terminal, b"\x15eventstore audit query sqlite:///bank.db --us\t")
        read_until(terminal, b"er ")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> None:
    shown = b""
    deadline = time.monotonic() + 60
    while wanted not in shown:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], shown
        shown += os.read(terminal, 65536)


@needs("fish")
@pytest.mark.parametrize("how", ["source", "install"])
def test_fish_completes_commands_and_options(home: Path, how: str) -> None:
    begin = ""
    if how == "install":
        installed_for(home, "fish")
    else:
        begin = "eventstore --show-completion fish | source; "

    def completed(line: str) -> list[str]:
        words = ["fish", "-c", f'{begin}complete -C "{line}"']
        done = subprocess.run(
            words, cwd=home, env=shell_environment(home), capture_output=True, text=True, timeout=180, check=True
        )
        return [line.partition("\t")[0] for line in done.stdout.splitlines()]

    assert completed("eventstore bis") == ["bisect"]
    assert completed("eventstore audit query sqlite:///bank.db --us") == ["--user"]
    assert {"query", "trace", "stats", "seal", "verify", "prove", "keys"} == set(completed("eventstore audit "))


def test_a_shell_that_is_not_known_is_wrong_usage(home: Path) -> None:
    assert bash(home, "eventstore --install-completion ksh 2>/dev/null; echo $?") == ["2"]
