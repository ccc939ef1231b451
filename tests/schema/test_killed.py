"""An upgrade that dies at any statement leaves no journal or a whole one, and the next one completes it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from eventstore import schema
from eventstore.url import StoreUrl, parse_store_url

# Upgrades file after file, each in a child that dies before statement 1, 2, … until one lives to the end. The trace
# callback comes before SQLite runs a statement, and sees every one: PRAGMA, BEGIN and COMMIT too. The first upgrade,
# which lives, imports for all children what takes longer than an upgrade.
KILLER = """
import json, os, sqlite3, sys
from eventstore import schema
from eventstore.url import parse_store_url

folder = sys.argv[1]
schema.upgrade(parse_store_url(f"sqlite:///{folder}/first.db"))
seen = []

class Traced(sqlite3.Connection):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.set_trace_callback(self.traced)

    def traced(self, statement):
        seen.append(" ".join(statement.split()))
        if len(seen) == fatal:
            os._exit(9)

connect = sqlite3.connect
sqlite3.connect = lambda *arguments, **options: connect(*arguments, factory=Traced, **options)
for fatal in range(1, 1000):
    if (child := os.fork()) == 0:
        schema.upgrade(parse_store_url(f"sqlite:///{folder}/{fatal}.db"))
        with open(f"{folder}/statements.json", "w") as file:
            json.dump(seen, file)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 9:
        sys.exit(status)
"""
OBJECTS = "SELECT name FROM sqlite_master WHERE name LIKE '%journal_%' OR name = 'eventstore_version'"


class Killed(NamedTuple):
    """Every statement of an upgrade, and for each the file of the upgrade that died before it."""

    statements: list[str]
    files: list[Path]
    complete: Path


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-W", "error", "-c", KILLER, str(folder)], check=True, timeout=300)
    statements = json.loads((folder / "statements.json").read_text())
    files = [folder / f"{number}.db" for number in range(1, len(statements) + 1)]
    return Killed(statements, files, folder / f"{len(statements) + 1}.db")


def test_everything_is_made_in_one_transaction(killed: Killed) -> None:
    assert killed.statements.count("BEGIN IMMEDIATE") == 1
    assert killed.statements.count("COMMIT") == 1
    begin, commit = killed.statements.index("BEGIN IMMEDIATE"), killed.statements.index("COMMIT")
    makes = [at for at, text in enumerate(killed.statements) if text.startswith(("CREATE", "INSERT", "UPDATE"))]
    assert len(makes) >= 10
    assert begin < min(makes)
    assert max(makes) < commit
    assert killed.statements[max(makes)].startswith("INSERT INTO eventstore_version")


def test_what_a_killed_upgrade_leaves_is_whole_or_nothing(killed: Killed) -> None:
    commit = killed.statements.index("COMMIT")
    everything = objects(killed.complete)
    assert len(everything) >= 10
    for at, (statement, file) in enumerate(zip(killed.statements, killed.files, strict=True)):
        is_committed = at > commit
        assert objects(file) == (everything if is_committed else set()), statement
        assert schema.current(url_of(file)) == (schema.head() if is_committed else None), statement


def test_an_upgrade_after_a_killed_one_completes_it(killed: Killed) -> None:
    for statement, file in zip(killed.statements, killed.files, strict=True):
        schema.upgrade(url_of(file))
        assert objects(file) == objects(killed.complete), statement
        assert schema.check(url_of(file)).is_current, statement


def objects(file: Path) -> set[str]:
    if not file.exists():
        return set()
    with closing(sqlite3.connect(file)) as connection:
        return {row[0] for row in connection.execute(OBJECTS)}


def url_of(file: Path) -> StoreUrl:
    return parse_store_url(f"sqlite:///{file}")
