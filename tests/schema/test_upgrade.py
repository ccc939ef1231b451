"""Bringing a database's journal to this version's revision."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from urllib.parse import quote

import pytest

from backends.tables import SCHEMA_REVISION
from eventstore import schema
from eventstore.errors import CapabilityError, InvalidStoreUrl, SchemaError, StoreBusy
from eventstore.schema import SchemaState, scripts, sqlite, tools
from eventstore.url import StoreUrl, parse_store_url

from .conftest import OpenDatabase

CHECKOUT = Path(__file__).resolve().parents[2]
OBJECTS = "SELECT type, name, sql FROM sqlite_master ORDER BY name"


def test_a_new_file_gets_the_journal(url: StoreUrl) -> None:
    schema.upgrade(url)
    assert schema.check(url) == SchemaState(found=SCHEMA_REVISION, expected=SCHEMA_REVISION, pending=())
    assert schema.current(url) == SCHEMA_REVISION


def test_a_new_file_belongs_to_its_owner_alone(url: StoreUrl, path: Path, database: OpenDatabase) -> None:
    schema.upgrade(url)
    with database() as connection:
        connection.execute("CREATE TABLE written (id)")
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == {"journal.db": 0o600, "journal.db-wal": 0o600, "journal.db-shm": 0o600}


def test_a_new_file_is_in_wal_mode(url: StoreUrl, database: OpenDatabase) -> None:
    schema.upgrade(url)
    with database() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_nothing_stays_behind_but_the_file(url: StoreUrl, path: Path) -> None:
    schema.upgrade(url)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["50% off?#&=.db", "bücher ’.db", "a b+c.db"])
def test_a_file_name_may_hold_any_printable_character(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "100%s"
    folder.mkdir()
    schema.upgrade(parse_store_url(f"sqlite:///{quote(str(folder / name))}"))
    assert [file.name for file in folder.iterdir()] == [name]


def test_upgrading_twice_changes_nothing(url: StoreUrl, path: Path) -> None:
    schema.upgrade(url)
    before = path.read_bytes()
    schema.upgrade(url)
    assert path.read_bytes() == before


def test_a_current_journal_is_left_alone_while_another_process_writes(url: StoreUrl, database: OpenDatabase) -> None:
    schema.upgrade(url)
    with database() as writer:
        writer.execute("BEGIN IMMEDIATE")
        schema.upgrade(url)


def test_looking_creates_no_file(url: StoreUrl, path: Path) -> None:
    assert schema.check(url) == SchemaState(found=None, expected=SCHEMA_REVISION, pending=(SCHEMA_REVISION,))
    assert schema.current(url) is None
    assert "journal_events" in schema.sql(url)
    assert not path.exists()


def test_looking_leaves_what_a_crashed_writer_left(url: StoreUrl, tmp_path: Path, database: OpenDatabase) -> None:
    schema.upgrade(url)
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    with database() as writer:
        writer.execute("CREATE TABLE written (id)")
        for file in (tmp_path / "journal.db", tmp_path / "journal.db-wal"):
            shutil.copy(file, crashed)
    before = {file.name: file.read_bytes() for file in crashed.iterdir()}
    assert schema.check(parse_store_url(f"sqlite:///{crashed}/journal.db")).is_current
    assert {file.name: file.read_bytes() for file in crashed.iterdir() if not file.name.endswith("-shm")} == before


def test_the_sql_text_makes_the_same_journal(url: StoreUrl, tmp_path: Path, database: OpenDatabase) -> None:
    text = schema.sql(url)
    with database() as connection:
        connection.executescript(text)
        by_hand = connection.execute(OBJECTS).fetchall()
    assert schema.check(url).is_current
    other = tmp_path / "other.db"
    schema.upgrade(parse_store_url(f"sqlite:///{other}"))
    with sqlite3.connect(other) as connection:
        upgraded = connection.execute(OBJECTS).fetchall()
    connection.close()
    assert [tuple(" ".join(str(part).split()) for part in row) for row in by_hand] == [
        tuple(" ".join(str(part).split()) for part in row) for row in upgraded
    ]


def test_the_sql_text_is_one_transaction(url: StoreUrl) -> None:
    statements = schema.sql(url).strip()
    assert statements.startswith("BEGIN;")
    assert statements.endswith("COMMIT;")


def test_a_store_without_tables_has_nothing_to_migrate() -> None:
    memory = parse_store_url("memory://")
    for function in (schema.upgrade, schema.check, schema.current, schema.sql):
        with pytest.raises(CapabilityError, match="nothing to migrate"):
            function(memory)


def test_a_third_partys_scheme_is_served_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(*, group: str) -> list[EntryPoint]:
        return [EntryPoint("flatfile", f"{__name__}:FlatFileSchema", group)] if group == "eventstore.schemas" else []

    monkeypatch.setattr(tools, "entry_points", installed)
    url = parse_store_url("flatfile:///tmp/x")
    assert schema.check(url) == SchemaState(found="1", expected="2", pending=("2",))
    schema.upgrade(url)
    assert schema.check(url).is_current
    with pytest.raises(CapabilityError, match="flatfile:// stores are not made by SQL"):
        schema.sql(url)


class FlatFileSchema:
    """A third party's `SchemaTool`."""

    revisions = ("1", "2")
    _found = "1"

    def __init__(self, url: StoreUrl) -> None:
        assert url.scheme == "flatfile"

    def check(self) -> str | None:
        return self._found

    def upgrade(self, revision: str) -> None:
        type(self)._found = revision


