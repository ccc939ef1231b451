"""An upgrade of Postgres that dies at any statement, or loses its session there, leaves no journal or a whole one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from eventstore import schema
from eventstore.errors import BackendUnavailable
from eventstore.schema.postgres import PostgresSchema

from .postgres_database import PostgresDatabase

# Upgrades schema after schema, each in a child that dies before statement 1, 2, … until one lives to the end. The first
# upgrade, which lives, imports for all children what takes longer than an upgrade.
KILLER = """
import json, os, sys
from sqlalchemy import Engine, event
from eventstore import schema
from eventstore.schema.postgres import PostgresSchema
from eventstore.url import parse_store_url

raw_url, folder = sys.argv[1:]
PostgresSchema(parse_store_url(f"{raw_url}first")).upgrade("0001")
seen = []

def reached(statement):
    seen.append(" ".join(statement.split()))
    if len(seen) == fatal:
        os._exit(9)

event.listen(Engine, "before_cursor_execute", lambda c, cursor, statement, *rest: reached(statement))
event.listen(Engine, "commit", lambda c: reached("COMMIT"))
for fatal in range(1, 1000):
    if (child := os.fork()) == 0:
        PostgresSchema(parse_store_url(f"{raw_url}k{fatal}")).upgrade("0001")
        with open(f"{folder}/statements.json", "w") as file:
            json.dump(seen, file)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 9:
        sys.exit(status)
"""


@pytest.fixture
def database(empty_postgres_url: str) -> PostgresDatabase:
    return PostgresDatabase(empty_postgres_url)


def test_an_upgrade_whose_process_dies_leaves_nothing_and_the_next_one_completes_it(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    url = database.with_parameters(application_name="killed", schema="")
    killer = [sys.executable, "-W", "error", "-c", KILLER, url.raw, str(tmp_path)]
    subprocess.run(killer, check=True, timeout=300)
    statements = json.loads((tmp_path / "statements.json").read_text())
    assert statements[-1] == "COMMIT"
    assert statements[-2].startswith("INSERT INTO eventstore_version")
    assert len(statements) > 20
    # The server learns of a client's death when it next listens to it.
    wait_until(lambda: sessions(database, "killed") == [])
    complete = database.shape(f"k{len(statements) + 1}")
    assert len(complete) > 40
    for number, statement in enumerate(statements, start=1):
        name = f"k{number}"
        assert database.relations(name) == [], statement
        url = database.with_parameters(schema=name)
        assert schema.current(url) is None, statement
        schema.upgrade(url)
        assert database.shape(name) == complete, statement


def test_an_upgrade_whose_session_is_ended_leaves_nothing_and_can_be_run_again(database: PostgresDatabase) -> None:
    url = database.with_parameters(application_name="ended")
    ended = 0
    for fatal in range(1, 1000):
        with ended_before(database, "ended", fatal) as reached:
            try:
                PostgresSchema(url).upgrade("0001")
            except BackendUnavailable:
                ended += 1
                assert database.relations() == [], reached[-1]
            else:
                assert len(reached) == fatal - 1
                break
    assert ended > 20
    assert schema.check(database.url).is_current


@contextmanager
def ended_before(database: PostgresDatabase, application: str, number: int) -> Generator[list[str]]:
    """Ends the sessions of an application before its statement of this number is sent. The statements reached."""
    reached: list[str] = []

    def before(statement: str) -> None:
        reached.append(statement)
        if len(reached) == number:
            # In another thread, because an event loop runs in this one.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(end_sessions, database, application).result(timeout=60)

    def before_execute(connection: object, cursor: object, statement: str, *rest: object) -> None:
        before(statement)

    def before_commit(connection: object) -> None:
        before("COMMIT")

    event.listen(Engine, "before_cursor_execute", before_execute)
    event.listen(Engine, "commit", before_commit)
    try:
        yield reached
    finally:
        event.remove(Engine, "before_cursor_execute", before_execute)
        event.remove(Engine, "commit", before_commit)


def end_sessions(database: PostgresDatabase, application: str) -> None:
    ((pid,),) = sessions(database, application)
    database.fetch("SELECT pg_terminate_backend($1)", pid)
    wait_until(lambda: sessions(database, application) == [])


def sessions(database: PostgresDatabase, application: str) -> list[tuple[int]]:
    return database.fetch(
        "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()", application
    )


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
