"""The journal's schema in Postgres: made, looked at and upgraded in its own schema, and nowhere else."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection

from backends.tables import METADATA, SCHEMA_REVISION, VERSION_TABLE
from eventstore import schema
from eventstore.errors import SchemaError, StoreBusy
from eventstore.schema import SchemaState, postgres, scripts
from eventstore.schema.postgres import PostgresSchema
from eventstore.url import StoreUrl

from .postgres_database import PostgresDatabase

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def database(empty_postgres_url: str) -> PostgresDatabase:
    return PostgresDatabase(empty_postgres_url)


@pytest.fixture
def url(database: PostgresDatabase) -> StoreUrl:
    return database.url


def test_an_empty_database_gets_the_journal(url: StoreUrl) -> None:
    assert schema.check(url) == SchemaState(found=None, expected=SCHEMA_REVISION, pending=(SCHEMA_REVISION,))
    schema.upgrade(url)
    assert schema.check(url) == SchemaState(found=SCHEMA_REVISION, expected=SCHEMA_REVISION, pending=())
    assert schema.current(url) == SCHEMA_REVISION


def test_looking_changes_nothing(database: PostgresDatabase) -> None:
    url = database.with_parameters(schema="elsewhere")
    assert schema.current(url) is None
    assert "journal_events" in schema.sql(url)
    assert database.fetch("SELECT nspname FROM pg_namespace WHERE nspname = 'elsewhere'") == []
    assert database.relations() == []


def test_upgrading_twice_changes_nothing(url: StoreUrl, database: PostgresDatabase) -> None:
    schema.upgrade(url)
    before = database.fetch("SELECT oid, xmin::text, relname FROM pg_class ORDER BY oid")
    schema.upgrade(url)
    assert database.fetch("SELECT oid, xmin::text, relname FROM pg_class ORDER BY oid") == before


def test_the_version_table_is_the_journals_own(url: StoreUrl, database: PostgresDatabase) -> None:
    schema.upgrade(url)
    assert database.fetch("SELECT version_num FROM eventstore_version") == [(SCHEMA_REVISION,)]
    assert "alembic_version" not in database.relations()


def test_an_unknown_target_revision_is_refused_and_makes_nothing(url: StoreUrl, database: PostgresDatabase) -> None:
    with pytest.raises(SchemaError, match=f"those of this version are {SCHEMA_REVISION}"):
        schema.upgrade(url, "9999")
    assert database.relations() == []
    schema.upgrade(url)
    with pytest.raises(SchemaError, match="no schema revision '9999'"):
        schema.upgrade(url, "9999")


async def test_it_may_be_called_where_an_event_loop_runs(url: StoreUrl) -> None:
    schema.upgrade(url)
    assert schema.check(url).is_current
    assert (await asyncio.to_thread(schema.check, url)).is_current


# Schemas


def test_the_journal_goes_into_the_schema_of_the_url_alone(database: PostgresDatabase) -> None:
    url = database.with_parameters(schema="audit")
    schema.upgrade(url)
    assert schema.check(url).is_current
    assert database.relations() == []
    assert {"journal_events", "eventstore_version"} <= set(database.relations("audit"))
    assert schema.current(database.url) is None


def test_two_journals_in_one_database_are_the_same_and_do_not_see_each_other(database: PostgresDatabase) -> None:
    one, two = database.with_parameters(schema="one"), database.with_parameters(schema="two")
    schema.upgrade(one)
    database.execute("UPDATE one.eventstore_version SET version_num = '9999'")
    schema.upgrade(two)
    assert schema.check(one).is_newer
    assert schema.check(two).is_current
    assert database.shape("one") == database.shape("two")


def test_the_search_path_of_a_role_or_database_plays_no_part(database: PostgresDatabase) -> None:
    ((name,),) = database.fetch("SELECT current_database()")
    database.execute(
        "CREATE SCHEMA decoy; CREATE TABLE decoy.eventstore_version (version_num text);"
        "INSERT INTO decoy.eventstore_version VALUES ('9999');"
        f'ALTER DATABASE "{name}" SET search_path = decoy, public'
    )
    assert schema.current(database.url) is None
    schema.upgrade(database.url)
    assert schema.check(database.url).is_current
    assert database.relations("decoy") == ["eventstore_version"]


def test_a_session_that_goes_to_somebody_else_afterwards_keeps_nothing(database: PostgresDatabase) -> None:
    # As behind a proxy that gives every transaction another server session.
    def settings(connection: Connection) -> list[str]:
        return [connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in ("search_path", "lock_timeout")]

    def look(connection: Connection) -> tuple[list[str], list[str], list[str]]:
        statements = connection.exec_driver_sql("SELECT name FROM pg_prepared_statements").scalars().all()
        within = settings(connection)
        connection.commit()
        return list(statements), within, settings(connection)

    statements, within, afterwards = PostgresSchema(database.with_parameters(schema="audit")).in_transaction(look)
    assert within == ['"audit"', "30s"]
    assert afterwards == ['"$user", public', "0"]
    # The driver's own names are those of every other client's statements.
    assert statements
    assert all(name.startswith("eventstore_") for name in statements)


# Other tables, other revisions


def test_the_users_own_tables_are_left_alone(url: StoreUrl, database: PostgresDatabase) -> None:
    database.execute("CREATE TABLE customers (name text); INSERT INTO customers VALUES ('Ada')")
    schema.upgrade(url)
    assert schema.check(url).is_current
    assert database.fetch("SELECT * FROM customers") == [("Ada",)]


@pytest.mark.parametrize("theirs", ["TABLE journal_removals (mine text)", "VIEW journal_events AS SELECT 1 AS mine"])
def test_something_of_the_users_by_a_journals_name_is_refused(
    url: StoreUrl, database: PostgresDatabase, theirs: str
) -> None:
    database.execute(f"CREATE {theirs}")
    before = database.shape()
    with pytest.raises(SchemaError, match="already exists.*by the journal's names"):
        schema.upgrade(url)
    assert database.shape() == before


def test_a_version_table_of_another_shape_is_refused(url: StoreUrl, database: PostgresDatabase) -> None:
    database.execute("CREATE TABLE eventstore_version (mine text)")
    with pytest.raises(SchemaError, match="version_num"):
        schema.upgrade(url)


def test_a_newer_journal_is_refused_and_left_alone(url: StoreUrl, database: PostgresDatabase) -> None:
    schema.upgrade(url)
    database.execute("UPDATE eventstore_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match=f"9999.*expects {SCHEMA_REVISION}") as caught:
        schema.upgrade(url)
    assert (caught.value.found, caught.value.expected) == ("9999", SCHEMA_REVISION)
    assert schema.check(url).is_newer


def test_an_older_journal_is_upgraded(url: StoreUrl, next_release: Path, database: PostgresDatabase) -> None:
    assert schema.check(url) == SchemaState(found="0001", expected="0002", pending=("0002",))
    schema.upgrade(url)
    assert schema.check(url).is_current
    assert "added" in database.relations()
    schema.upgrade(url, "0001")
    assert schema.current(url) == "0002"


def test_an_upgrade_that_fails_leaves_nothing_of_itself(
    url: StoreUrl, next_release: Path, database: PostgresDatabase
) -> None:
    (next_release / "0002_next.py").write_text(next_revision("op.execute('CREATE TABLE added ()')", times=2))
    before = database.shape()
    with pytest.raises(SchemaError, match='"added" already exists'):
        schema.upgrade(url)
    assert database.shape() == before
    assert schema.current(url) == "0001"


@pytest.fixture
def next_release(url: StoreUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database of this revision under a release that has one more; where its revisions stand."""
    schema.upgrade(url, "0001")
    copy = tmp_path / "migrations"
    shutil.copytree(CHECKOUT / "migrations", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "versions" / "0002_next.py").write_text(next_revision("op.execute('CREATE TABLE added ()')"))
    monkeypatch.setattr(scripts, "_folder", lambda: copy)
    return copy / "versions"


