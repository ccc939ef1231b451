"""Developers use Alembic's own command in the checkout, and users their own Alembic in the journal's database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventstore import schema
from eventstore.url import StoreUrl

from .conftest import OpenDatabase

CHECKOUT = Path(schema.__file__).parent.parent


def alembic(*arguments: str, ini: Path = CHECKOUT / "alembic.ini", **variables: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "EVENTSTORE_URL"} | variables
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "alembic", "-c", str(ini), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=ini.parent,
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


def test_autogenerate_sees_no_difference_and_ignores_the_users_tables(url: StoreUrl, database: OpenDatabase) -> None:
    schema.upgrade(url)
    with database() as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("CREATE TABLE journal_entries (name TEXT)")
    code, output = alembic("-x", f"url={url.raw}", "check")
    assert code == 0, output
    assert "No new upgrade operations detected" in output


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_the_users_own_alembic_works_in_the_same_database(
    url: StoreUrl, path: Path, database: OpenDatabase, users_project: Path, first: str
) -> None:
    if first == "ours":
        schema.upgrade(url)
    code, output = alembic("upgrade", "head", ini=users_project)
    assert code == 0, output
    schema.upgrade(url)
    with database() as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("theirs",)]
        assert connection.execute("SELECT version_num FROM eventstore_version").fetchall() == [(schema.head(),)]
    code, output = alembic("downgrade", "base", ini=users_project)
    assert code == 0, output
    assert schema.check(url).is_current


@pytest.fixture
def users_project(tmp_path: Path, path: Path) -> Path:
    """Another Alembic project over the same file; its alembic.ini."""
    scripts = tmp_path / "project" / "scripts"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(
        "from alembic import context\n"
        "from sqlalchemy import create_engine\n"
        f"engine = create_engine('sqlite:///{path}')\n"
        "with engine.connect() as connection:\n"
        "    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n"
        "        context.run_migrations()\n"
        "engine.dispose()\n"
    )
    (scripts / "versions" / "theirs.py").write_text(
        "from alembic import op\n"
        "revision, down_revision = 'theirs', None\n"
        "def upgrade(): op.execute('CREATE TABLE customers (name TEXT)')\n"
        "def downgrade(): op.execute('DROP TABLE customers')\n"
    )
    ini = tmp_path / "project" / "alembic.ini"
    ini.write_text("[alembic]\nscript_location = %(here)s/scripts\n")
    return ini
