"""The tables are written down twice, for statements and as migrations; both are the same."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, NullPool, create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from backends.tables import SCHEMA_REVISION, VERSION_TABLE, journal_events, metadata
from eventstore import schema
from eventstore.url import StoreUrl


@pytest.fixture
def migrated(url: StoreUrl, path: Path) -> Iterator[Engine]:
    schema.upgrade(url)
    engine = create_engine(f"sqlite+pysqlite:///{path}", poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
@pytest.mark.filterwarnings("ignore:autogenerate skipping metadata-specified expression-based index")
def test_alembic_finds_no_difference_between_the_tables_and_the_migrations(migrated: Engine) -> None:
    with migrated.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_the_tables_and_the_migrations_make_the_same_sql(migrated: Engine, tmp_path: Path) -> None:
    created = create_engine(f"sqlite+pysqlite:///{tmp_path}/created.db", poolclass=NullPool)
    metadata.create_all(created)
    assert tables_and_indexes(migrated) == tables_and_indexes(created)


def test_the_revision_is_the_newest_migration() -> None:
    assert schema.head() == SCHEMA_REVISION


def test_the_version_table_is_the_journals_own(migrated: Engine, path: Path) -> None:
    assert (VERSION_TABLE,) in master(path, "SELECT name FROM sqlite_master")
    assert master(path, f"SELECT version_num FROM {VERSION_TABLE}") == [(SCHEMA_REVISION,)]


def test_positions_and_times_hold_64_bits_on_every_database() -> None:
    sql = str(CreateTable(journal_events).compile(dialect=postgresql.dialect()))
    assert "position BIGSERIAL" in sql
    assert "recorded_at BIGINT" in sql


def tables_and_indexes(engine: Engine) -> dict[str, str]:
    rows = master(
        Path(engine.url.database or ""),
        "SELECT name, sql FROM sqlite_master WHERE type IN ('table', 'index') AND name LIKE '%journal_%' "
        "AND sql IS NOT NULL",
    )
    return {name: re.sub(r"\s+", " ", sql).replace("( ", "(").replace(" )", ")") for name, sql in rows}


def master(path: Path, query: str) -> list[tuple[str, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()
