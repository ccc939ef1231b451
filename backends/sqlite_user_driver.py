"""UserThread and UserDriver: where the user's own statements are executed, as SQLAlchemy and the user know it."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Self, TypeVar

import aiosqlite

from backends.sqlite_connection import thread_missing
from backends.sqlite_user_connection import Tenure, UserConnection
from backends.thread_outcomes import settle
from eventstore.calls.finishing import thread_ended

_Call = tuple["asyncio.Future[Any] | None", Callable[[], Any]]

_T = TypeVar("_T")

# Of aiosqlite's own rows: how many it fetches at a time where a program iterates over a cursor.
_CHUNK = 64


class UserThread:
    """The thread that executes the user's statements, of one transaction after another: there is one at a time.

    Starting a thread for each took as long as a transaction of five hundred rows.
    """

    def __init__(self, path: Path) -> None:
        self._name = f"sqlite-user-{path.name}"
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def driver(self, connection: UserConnection, tenure: Tenure) -> UserDriver:
        """The driver for one transaction. Raises `BackendUnavailable` if there is no thread to be had."""
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise thread_missing(error) from error
            self._thread = thread
        return UserDriver(connection, tenure, self._calls)

    async def close(self) -> None:
        """End the thread, after what it was given."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._calls.put(None)
            await thread_ended(thread)

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            result: Any = None
            failure: BaseException | None = None
            try:
                result = function()
            except BaseException as error:
                failure = error
            if future is not None:
                try:
                    future.get_loop().call_soon_threadsafe(settle, future, result, failure)
                except RuntimeError:
                    # The loop was closed without closing the store: nobody can be told.
                    break
            # Nothing of the call may live on while the thread waits for the next one.
            del call, future, function, result, failure


class UserDriver(aiosqlite.Connection):
    """A connection of aiosqlite for one transaction, in a thread that outlives it.

    To close it closes nothing: who ends the transaction does that. After that it can execute nothing any more.
    """

    def __init__(self, connection: UserConnection, tenure: Tenure, calls: queue.SimpleQueue[Any]) -> None:
        super().__init__(lambda: connection, _CHUNK)
        self._tx = self._calls = calls
        self._connection = connection
        self._user = connection
        self._tenure = tenure
        self._given = self._done = 0

    def __await__(self) -> Generator[Any, None, Self]:
        return self._ready().__await__()

    async def commit(self) -> None:
        pass

    async def rollback(self) -> None:
        pass

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        self._running = False
        self._connection = None

    def __del__(self) -> None:
        pass

    async def run(self, function: Callable[[UserConnection], _T]) -> _T:
        """Call a function in the thread."""
        result: _T = await self._execute(function, self._user)
        return result

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._running:
            raise ValueError("Connection closed")
        if _is_quick(fn) and self._given == self._done and self._user.is_idle():
            # A trip to the thread and back takes longer than this does. Nothing is executed by it.
            with self._user.during(self._tenure):
                return fn(*args, **kwargs)
        self._given += 1

        def call() -> Any:
            try:
                with self._user.during(self._tenure):
                    return fn(*args, **kwargs)
            finally:
                self._done += 1

        future = asyncio.get_running_loop().create_future()
        self._calls.put((future, call))
        return await future

    async def _ready(self) -> Self:
        return self


def _is_quick(function: Callable[..., Any]) -> bool:
    """Whether it makes a cursor or a function, or closes a cursor."""
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    return (name in ("cursor", "create_function") and isinstance(owner, UserConnection)) or (
        name == "close" and isinstance(owner, sqlite3.Cursor)
    )
