"""SQLitePageThread: a thread and connection that read pages, each of them as one row."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from backends.sqlite_connection import HARDENING, is_about_data, read_only_uri, thread_missing, translated
from backends.thread_outcomes import ThreadOutcomes, settle
from eventstore.calls.finishing import thread_ended
from eventstore.errors import EventStoreError, JournalCorrupt, StoreClosed

# What one answer may hold: more is asked for in parts. Nobody knows how large events are before they are read; SQLite
# finds a text too large while it makes it, which costs those that are small nothing.
ROOM = 16 * 1024 * 1024
LARGEST = 1_000_000_000

# Whoever reads so many events will be busy with those before them: the thread is given the lock at once. A thread that
# wakes up needs it, and a busy loop lets go of it only when it polls, and takes it again before the thread is awake.
_MANY = 500
_HAND_OVER_SECONDS = 0.001

Row = tuple[Any, ...]
Parameters = Sequence[Any] | Mapping[str, Any]
Ask = Callable[[str, Parameters], Row]
"""Executes a statement, and gives its row."""

_T = TypeVar("_T")


class TooLarge(Exception):
    """The answer would hold more than there is room for."""


class _Job(NamedTuple):
    question: Callable[[Ask], Any]
    room: int
    future: asyncio.Future[Any]
    begun: threading.Lock | None


class SQLitePageThread:
    """Runs statements one after another, in the order they came. Each gives one row; its texts are bytes.

    A page is ONE row: every row is one sqlite3_step, and each gives the interpreter's lock away. Beside a busy event
    loop the reading thread may wait long to get it back, 500 times for 500 rows.

    A statement under way runs to its end, whatever becomes of whoever wants its row. After an error of the database
    the connection is thrown away, and the next statement opens another.
    """

    def __init__(self, path: Path, *, name: str, busy_timeout: float) -> None:
        self._path = path
        self._name = name
        self._busy_timeout = busy_timeout
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._loop = asyncio.get_running_loop()
        self._outcomes = ThreadOutcomes(self._loop)
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self.under_way = 0
        """How many rows are waited for."""

    async def row(self, statement: str, parameters: Parameters, *, events: int, room: int) -> Row:
        """The row of a statement that reads at most so many events. Raises as `answer` does."""
        return await self.answer(lambda ask: ask(statement, parameters), events=events, room=room)

    async def answer(self, question: Callable[[Ask], _T], *, events: int, room: int) -> _T:
        """What a question comes to that is asked in the thread: it may choose a statement by the row of another, which
        would else take a second trip.

        Raises `TooLarge`, and `JournalCorrupt`, which names no event, where anything that was read is damaged.
        """
        if self._is_closed:
            raise StoreClosed("the store is closed: nothing was read")
        if self._thread is None:
            self._start()
        is_at_once = not self.under_way and events >= _MANY
        begun: threading.Lock | None = None
        future: asyncio.Future[_T] = self._loop.create_future()
        if is_at_once:
            begun = threading.Lock()
            begun.acquire()
        self.under_way += 1
        try:
            self._jobs.put(_Job(question, room, future, begun))
            if begun is not None:
                # It has begun when this returns.
                begun.acquire(timeout=_HAND_OVER_SECONDS)
            return await future
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        """Finish what is under way, close the connection, end the thread."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._thread is not None:
            self._jobs.put(None)
            await thread_ended(self._thread)
            self._outcomes.close()

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._path.name}", daemon=True)
        try:
            self._outcomes.start(thread)
        except RuntimeError as error:
            raise thread_missing(error) from error
        self._thread = thread

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            question, room, future, begun = job
            if begun is not None:
                begun.release()
            answer: Any = None
            failure: BaseException | None = None
            try:
                answer = self._answer(question, room)
            except sqlite3.DataError as error:
                failure = TooLarge() if room < LARGEST else self._dealt_with(error)
            except sqlite3.Error as error:
                failure = self._dealt_with(error)
            except BaseException as error:
                failure = error
            self._outcomes.tell(partial(settle, future), answer, failure)
            if self._outcomes.is_loop_closed:
                # Without closing the store: nobody can be told.
                break
            # Nothing of the job may live on while the thread waits for the next one.
            del job, question, future, begun, answer, failure
        self._disconnect()
        self._outcomes.end()

    def _answer(self, question: Callable[[Ask], Any], room: int) -> Any:
        connection = self._opened()
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, room)
        return question(lambda statement, parameters: connection.execute(statement, parameters).fetchone())

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(
                read_only_uri(self._path), uri=True, isolation_level=None, timeout=self._busy_timeout
            )
            try:
                for pragma in (*HARDENING, "PRAGMA query_only = ON"):
                    connection.execute(pragma)
            except BaseException:
                connection.close()
                raise
            # Payloads are wanted as bytes.
            connection.text_factory = bytes
            self._connection = connection
        return self._connection

    def _dealt_with(self, error: sqlite3.Error) -> EventStoreError:
        if is_about_data(error):
            failure: EventStoreError = JournalCorrupt(f"a stored row cannot be read: {error}")
        else:
            failure = translated(error, writing=False)
            self._disconnect()
        failure.__cause__ = error
        return failure

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
