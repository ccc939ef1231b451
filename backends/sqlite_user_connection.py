"""UserConnection: statements of the user's own run on it, inside a transaction that is not theirs to end."""

from __future__ import annotations

import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self, cast

from backends.sqlite_append import SQLiteAppend
from backends.sqlite_connection import connect_for_writing
from eventstore.errors import CapabilityError, EventStoreError, TransactionRefused

_INTERRUPT_SECONDS = 0.01

# Behind each of the user's statements: a comment in a line of its own.
_OF_USER = "\n--"

_READING = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
    | {sqlite3.SQLITE_SAVEPOINT, sqlite3.SQLITE_ANALYZE, sqlite3.SQLITE_REINDEX}
)
_FORBIDDEN = frozenset({sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH})
_ASKING_PRAGMAS = frozenset(
    {"foreign_key_check", "foreign_key_list", "index_info", "index_list", "index_xinfo", "integrity_check"}
    | {"quick_check", "table_info", "table_list", "table_xinfo"}
)

# How tables are renamed: none of the journal's is. A rebuild puts tables in the place of others that views are made of.
_HARMLESS_PRAGMAS = frozenset({"legacy_alter_table"})


class _Ignored:
    """An attribute that is None, whatever it is set to."""

    def __get__(self, instance: object, owner: object) -> None:
        return None

    def __set__(self, instance: object, value: object) -> None:
        pass


class Tenure:
    """The time that one transaction has a connection. Once it is over there is a `refusal`, for whoever comes late."""

    __slots__ = ("refusal",)

    def __init__(self) -> None:
        self.refusal: Callable[[], EventStoreError] | None = None


class UserConnection(sqlite3.Connection):
    """It is used in two threads, never at once: a statement holds the gate, and so does whoever ends the transaction.
    One transaction may use it after another.

    SQLAlchemy commits and rolls back at times of its own. Here that does nothing; only the journal's own SQL does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gate = threading.RLock()
        self._is_ours = True
        self._is_for_checkpoints = False
        self._functions: dict[tuple[str, int], tuple[Any, dict[str, Any]]] = {}
        self.tenure = Tenure()
        self._cursors: weakref.WeakSet[UserCursor] = weakref.WeakSet()

    def hand_over(self) -> Tenure:
        """From now on the statements are the user's, until the tenure ends."""
        self.tenure = Tenure()
        self._is_ours = False
        return self.tenure

    def reclaim(self) -> None:
        """The statements are the journal's, until it is handed over to the next transaction."""
        with self._gate:
            self._is_ours = True

    def is_idle(self) -> bool:
        """Whether no statement is under way, and nobody is ending the transaction."""
        if not self._gate.acquire(blocking=False):
            return False
        self._gate.release()
        return True

    @contextmanager
    def during(self, tenure: Tenure) -> Generator[None]:
        """Around whatever a transaction does with the connection. Raises the refusal once its time is over."""
        with self._gate:
            if tenure.refusal is not None:
                raise tenure.refusal()
            yield

    @contextmanager
    def for_checkpoints(self) -> Generator[None]:
        """Where the backend changes a checkpoint, between the user's own statements. None of these run meanwhile."""
        self._is_for_checkpoints = True
        try:
            yield
        finally:
            self._is_for_checkpoints = False

    @contextmanager
    def lent_back(self) -> Generator[None]:
        """Where the statements are the journal's for a moment. The user's wait meanwhile."""
        with self._gate:
            self._check()
            rows, texts = self.row_factory, self.text_factory
            self._be_ours()
            try:
                yield
            finally:
                self.row_factory, self.text_factory = rows, texts
                self._is_ours = False

    @contextmanager
    def taken_back(self, refusal: Callable[[], EventStoreError], *, patience: float) -> Generator[bool]:
        """Where the statements are the journal's again. The user's are refused from now on.

        One that is under way is waited for, and after so many seconds interrupted: that is what is given.
        """
        self.tenure.refusal = refusal
        deadline = time.monotonic() + patience
        is_interrupted = False
        while not self._gate.acquire(timeout=_INTERRUPT_SECONDS):
            if time.monotonic() >= deadline:
                self.interrupt()
                is_interrupted = True
        try:
            self._be_ours()
            # One that was not read to its end would go on reading what the file held then.
            for cursor in self._cursors:
                cursor.close()
            self._cursors.clear()
            yield is_interrupted
        finally:
            self._is_ours = False
            self._gate.release()

    @contextmanager
    def statement(self) -> Generator[None]:
        """Around whatever the user's statements do in SQLite."""
        with self._gate:
            self._check()
            try:
                yield
            except sqlite3.Error as error:
                if self._is_ours:
                    raise
                if self.tenure.refusal is not None:
                    raise self.tenure.refusal() from error
                if getattr(error, "sqlite_errorname", "") == "SQLITE_AUTH":
                    raise CapabilityError(
                        "this statement was not executed: the user's own SQL may neither change the journal nor end "
                        "the transaction that it shares with events"
                    ) from error
                raise

    def cursor(self, factory: Any = None) -> Any:
        with self._gate:
            self._check()
            cursor: UserCursor = super().cursor(UserCursor)
            if not self._is_ours:
                self._cursors.add(cursor)
            return cursor

    def close(self) -> None:
        """For SQLAlchemy and the user, nothing: who ends the transaction closes it, with the file's lock held."""
        if self._is_ours:
            super().close()

    def commit(self) -> None:
        pass

    def rollback(self) -> None:
        pass

    # To set it is to commit, for the driver. The property hides the driver's own from SQLAlchemy.
    isolation_level: Any = _Ignored()

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        # The driver's own makes a cursor that nobody watches.
        return super().execute(sql, parameters) if self._is_ours else self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        return super().executemany(sql, parameters) if self._is_ours else self.cursor().executemany(sql, parameters)

    def create_function(self, name: str, narg: int, func: Any, **options: Any) -> None:
        """SQLAlchemy makes the same ones for each transaction, and with each SQLite prepares every statement anew."""
        key, made = (name.lower(), narg), (func, options)
        if self._functions.get(key) != made:
            super().create_function(name, narg, func, **options)
            self._functions[key] = made

    def set_authorizer(self, authorizer_callback: Any) -> None:
        """Refused: there is one, and it stays. To set one makes SQLite prepare every statement anew."""
        raise CapabilityError("nothing was done: this connection has an authorizer, which keeps the journal's tables")

    def keep_journal(self) -> None:
        """From now on statements that are prepared for the user change nothing of the journal."""
        super().set_authorizer(self._authorize)

    def prepared_as(self, sql: str) -> str:
        """The text that a statement is prepared by. Statements are kept by their text, with what they may do: one of
        the user's must not be taken for one of the journal's, though it says the same."""
        return sql if self._is_ours or self._is_for_checkpoints else sql + _OF_USER

    def _be_ours(self) -> None:
        self._is_ours = True
        # What the user may have set.
        self.row_factory = None
        self.text_factory = str

    def _check(self) -> None:
        if self._is_ours:
            return
        if self.tenure.refusal is not None:
            raise self.tenure.refusal()
        if not self.in_transaction:
            # The next statement would be committed by itself.
            raise TransactionRefused(
                "an error of an earlier statement has made SQLite roll back the whole transaction: nothing of it was "
                "stored"
            )

    def _authorize(
        self, action: int, first: str | None, second: str | None, database: str | None, _: str | None
    ) -> int:
        if self._is_ours or action in _READING or (self._is_for_checkpoints and first == "journal_checkpoints"):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_PRAGMA:
            is_allowed = second is None or (first or "").lower() in _ASKING_PRAGMAS | _HARMLESS_PRAGMAS
        elif action == sqlite3.SQLITE_ALTER_TABLE:
            # A temporary table that gets one of the journal's names would stand before it.
            is_allowed = (first or "").lower() != "temp" and not _is_of_journal(second)
        else:
            is_allowed = action not in _FORBIDDEN and not (_is_of_journal(first) or _is_of_journal(second))
        return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