def test_an_unknown_parameter_is_refused(path: Path) -> None:
    with pytest.raises(InvalidStoreUrl, match="busy_timeout, durability"):
        schema.upgrade(parse_store_url(f"sqlite:///{path}?mode=memory"))


@pytest.mark.parametrize("revision", ["0815", "9999", "", "base", "+1", "0001:0002", "-1", "00"])
def test_an_unknown_target_revision_is_refused_and_creates_no_file(url: StoreUrl, path: Path, revision: str) -> None:
    for function in (schema.upgrade, schema.sql):
        with pytest.raises(SchemaError, match=f"those of this version are {SCHEMA_REVISION}"):
            function(url, revision)
    assert list(path.parent.iterdir()) == []


def test_an_unknown_target_revision_is_refused_on_a_current_journal_too(url: StoreUrl, path: Path) -> None:
    schema.upgrade(url)
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="there is no schema revision '9999'"):
        schema.upgrade(url, "9999")
    assert path.read_bytes() == before


# Other tables


def test_the_users_own_tables_are_left_alone(url: StoreUrl, database: OpenDatabase) -> None:
    with database() as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("INSERT INTO customers VALUES ('Ada')")
    assert schema.current(url) is None
    schema.upgrade(url)
    with database() as connection:
        assert connection.execute("SELECT * FROM customers").fetchall() == [("Ada",)]
    assert schema.check(url).is_current


def test_a_table_of_the_users_by_a_journals_name_is_refused(url: StoreUrl, database: OpenDatabase) -> None:
    with database() as connection:
        connection.execute("CREATE TABLE journal_removals (mine TEXT)")
        before = connection.execute(OBJECTS).fetchall()
    with pytest.raises(SchemaError, match="journal_removals already exists"):
        schema.upgrade(url)
    with database() as connection:
        assert connection.execute(OBJECTS).fetchall() == before


def test_a_version_table_of_another_shape_is_refused(url: StoreUrl, database: OpenDatabase) -> None:
    with database() as connection:
        connection.execute("CREATE TABLE eventstore_version (mine TEXT)")
    with pytest.raises(SchemaError, match="version_num"):
        schema.upgrade(url)


# Other revisions


@pytest.mark.parametrize("revision", ["9999", "00", "deadbeef1234"])
def test_a_newer_journal_is_refused_and_left_alone(
    url: StoreUrl, path: Path, database: OpenDatabase, revision: str
) -> None:
    schema.upgrade(url)
    with database() as connection:
        connection.execute("UPDATE eventstore_version SET version_num = ?", (revision,))
    before = path.read_bytes()
    with pytest.raises(SchemaError, match=f"{revision}.*expects {SCHEMA_REVISION}") as caught:
        schema.upgrade(url)
    assert (caught.value.found, caught.value.expected) == (revision, SCHEMA_REVISION)
    assert path.read_bytes() == before
    assert schema.check(url).is_newer


def test_an_older_journal_is_upgraded(url: StoreUrl, next_release: Path, database: OpenDatabase) -> None:
    assert schema.check(url) == SchemaState(found="0001", expected="0002", pending=("0002",))
    (next_release / "0002_next.py").write_text(next_revision("op.execute('CREATE TABLE added (id)')"))
    schema.upgrade(url)
    assert schema.check(url).is_current
    with database() as connection:
        assert connection.execute("SELECT * FROM added").fetchall() == []


def test_an_upgrade_that_fails_leaves_nothing_of_itself(
    url: StoreUrl, next_release: Path, database: OpenDatabase
) -> None:
    (next_release / "0002_next.py").write_text(
        next_revision("op.execute('CREATE TABLE added (id)'); op.execute('CREATE TABLE added (id)')")
    )
    with pytest.raises(SchemaError, match="added already exists"):
        schema.upgrade(url)
    with database() as connection:
        assert connection.execute("SELECT * FROM sqlite_master WHERE name = 'added'").fetchall() == []
    assert schema.current(url) == "0001"


