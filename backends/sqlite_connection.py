"""Opening a SQLite file: one hardened way for the writer and one for readers, and SQLite's errors as ours."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from backends.tables import SCHEMA_REVISION
from eventstore.errors import (
    BackendUnavailable,
    EventStoreError,
    InvalidStoreUrl,
    JournalCorrupt,
    OutcomeUnknown,
    SchemaError,
    SchemaMissing,
    StorageFull,
    StoreBusy,
    StoreFenced,
)

_Connection = TypeVar("_Connection", bound=sqlite3.Connection)

# What a hostile file could smuggle in (functions called by its views and triggers, malformed cells) is refused,
# and no other file can be attached to the connection.
HARDENING = ("PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")
# Without it, a REPLACE deletes rows behind the back of the triggers that protect events.
_WRITING = "PRAGMA recursive_triggers = ON"
_OLDEST_SQLITE = (3, 38, 0)
_TRIGGERS = frozenset(
    {"journal_events_no_update", "journal_events_no_delete", "journal_seals_no_update", "journal_seals_no_delete"}
)

FENCE = "journal_fence_"
"""What the names of the triggers begin with that keep everybody from adding to a journal."""
FENCED = "eventstore fence: "
"""What their errors begin with. The reason follows."""


def connect_writer(path: Path, *, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    """The connection that writes and checkpoints: one per file and process. The file must exist."""
    return connect_for_writing(path, sqlite3.Connection, synchronous=synchronous, busy_timeout=busy_timeout)


def connect_for_writing(
    path: Path, factory: type[_Connection], *, synchronous: str, busy_timeout: float
) -> _Connection:
    """A connection of a class that writes. The file must exist."""
    connection = sqlite3.connect(
        _uri(path, "rw"),
        uri=True,
        isolation_level=None,
        timeout=busy_timeout,
        check_same_thread=False,
        cached_statements=64,
        factory=factory,
    )
    try:
        for pragma in (*HARDENING, _WRITING):
            connection.execute(pragma)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise BackendUnavailable(
                f"{path} cannot be put into WAL mode (it is in {mode}): use a local file system, not a network one"
            )
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    except BaseException:
        connection.close()
        raise
    return connection


def read_only_uri(path: Path) -> str:
    """The URI that opens a file for reading alone."""
    return _uri(path, "ro")


def inspect(path: Path, *, busy_timeout: float) -> str:
    """The journal's revision, found without writing a byte: what is no journal of ours is left as it is."""
    try:
        connection = sqlite3.connect(read_only_uri(path), uri=True, isolation_level=None, timeout=busy_timeout)
        try:
            for pragma in HARDENING:
                connection.execute(pragma)
            return check_schema(connection, path)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise translated(error, writing=False, path=path) from error


def check_schema(connection: sqlite3.Connection, path: Path) -> str:
    """The journal's revision. Raises `SchemaMissing` or `SchemaError` for anything but this version's journal."""
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    found = None
    if "eventstore_version" in tables:
        row = connection.execute("SELECT version_num FROM eventstore_version").fetchone()
        found = None if row is None else str(row[0])
    if found is None:
        if not tables:
            raise SchemaMissing(f"{path} is empty", found=None, expected=SCHEMA_REVISION)
        raise SchemaError(
            f"{path} is a database of something else: it has tables, and no journal. To keep a journal "
            f"beside them, run: eventstore migrate sqlite:///{path}",
            found=None,
            expected=SCHEMA_REVISION,
        )
    if found != SCHEMA_REVISION:
        remedy = (
            f"run: eventstore migrate sqlite:///{path}"
            if found < SCHEMA_REVISION
            else "it was written by a newer version of this package: upgrade the package"
        )
        raise SchemaError(
            f"{path} has a journal of schema revision {found}, this version needs {SCHEMA_REVISION}; {remedy}",
            found=found,
            expected=SCHEMA_REVISION,
        )
    triggers: frozenset[str] = frozenset(
        str(row[0])
        for row in connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name LIKE 'journal\\_%' ESCAPE '\\'"
        )
    )
    triggers = frozenset(name for name in triggers if not name.startswith(FENCE))
    if triggers != _TRIGGERS:
        raise SchemaError(
            f"{path}: the journal's triggers are not those of this version "
            f"(missing: {sorted(_TRIGGERS - triggers) or 'none'}, foreign: {sorted(triggers - _TRIGGERS) or 'none'}); "
            "do not trust this file before it is known who changed it",
            found=found,
            expected=SCHEMA_REVISION,
        )
    return found


