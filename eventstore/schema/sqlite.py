"""The schema of a journal in a SQLite file."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from eventstore.errors import (
    BackendUnavailable,
    DurabilityError,
    EventStoreError,
    InvalidStoreUrl,
    JournalCorrupt,
    SchemaError,
    StorageFull,
    StoreBusy,
)
from eventstore.schema import scripts
from eventstore.schema.scripts import OfflineOptions
from eventstore.url import SQLITE_PARAMETERS, StoreUrl

_T = TypeVar("_T")
_BUSY_SECONDS = 30.0


class SQLiteSchema:
    """A `SchemaTool`, and what `migrations/env.py` needs beyond it."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url

    @property
    def revisions(self) -> Sequence[str]:
        return scripts.revisions()

    def check(self) -> str | None:
        # A file that does not exist has no journal, and is not created.
        path = _database_file(self._url)
        if not path.exists():
            return None
        with _connected(self._url, path, mode="ro") as connection:
            return scripts.found_in(connection)

    def upgrade(self, revision: str) -> None:
        self.in_transaction(lambda connection: scripts.run_on(connection, revision, self._url))

    def sql(self, revision: str) -> str:
        with _own_errors(self._url):
            return scripts.text_for(revision, **self.offline_options())

    def offline_options(self) -> OfflineOptions:
        """What it takes to write SQL."""
        return OfflineOptions(dialect="sqlite", schema=None)

    def in_transaction(self, work: Callable[[Connection], _T]) -> _T:
        """Do something to the database in one transaction that holds its write lock from the start.

        A missing file is created. The transaction is committed when the work is done.
        """
        path = _database_file(self._url)
        _create_file(path, self._url)
        with _connected(self._url, path, mode="rw") as connection:
            _switch_to_wal(connection, self._url)
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            result = work(connection)
            connection.commit()
        return result


def _database_file(url: StoreUrl) -> Path:
    """The path of the URL's file, which is a regular file or missing, in a directory that exists."""
    try:
        path = url.file_path(parameters=SQLITE_PARAMETERS)
        if not path.parent.is_dir():
            raise InvalidStoreUrl(f"{url}: the directory {path.parent} does not exist; create it first")
        if path.is_dir():
            raise InvalidStoreUrl(f"{url}: {path} is a directory; name a file in it")
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise InvalidStoreUrl(f"{url}: {path} is not a regular file")
        # SQLite takes a file of one byte for an empty one, and would write over it.
        if path.exists() and path.stat().st_size == 1:
            raise _not_a_database(url)
    except OSError as error:
        raise _file_error(error, url) from error
    return path


def _create_file(path: Path, url: StoreUrl) -> None:
    # SQLite would create it readable for everyone. Its side files get the modes of this one.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise _file_error(error, url) from error


@contextmanager
def _connected(url: StoreUrl, path: Path, *, mode: str) -> Generator[Connection]:
    def connect() -> sqlite3.Connection:
        # isolation_level=None: this module alone begins and commits. No checkpoints: they are left to the store
        # that may have the file open, because two connections that checkpoint can corrupt it (SQLite before 3.51.3).
        uri = f"file://{quote(os.fsencode(path))}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            for pragma in (
                "trusted_schema=OFF",
                "cell_size_check=ON",
                "synchronous=FULL",
                "wal_autocheckpoint=0",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=NullPool)
    with _own_errors(url), engine.connect() as connection:
        yield connection


def _switch_to_wal(connection: Connection, url: StoreUrl) -> None:
    # SQLite does not wait its busy timeout when two processes switch at the same moment: measured with eight,
    # one in a hundred was refused at once.
    retrying = Retrying(
        retry=retry_if_exception_type(StoreBusy),
        stop=stop_after_delay(_BUSY_SECONDS),
        wait=wait_random_exponential(multiplier=0.01, max=0.5),
        reraise=True,
    )
    for attempt in retrying:
        with attempt, _own_errors(url):
            mode = connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar_one()
            if mode != "wal":
                raise DurabilityError(f"{url}: the file cannot be used in WAL mode (it stays in {mode} mode)")


@contextmanager
def _own_errors(url: StoreUrl) -> Generator[None]:
    """Turn the driver's and Alembic's errors into this package's."""
    try:
        yield
    except DBAPIError as error:
        raise _database_error(error.orig, url) from error
    except CommandError as error:
        raise SchemaError(f"{url}: {error}", found=None, expected=scripts.revisions()[-1]) from error


def _database_error(error: BaseException | None, url: StoreUrl) -> EventStoreError:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code == sqlite3.SQLITE_IOERR_SHMSIZE:
        # No room for the WAL's index: SQLite says only "disk I/O error".
        code = sqlite3.SQLITE_FULL
    # The low byte is the kind; the rest tells where it came from.
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
            return StoreBusy(f"{url}: another process is writing ({error}); nothing was changed, try again")
        case sqlite3.SQLITE_FULL:
            return StorageFull(f"{url}: the disk is full ({error}); nothing was changed")
        case sqlite3.SQLITE_NOTADB:
            return _not_a_database(url)
        case sqlite3.SQLITE_CORRUPT:
            return JournalCorrupt(f"{url} is damaged: restore it from a copy ({error})")
        case sqlite3.SQLITE_ERROR:
            return SchemaError(
                f"{url}: {error}; does the database hold tables of its own by the journal's names?",
                found=None,
                expected=scripts.revisions()[-1],
            )
        case _:
            return BackendUnavailable(f"{url} cannot be used: {error}")


def _not_a_database(url: StoreUrl) -> SchemaError:
    return SchemaError(f"{url} is not a SQLite database, or is encrypted", found=None, expected=scripts.revisions()[-1])


def _file_error(error: OSError, url: StoreUrl) -> EventStoreError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StorageFull(f"{url}: the disk is full ({error})")
        case errno.ENAMETOOLONG | errno.ENOTDIR | errno.ELOOP:
            return InvalidStoreUrl(f"{url}: {error}")
        case _:
            return BackendUnavailable(f"{url} cannot be used: {error}")