def test_a_journal_is_never_downgraded(url: StoreUrl, next_release: Path) -> None:
    schema.upgrade(url)
    schema.upgrade(url, "0001")
    assert schema.current(url) == "0002"


@pytest.fixture
def next_release(url: StoreUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database of this revision under a release that has one more; where its revisions stand."""
    schema.upgrade(url, "0001")
    copy = tmp_path / "migrations"
    shutil.copytree(CHECKOUT / "migrations", copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "versions" / "0002_next.py").write_text(next_revision("pass"))
    monkeypatch.setattr(scripts, "_folder", lambda: copy)
    return copy / "versions"


def next_revision(body: str) -> str:
    return f"from alembic import op\nrevision = '0002'\ndown_revision = '0001'\ndef upgrade():\n    {body}\n"


# Several at once


def test_upgraders_in_two_processes_both_find_it_done(url: StoreUrl, tmp_path: Path) -> None:
    start = tmp_path / "start"
    code = (
        "import sys, time, pathlib; from eventstore import schema; from eventstore.url import parse_store_url\n"
        "print('ready', flush=True)\n"
        f"while not pathlib.Path({str(start)!r}).exists(): time.sleep(0.0005)\n"
        f"schema.upgrade(parse_store_url({url.raw!r}))"
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


def test_an_upgrade_waits_for_the_lock(url: StoreUrl, database: OpenDatabase) -> None:
    with database() as writer, ThreadPoolExecutor() as threads:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("BEGIN IMMEDIATE")
        upgrading = threads.submit(schema.upgrade, url)
        time.sleep(0.2)
        assert not upgrading.done()
        writer.execute("COMMIT")
        upgrading.result(timeout=60)
    assert schema.check(url).is_current


def test_checkpoints_are_left_to_the_store_that_has_the_file_open(
    url: StoreUrl, path: Path, database: OpenDatabase
) -> None:
    with database() as store:
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("PRAGMA wal_autocheckpoint = 0")
        store.execute("CREATE TABLE large AS SELECT zeroblob(8000000)")
        before = path.read_bytes()
        schema.upgrade(url)
        assert path.read_bytes() == before


@pytest.mark.parametrize("journal_mode", ["WAL", "DELETE"])
def test_a_lock_that_is_not_given_up_ends_the_upgrade(
    url: StoreUrl, database: OpenDatabase, monkeypatch: pytest.MonkeyPatch, journal_mode: str
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.1)
    with database() as writer:
        writer.execute(f"PRAGMA journal_mode = {journal_mode}")
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            schema.upgrade(url)
        writer.execute("COMMIT")
    assert schema.current(url) is None


def test_threads_may_upgrade_several_files_at_once(tmp_path: Path) -> None:
    urls = [parse_store_url(f"sqlite:///{tmp_path}/{number}.db") for number in range(8)]
    gate = threading.Barrier(len(urls))

    def upgrade(url: StoreUrl) -> None:
        gate.wait()
        schema.upgrade(url)

    with ThreadPoolExecutor(len(urls)) as threads:
        list(threads.map(upgrade, urls))
    assert all(schema.check(url).is_current for url in urls)


# The process around it


def test_logging_is_not_configured(url: StoreUrl, path: Path) -> None:
    code = (
        "import logging, warnings; mine = logging.getLogger('mine'); before = logging.root.level\n"
        "from eventstore import schema; from eventstore.url import parse_store_url\n"
        f"schema.upgrade(parse_store_url({url.raw!r}))\n"
        "loggers = [logging.root, mine, *map(logging.getLogger, ('alembic', 'sqlalchemy', 'eventstore'))]\n"
        "assert not any(isinstance(h, logging.StreamHandler) for logger in loggers for h in logger.handlers)\n"
        "assert (logging.root.level, logging.root.handlers, mine.disabled) == (before, [], False)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert logging.getLogger("alembic").level == logging.NOTSET


def test_the_scripts_are_found_in_an_installed_package(tmp_path: Path, url: StoreUrl) -> None:
    for package in ("eventstore", "backends"):
        shutil.copytree(CHECKOUT / package, tmp_path / "100%s" / package)
    shutil.copytree(CHECKOUT / "migrations", tmp_path / "100%s" / "eventstore" / "migrations")
    code = (
        "from eventstore import schema; from eventstore.schema import scripts\n"
        "from eventstore.url import parse_store_url\n"
        f"schema.upgrade(parse_store_url({url.raw!r})); print(scripts._folder())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path / "100%s"
    )
    assert done.stdout.strip() == str(tmp_path / "100%s" / "eventstore" / "migrations")
