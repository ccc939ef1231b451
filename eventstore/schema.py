"""The journal's tables in a database: their revision, and bringing them to this version's."""

from __future__ import annotations

import errno
import io
import os
import sqlite3
import stat
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from eventstore.errors import (
    BackendUnavailable,
    CapabilityError,
    DurabilityError,
    EventStoreError,
    InvalidStoreUrl,
    JournalCorrupt,
    SchemaError,
    StorageFull,
    StoreBusy,
)
from eventstore.url import SQLITE_PARAMETERS, StoreUrl

_VERSION_TABLE = "eventstore_version"
_DIALECTS = {"sqlite": "sqlite"}
_BUSY_SECONDS = 30.0

# Alembic keeps the running migration in module globals, so two threads must not migrate at once.
_alembic = threading.Lock()


class SchemaState(NamedTuple):
    """What a database's journal is, against this version's.

    `found` is its revision, None where there is no journal; `pending` what `upgrade` would run, in order.
    """

    found: str | None
    expected: str
    pending: tuple[str, ...]

    @property
    def is_current(self) -> bool:
        return self.found == self.expected

    @property
    def is_newer(self) -> bool:
        """The revision is not one this version knows: a later release has migrated the database."""
        return self.found is not None and not self.is_current and not self.pending


def upgrade(url: StoreUrl, revision: str = "head") -> None:
    """Bring the database's journal to a revision, in one transaction: a crash leaves what was, or the whole.

    A SQLite file that does not exist is created, readable by its owner alone, in a directory that must exist.
    Other tables in the database are left alone. Where the journal is this version's already, nothing is done.
    Another process that is upgrading is waited for.

    Raises `SchemaError` for a newer journal, for a file that is no database and for one whose own tables bear
    the journal's names; `InvalidStoreUrl`, `BackendUnavailable` (`StoreBusy`, `StorageFull`) or `JournalCorrupt`
    where it cannot be used. The journal is then what it was, or whole: running this again is safe.
    """
    if _checked(check(url), url).is_current:
        return
    with _alembic, transaction(url) as connection:
        # Read again: whoever held the lock before may have changed it.
        if _checked(_state(connection), url).is_current:
            return
        config = _config()
        config.attributes["connection"] = connection
        with _own_errors(url):
            command.upgrade(config, revision)


def check(url: StoreUrl) -> SchemaState:
    """The state of the database's journal. Changes nothing, and creates no file.

    Raises `SchemaError` for a file that is no database, and as `upgrade` does where it cannot be read.
    """
    path = _database_file(url)
    if not path.exists():
        return _state(None)
    with _connected(url, path, mode="ro") as connection:
        return _state(connection)


def current(url: StoreUrl) -> str | None:
    """The revision of the database's journal; None where there is none. Raises as `check` does."""
    return check(url).found


def head() -> str:
    """The revision this version expects."""
    return _revisions()[-1]


def sql(url: StoreUrl, revision: str = "head") -> str:
    """The SQL that makes the journal in an empty database, for someone else to run. No database is opened."""
    dialect_of(url)
    text = io.StringIO()
    config = _config(text)
    config.attributes["url"] = url
    with _alembic, _own_errors(url):
        command.upgrade(config, revision, sql=True)
    return text.getvalue()


def dialect_of(url: StoreUrl) -> str:
    """SQLAlchemy's name for the database. Raises `CapabilityError` for a store that has no tables."""
    if url.scheme not in _DIALECTS:
        raise CapabilityError(f"{url.scheme}:// stores have no tables: there is nothing to migrate")
    return _DIALECTS[url.scheme]


@contextmanager
def transaction(url: StoreUrl) -> Generator[Connection]:
    """The one transaction a migration runs in, committed when the block ends; a missing file is created.

    It holds the database's write lock from the start. For `migrations/env.py`: use `upgrade`.
    """
    path = _database_file(url)
    _create_file(path, url)
    with _connected(url, path, mode="rw") as connection:
        _switch_to_wal(connection, url)
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
        connection.commit()


def _config(output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output)
    # ConfigParser reads % as the start of an interpolation.
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    return config


def _scripts() -> Path:
    package = Path(__file__).parent
    # In a wheel they stand inside the package, in a checkout beside it.
    for folder in (package / "migrations", package.parent / "migrations"):
        if (folder / "versions" / "0001_journal.py").is_file():
            return folder
    raise EventStoreError(f"the migrations are missing from {package}: install eventstore-actors again")


def _revisions() -> tuple[str, ...]:
    walk = ScriptDirectory.from_config(_config()).walk_revisions()
    return tuple(reversed([script.revision for script in walk]))


def _state(connection: Connection | None) -> SchemaState:
    found: str | None = None
    if connection is not None:
        heads = MigrationContext.configure(connection, opts={"version_table": _VERSION_TABLE}).get_current_heads()
        found = ", ".join(sorted(heads)) or None
    revisions = _revisions()
    if found is None:
        pending = revisions
    elif found in revisions:
        pending = revisions[revisions.index(found) + 1 :]
    else:
        pending = ()
    return SchemaState(found, revisions[-1], pending)


def _checked(state: SchemaState, url: StoreUrl) -> SchemaState:
    if state.is_newer:
        raise SchemaError(
            f"{url}: the journal has schema revision {state.found}, this version expects {state.expected}: "
            "install the eventstore-actors release that made it; a journal is never downgraded",
            found=state.found,
            expected=state.expected,
        )
    return state


def _database_file(url: StoreUrl) -> Path:
    """The path of the URL's file, which is a regular file or missing, in a directory that exists."""
    dialect_of(url)
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
        for pragma in (
            "trusted_schema=OFF",
            "cell_size_check=ON",
            "synchronous=FULL",
            "wal_autocheckpoint=0",
        ):
            connection.execute(f"PRAGMA {pragma}")
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
        raise SchemaError(f"{url}: {error}", found=None, expected=head()) from error


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
                expected=head(),
            )
        case _:
            return BackendUnavailable(f"{url} cannot be used: {error}")


def _not_a_database(url: StoreUrl) -> SchemaError:
    return SchemaError(f"{url} is not a SQLite database, or is encrypted", found=None, expected=head())


def _file_error(error: OSError, url: StoreUrl) -> EventStoreError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StorageFull(f"{url}: the disk is full ({error})")
        case errno.ENAMETOOLONG | errno.ENOTDIR | errno.ELOOP:
            return InvalidStoreUrl(f"{url}: {error}")
        case _:
            return BackendUnavailable(f"{url} cannot be used: {error}")