def next_revision(statement: str, times: int = 1) -> str:
    body = "; ".join([statement] * times)
    return f"from alembic import op\nrevision = '0002'\ndown_revision = '0001'\ndef upgrade():\n    {body}\n"


# The SQL text


@pytest.mark.parametrize("name", ["public", "audit"])
def test_the_sql_text_makes_the_same_journal(database: PostgresDatabase, name: str) -> None:
    url = database.with_parameters(schema=name)
    text = schema.sql(url).strip()
    assert text.startswith("BEGIN;")
    assert text.endswith("COMMIT;")
    database.execute(text)
    assert schema.check(url).is_current
    schema.upgrade(database.with_parameters(schema="upgraded"))
    assert database.shape(name) == database.shape("upgraded")
    assert len(database.shape(name)) > 40


def test_the_tables_of_the_statements_and_of_the_migrations_are_the_same(database: PostgresDatabase) -> None:
    created = database.with_parameters(schema="created")

    def create(connection: Connection) -> None:
        # Functions are in the migrations alone, and an index names one.
        connection.exec_driver_sql(
            "CREATE FUNCTION journal_label(metadata text, name text) RETURNS text "
            "LANGUAGE sql IMMUTABLE STRICT AS 'SELECT metadata'"
        )
        METADATA["postgresql"].create_all(connection)

    PostgresSchema(created).in_transaction(create)
    migrated = database.with_parameters(schema="migrated")
    schema.upgrade(migrated)

    def tables(name: str) -> list[tuple[object, ...]]:
        # Views, and what they are made with, are in the migrations alone.
        aside = ("v_", "journal_json", VERSION_TABLE)
        kinds = {"column", "index", "constraint", "relation"}
        return [row for row in database.shape(name) if row[0] in kinds and not row[1].startswith(aside)]

    assert tables("created") == tables("migrated")
    assert len(tables("created")) > 40


