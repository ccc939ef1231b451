"""Developers use Alembic's own command in the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventstore import schema
from eventstore.url import StoreUrl

from .conftest import OpenDatabase
from .postgres_database import PostgresDatabase

CHECKOUT = Path(__file__).resolve().parents[2]
INI = CHECKOUT / "alembic.ini"


def alembic(*arguments: str, **variables: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "EVENTSTORE_URL"} | variables
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", "-c", str(INI), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=CHECKOUT,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_upgrades(url: StoreUrl) -> None:
    code, output = alembic("-x", f"url={url.raw}", "upgrade", "head")
    assert code == 0, output
    assert schema.check(url).is_current


def test_the_command_takes_the_url_from_the_environment(url: StoreUrl) -> None:
    schema.upgrade(url)
    code, output = alembic("current", EVENTSTORE_URL=url.raw)
    assert code == 0, output
    assert f"{schema.head()} (head)" in output


def test_the_command_writes_the_same_sql(url: StoreUrl) -> None:
    code, output = alembic("-x", f"url={url.raw}", "upgrade", "head", "--sql")
    assert code == 0, output
    assert schema.sql(url).strip() in output


def test_the_command_says_how_to_name_a_database() -> None:
    code, output = alembic("current")
    assert code != 0
    assert "FAILED: say which database" in output
    assert "Traceback" not in output


def test_the_command_shows_our_errors_as_one_line(tmp_path: Path) -> None:
    code, output = alembic("-x", f"url=sqlite:///{tmp_path}/none/journal.db", "upgrade", "head")
    assert code != 0
    assert "FAILED: " in output
    assert "Traceback" not in output


def test_the_command_does_not_downgrade(url: StoreUrl) -> None:
    schema.upgrade(url)
    code, output = alembic("-x", f"url={url.raw}", "downgrade", "base")
    assert code != 0
    assert "a journal is never downgraded" in output
    assert schema.check(url).is_current


@pytest.mark.parametrize("name", ["public", "audit"])
def test_the_command_works_on_postgres(empty_postgres_url: str, name: str) -> None:
    database = PostgresDatabase(empty_postgres_url)
    url = database.with_parameters(schema=name)
    code, output = alembic("-x", f"url={url.raw}", "upgrade", "head")
    assert code == 0, output
    assert schema.check(url).is_current
    database.execute("CREATE TABLE customers (name text)")
    code, output = alembic("-x", f"url={url.raw}", "check")
    assert code == 0, output
    assert "No new upgrade operations detected" in output
    code, output = alembic("-x", f"url={url.raw}", "upgrade", "head", "--sql")
    assert code == 0, output
    assert schema.sql(url).strip() in output


def test_the_command_leaves_redis_alone() -> None:
    code, output = alembic("-x", "url=redis://127.0.0.1:1/0", "upgrade", "head")
    assert code != 0
    assert "FAILED: redis:// stores are not migrated by Alembic" in output


def test_autogenerate_sees_no_difference_and_ignores_the_users_tables(url: StoreUrl, database: OpenDatabase) -> None:
    schema.upgrade(url)
    with database() as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("CREATE TABLE journal_entries (name TEXT)")
    code, output = alembic("-x", f"url={url.raw}", "check")
    assert code == 0, output
    assert "No new upgrade operations detected" in output