class UserCursor(sqlite3.Cursor):
    """Every call goes through the connection's gate."""

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        with self._statement():
            return super().execute(self._connection.prepared_as(sql), parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        with self._statement():
            return super().executemany(self._connection.prepared_as(sql), parameters)

    def executescript(self, sql_script: str, /) -> Self:
        raise CapabilityError("a script commits what is under way: nothing was done; execute its statements one by one")

    def fetchone(self) -> Any:
        with self._statement():
            return super().fetchone()

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        with self._statement():
            return super().fetchmany(size)

    def fetchall(self) -> list[Any]:
        with self._statement():
            return super().fetchall()

    def __next__(self) -> Any:
        with self._statement():
            return super().__next__()

    def _statement(self) -> AbstractContextManager[None]:
        return self._connection.statement()

    @property
    def _connection(self) -> UserConnection:
        return cast("UserConnection", self.connection)


class UserConnections:
    """The connection that one transaction after another uses: to open one takes longer than five hundred rows.

    All of this happens in the writer's thread, with the lock held that keeps processes apart.
    """

    def __init__(self, path: Path, *, tenant: str, synchronous: str, busy_timeout: float) -> None:
        self._path = path
        self._tenant = tenant
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._kept: UserConnection | None = None
        self._temporary = 0

    def taken(self) -> UserConnection:
        """A connection for one transaction, which gives it back."""
        connection, self._kept = self._kept, None
        if connection is None:
            return self._new()
        connection.reclaim()
        return connection

    def give_back(self, connection: UserConnection) -> None:
        """Keep it for the next transaction, unless it is still inside one, or something has been made on it that the
        next would find there."""
        try:
            if not connection.in_transaction and _temporary(connection) == self._temporary:
                self._kept = connection
                return
        except sqlite3.Error:
            pass
        connection.close()

    def close(self) -> None:
        """Close what is kept."""
        connection, self._kept = self._kept, None
        if connection is not None:
            connection.reclaim()
            connection.close()

    def _new(self) -> UserConnection:
        """As the writer's is, but for checkpoints: these are the writer's alone."""
        connection = connect_for_writing(
            self._path, UserConnection, synchronous=self._synchronous, busy_timeout=self._busy_timeout
        )
        try:
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.execute("PRAGMA foreign_keys = ON")
            SQLiteAppend(self._tenant).begin(connection)
            connection.keep_journal()
            self._temporary = _temporary(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _temporary(connection: sqlite3.Connection) -> int:
    """How many temporary tables, views, triggers and indexes there are."""
    return int(connection.execute("SELECT count(*) FROM sqlite_temp_master").fetchone()[0])


def _is_of_journal(name: str | None) -> bool:
    lower = (name or "").lower()
    return lower.startswith("journal_") or lower == "eventstore_version"
