"""What the schema's tests share: a file to put a journal in, and a plain connection to look at it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from eventstore import schema
from eventstore.url import StoreUrl, parse_store_url

OpenDatabase = Callable[[], AbstractContextManager[sqlite3.Connection]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def url(path: Path) -> StoreUrl:
    return parse_store_url(f"sqlite:///{path}")


@pytest.fixture
def database(path: Path) -> OpenDatabase:
    """Opens the file, with the driver's defaults, as any program could."""
    return lambda: closing(sqlite3.connect(path, isolation_level=None))


@pytest.fixture
def journal(url: StoreUrl, database: OpenDatabase) -> Iterator[sqlite3.Connection]:
    """A connection to a new journal with one stream of three events."""
    schema.upgrade(url)
    with database() as connection:
        connection.execute("INSERT INTO journal_streams (stream_id, kind, created_at) VALUES ('a-1', 'a', 1)")
        for version in (1, 2, 3):
            insert_event(connection, version)
        yield connection


def insert_event(connection: sqlite3.Connection, version: int, *, verb: str = "INSERT", type: str = "t") -> None:
    connection.execute(
        f"{verb} INTO journal_events "
        "(stream, version, type, schema_version, payload, event_id, checksum, recorded_at) "
        "VALUES (1, ?, ?, 1, '{}', ?, 0, 1)",
        (version, type, version.to_bytes(16, "big")),
    )
