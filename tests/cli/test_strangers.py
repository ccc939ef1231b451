"""What somebody is told who does not know the program: slips are wrong usage, and name what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PROJECT, Run, environment
from .test_program import in_a_terminal

SLIPS = [
    (["events", "{url}", ""], "a stream id cannot be empty"),
    (["show", "{url}", "cli_ledger:Account", ""], "'Account' with '' names none"),
    (["events", "{url}", "Account-alice", "--after", "4", "--through", "2"], "--after 4 lies behind --through 2"),
    (["audit", "query", "{url}", "--from", "2026-02-01", "--to", "2026-01-01"], "--from 2026-02-01 is later than --to"),
    (["audit", "stats", "{url}", "--position-from", "9", "--position-to", "3"], "9 lies behind --position-to 3"),
]


@pytest.mark.parametrize(("words", "said"), SLIPS)
def test_what_cannot_be_meant_is_wrong_usage(cli: Run, url: str, words: list[str], said: str) -> None:
    result = cli(*(word.format(url=url) for word in words))
    assert (result.code, result.out) == (2, "")
    assert said in result.err


@pytest.mark.parametrize(
    "words",
    [
        ["events", "{url}", "Account-alice", "--after", "4", "--through", "4"],
        ["audit", "query", "{url}", "--from", "2026-01-01", "--to", "2026-01-01"],
    ],
)
def test_a_range_of_nothing_is_none_of_them(cli: Run, url: str, words: list[str]) -> None:
    assert cli(*(word.format(url=url) for word in words)).code == 0


def test_a_file_of_something_else_is_named(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database " * 100, "utf-8")
    result = cli("streams", f"sqlite:///{path}")
    assert result.code == 3
    assert result.err.startswith(f"error: {path} is not a SQLite database: name another file")


def test_a_journal_in_memory_has_another_name(cli: Run) -> None:
    result = cli("streams", "sqlite:///:memory:")
    assert result.code == 3
    assert "a journal in memory is memory://" in result.err


def test_an_import_needs_a_stdin(own_url: str) -> None:
    shell = f'"$0" -m eventstore.cli import {own_url} <&-'
    ended = subprocess.run(
        ["sh", "-c", shell, sys.executable], cwd=PROJECT, env=environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: stdin is closed: ")


COMMANDS = [
    "streams {url}",
    "tail {url}",
    "show {url} cli_ledger:Account alice",
    "diff {url} cli_ledger:Account alice 1 5",
    "blame {url} cli_ledger:Account alice",
    "replay {url} cli_ledger:Account",
    "verify {url}",
    "audit stats {url}",
    "audit query {url} --csv",
    "doctor {url}",
    "retention plan {url} --keep-versions 1 --kind Account --no-snapshots",
    "events {url} Account-nobody",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_terminal_and_every_locale_will_do(url: str, line: str) -> None:
    words = line.format(url=url).split()
    narrow = in_a_terminal(*words, columns=40)
    poor = subprocess.run(
        [sys.executable, "-P", "-m", "eventstore.cli", *words],
        cwd=PROJECT,
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        capture_output=True,
        check=False,
    )
    assert narrow.code == poor.returncode == (1 if "nobody" in line else 0)
    assert "Traceback" not in narrow.out
    assert b"Traceback" not in poor.stderr
    # CSV is UTF-8 everywhere.
    assert poor.stdout.isascii() is ("--csv" not in line)
