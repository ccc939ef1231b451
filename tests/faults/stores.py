"""An empty store of each kind for a test, under the URL that other processes open it by."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
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

MakeStore = Callable[[], AbstractContextManager[str]]


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


def assert_together(attempt: Callable[[str, Path], bool], make_store: MakeStore, folder: Path) -> None:
    """Try with one new store after another until several were at work at the same time, which an attempt tells.

    Where the machine lets one run behind another, they do not get in each other's way.
    """
    for number in range(10):
        with make_store() as url:
            if attempt(url, new_folder(folder, number)):
                return
    pytest.fail("they were never at work at the same time")


def new_folder(folder: Path, number: int) -> Path:
    new = folder / f"{number}"
    new.mkdir()
    return new


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
