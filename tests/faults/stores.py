"""An empty store of each kind for a test, under the URL that other processes open it by."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from eventstore import schema
from eventstore.url import parse_store_url
from tests.faults.journals import sqlite_url
from tests.servers.databases import Databases
from tests.servers.keyspaces import Keyspaces

KINDS = ("sqlite", "postgres", "redis")


def new_store(kind: str, request: pytest.FixtureRequest, folder: Path) -> AbstractContextManager[str]:
    """A store that exists as long as the block; a server is shared with other tests."""
    if kind == "postgres":
        databases: Databases = request.getfixturevalue("databases")
        return databases.migrated()
    if kind == "redis":
        keyspaces: Keyspaces = request.getfixturevalue("keyspaces")
        return keyspaces.migrated()
    return _file(folder)


@contextmanager
def _file(folder: Path) -> Generator[str]:
    path = folder / "vaults.db"
    schema.upgrade(parse_store_url(sqlite_url(path)))
    yield sqlite_url(path)
    for file in folder.glob("vaults.db*"):
        file.unlink()


def is_locked(url: str) -> bool:
    """Whether somebody holds the write lock of an SQLite file at this moment; False for a server."""
    if not url.startswith("sqlite:"):
        return False
    with closing(sqlite3.connect(urlsplit(url).path[1:], timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return True
    return False