# Several at once


def test_upgraders_in_two_processes_both_find_it_done(url: StoreUrl, tmp_path: Path) -> None:
    start = tmp_path / "start"
    code = (
        "import time, pathlib; from eventstore import schema; from eventstore.url import parse_store_url\n"
        f"url = parse_store_url({url.raw!r}); schema.check(url); print('ready', flush=True)\n"
        f"while not pathlib.Path({str(start)!r}).exists(): time.sleep(0.0005)\n"
        "schema.upgrade(url)"
    )
    upgraders = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for upgrader in upgraders:
        assert upgrader.stdout is not None
        assert upgrader.stdout.readline() == "ready\n"
    start.touch()
    assert [(upgrader.communicate(timeout=180)[1], upgrader.returncode) for upgrader in upgraders] == [("", 0)] * 2
    assert schema.check(url).is_current


def test_of_many_upgraders_one_runs_at_a_time(url: StoreUrl, monkeypatch: pytest.MonkeyPatch) -> None:
    running = 0
    most = 0
    guard = threading.Lock()
    run_on = scripts.run_on

    def counted(connection: Connection, revision: str, url: StoreUrl) -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        run_on(connection, revision, url)
        with guard:
            running -= 1

    monkeypatch.setattr(scripts, "run_on", counted)
    gate = threading.Barrier(4)

    def upgrade(_: int) -> None:
        gate.wait(60)
        # The tool itself: all of them take the lock, and look again.
        PostgresSchema(url).upgrade(SCHEMA_REVISION)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(upgrade, range(4)))
    assert most == 1
    assert schema.check(url).is_current


def test_an_upgrade_waits_for_the_lock_of_its_own_schema_only(database: PostgresDatabase) -> None:
    other = database.with_parameters(schema="other")
    with ThreadPoolExecutor() as threads, migrator(database.url) as release:
        upgrading = threads.submit(schema.upgrade, database.url)
        schema.upgrade(other)
        wait_until(lambda: database.fetch("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") != [])
        assert not upgrading.done()
        release.set()
        upgrading.result(timeout=180)
    assert schema.check(database.url).is_current


def test_a_lock_that_is_not_given_up_ends_the_upgrade(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with migrator(database.url) as release:
        monkeypatch.setattr(postgres, "_LOCK_SECONDS", 0.1)
        with pytest.raises(StoreBusy, match="another process is migrating"):
            schema.upgrade(database.url)
        release.set()
    assert schema.current(database.url) is None
    schema.upgrade(database.url)


class migrator:
    """Somebody who holds the migrators' lock and has done nothing yet, until the event is set."""

    def __init__(self, url: StoreUrl) -> None:
        self._has_lock = threading.Event()
        self._release = threading.Event()
        self._thread = threading.Thread(target=PostgresSchema(url).in_transaction, args=(self._hold,))

    def _hold(self, connection: object) -> None:
        self._has_lock.set()
        self._release.wait(120)

    def __enter__(self) -> threading.Event:
        self._thread.start()
        assert self._has_lock.wait(60)
        return self._release

    def __exit__(self, *_: object) -> None:
        self._release.set()
        self._thread.join(60)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
