"""The standard library's `sqlite3`, as far as this project uses it, on APSW's SQLite: the same statements and pragmas
go through file operations that a test can see."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

import apsw

_CHANGES = ("INSERT", "UPDATE", "DELETE", "REPLACE")
_ERRORS: dict[type[apsw.Error], type[sqlite3.Error]] = {
    apsw.ConstraintError: sqlite3.IntegrityError,
    apsw.CorruptError: sqlite3.DatabaseError,
    apsw.NotADBError: sqlite3.DatabaseError,
}


@contextmanager
def apsw_instead(vfs: str, *, pages_to_a_checkpoint: int | None = None) -> Generator[None]:
    """Every connection that is opened inside, by the product or a library that it uses, is one on this VFS.

    With `pages_to_a_checkpoint` the log is written back more often, or more rarely, than SQLite does by itself.
    """

    def connect(database: str, *, timeout: float = 5.0, **_: object) -> Connection:
        connection = Connection(database, vfs, timeout)
        if pages_to_a_checkpoint is not None:
            connection.apsw.wal_autocheckpoint(pages_to_a_checkpoint)
        return connection

    with patch.object(sqlite3, "connect", connect):
        yield


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except apsw.Error as error:
        translated = _ERRORS.get(type(error), sqlite3.OperationalError)(str(error))
        code = getattr(error, "extendedresult", apsw.SQLITE_ERROR)
        translated.sqlite_errorcode = code
        name = apsw.mapping_extended_result_codes.get(code) or apsw.mapping_result_codes.get(code & 0xFF)
        translated.sqlite_errorname = str(name or "SQLITE_ERROR")
        raise translated from error


class Cursor:
    """All rows are fetched at once, so that no statement is left open."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: Iterator[Any] = iter(())
        self.description: Sequence[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        connection = self._connection.apsw
        with _translated():
            cursor = connection.cursor()
            columns: Sequence[tuple[str, str]] = ()

            def trace(tracing: apsw.Cursor, _: str, __: object) -> bool:
                nonlocal columns
                columns = tracing.get_description()
                return True

            cursor.exec_trace = cast("Any", trace)
            rows = cursor.execute(sql, parameters).fetchall()
        if self._connection.text_factory is bytes:
            rows = [tuple(value.encode() if isinstance(value, str) else value for value in row) for row in rows]
        self._rows = iter(rows)
        self.description = [(name, None, None, None, None, None, None) for name, *_ in columns] or None
        if sql.lstrip().upper().startswith(_CHANGES):
            self.rowcount = connection.changes()
            self.lastrowid = connection.last_insert_rowid()
        return self

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def fetchmany(self, size: int = 1) -> list[Any]:
        return [row for row, _ in zip(self._rows, range(size), strict=False)]

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def close(self) -> None:
        self._rows = iter(())


class Connection:
    def __init__(self, database: str, vfs: str, timeout: float) -> None:
        # Whether it may write is told by the URI.
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
        self._is_read_only = database.endswith("mode=ro")
        with _translated():
            self.apsw = apsw.Connection(database, flags=flags, vfs=vfs)
            self.apsw.set_busy_timeout(int(timeout * 1000))
        self.isolation_level = None
        self.row_factory = None
        self.text_factory = str

    def execute(self, sql: str, parameters: Any = ()) -> Cursor:
        return Cursor(self).execute(sql, parameters)

    def cursor(self) -> Cursor:
        return Cursor(self)

    def setlimit(self, category: int, limit: int) -> int:
        return self.apsw.limit(category, limit)

    def create_function(self, name: str, arguments: int, function: Any, *, deterministic: bool = False) -> None:
        self.apsw.create_scalar_function(name, function, arguments, deterministic=deterministic)

    @property
    def in_transaction(self) -> bool:
        return self.apsw.in_transaction

    @property
    def total_changes(self) -> int:
        return self.apsw.total_changes()

    def commit(self) -> None:
        if self.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        if self.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        with _translated():
            try:
                self.apsw.close()
            except apsw.IOError as error:
                # A file that was opened for reading alone cannot be locked for a checkpoint. SQLite closes without
                # one then; APSW tells of every error below it, also of one that was dealt with.
                if getattr(error, "extendedresult", 0) != apsw.SQLITE_IOERR_LOCK or not self._is_read_only:
                    raise