def translated(error: sqlite3.Error, *, writing: bool, path: Path | None = None) -> EventStoreError:
    """A driver's error as ours; with a `path` it names the file. While `writing`, trouble with the disk leaves the
    outcome unknown."""
    if (fence := fence_of(error)) is not None:
        return StoreFenced("", fence)
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    reason = f"SQLite: {error} ({name})"
    if name == "SQLITE_IOERR_SHMSIZE":
        name = "SQLITE_FULL"  # The shared-memory file could not grow: the disk is full there too.
    match name.split("_")[1] if name.startswith("SQLITE_") else name:
        case "BUSY" | "LOCKED" | "PROTOCOL":
            return StoreBusy(f"another process held the write lock for the whole busy timeout; {reason}")
        case "FULL":
            return StorageFull(f"the disk is full: free some space; {reason}")
        case "IOERR":
            return OutcomeUnknown(reason) if writing else BackendUnavailable(reason)
        case "NOTADB":
            return SchemaError(
                f"{path or 'the file'} is not a SQLite database: name another file; {reason}",
                found=None,
                expected=SCHEMA_REVISION,
            )
        case "CORRUPT":
            return JournalCorrupt(f"{path or 'the database file'} is damaged: restore it from a copy; {reason}")
        case _:
            return BackendUnavailable(reason)


def fence_of(error: BaseException) -> str | None:
    """Why the journal is fenced, if that is what has refused a statement."""
    text = str(error)
    is_fence = isinstance(error, sqlite3.IntegrityError) and text.startswith(FENCED)
    return text.removeprefix(FENCED) if is_fence else None


def thread_missing(error: RuntimeError) -> BackendUnavailable:
    """Python starts no more threads, and SQLite is used in threads of its own."""
    return BackendUnavailable(f"a thread that SQLite needs was not started, nothing was done: {error}")


def is_about_data(error: BaseException) -> bool:
    """Whether a statement failed on what a row holds, such as bytes that are no text, not on the database."""
    name = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
    return isinstance(error, sqlite3.Error) and name == "SQLITE_ERROR"


def check_library() -> None:
    """Refuse a SQLite library that lacks what the journal's statements use."""
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise BackendUnavailable(
            f"this Python's SQLite library is {sqlite3.sqlite_version}; the journal needs at least "
            f"{'.'.join(str(part) for part in _OLDEST_SQLITE)} (for its JSON operators)"
        )


def check_file(path: Path) -> None:
    """Refuse, with a clear error, what cannot be a database file; a file that is not there is none yet."""
    try:
        if path.is_dir():
            raise InvalidStoreUrl(f"{path} is a directory: name a file in it")
        if not path.parent.is_dir():
            raise InvalidStoreUrl(f"the directory {path.parent} does not exist: create it first")
        # SQLite takes the file for a new one and removes the log, and with it what was acknowledged last.
        if _size(Path(f"{path}-wal")) and not _size(path):
            raise JournalCorrupt(
                f"{path} is {'empty' if path.exists() else 'gone'}, and its log {path.name}-wal is not: nothing was "
                "changed; put the file back that the log belongs to, or move the log away to begin a new journal"
            )
        if not path.exists():
            raise SchemaMissing(f"{path} does not exist", found=None, expected=SCHEMA_REVISION)
    except PermissionError as error:
        raise BackendUnavailable(f"{path.parent} cannot be entered by this user: change its permissions") from error
    if not os.access(path, os.R_OK | os.W_OK):
        raise BackendUnavailable(f"{path} cannot be read and written by this user: change its permissions")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(str(path))}?mode={mode}"
