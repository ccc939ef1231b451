"""SQLiteWriter: the one thread and connection that write to a file, a whole job at a time.

A job is one item of the thread's queue, from its first statement to its commit, so that no cancelled caller can
leave a transaction open.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from backends.sqlite_connection import check_schema, connect_writer, translated
from backends.thread_outcomes import End, ThreadOutcomes, settle
from eventstore.calls.finishing import thread_ended
from eventstore.errors import BackendUnavailable, EventStoreError, OutcomeUnknown, StoreBusy, StoreClosed

_T = TypeVar("_T")
_Job = tuple[Callable[[sqlite3.Connection], Any], End, "threading.Lock | None"]

# Up to 3.51.2 a checkpoint that runs while another connection commits can corrupt the file (the WAL-reset bug).
_NEEDS_LOCK = sqlite3.sqlite_version_info < (3, 51, 3)
_LOCK_POLL_SECONDS = 0.001
_HAND_OVER_SECONDS = 0.001


class SQLiteWriter:
    """Runs jobs on the writing connection, one after another, in the order they were given.

    Its queue is short by construction: one append is in flight per store, and snapshots are one per actor.
    After an error of the disk the connection is thrown away, and the next job opens and checks a new one.
    """

    def __init__(self, path: Path, *, synchronous: str, busy_timeout: float) -> None:
        self._path = path
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._lock_file: int | None = None
        self._loop = asyncio.get_running_loop()
        self._outcomes = ThreadOutcomes(self._loop)
        self._thread = threading.Thread(target=self._serve, name=f"sqlite-writer-{path.name}", daemon=True)
        self._is_closed = False
        self.on_connect: Callable[[sqlite3.Connection], None] = lambda _: None
        """Called with each new connection, before the first job on it."""

    def start(self) -> None:
        """Start the thread. The connection is opened by the first job."""
        self._outcomes.start(self._thread)

    def run(self, job: Callable[[sqlite3.Connection], _T]) -> asyncio.Future[_T]:
        """Queue a job. It runs to its end, whatever becomes of the future."""
        future: asyncio.Future[_T] = self._loop.create_future()
        self.submit(job, partial(settle, future))
        return future

    def submit(
        self, job: Callable[[sqlite3.Connection], Any], on_end: End, *, begun: threading.Lock | None = None
    ) -> None:
        """Queue a job, and have its result or its error told in the loop.

        With `begun`, a lock that is held, this returns when the job has released it, if the thread is free: a thread
        that wakes up needs the interpreter's lock, which a busy event loop lets go of only when it polls.
        """
        if self._is_closed:
            raise StoreClosed("the store is closed: nothing was written")
        self._jobs.put((job, on_end, begun))
        if begun is not None:
            begun.acquire(timeout=_HAND_OVER_SECONDS)

    async def close(self) -> None:
        """Finish the queue, close the connection, end the thread."""
        if self._is_closed:
            return
        self._is_closed = True
        self._jobs.put(None)
        await thread_ended(self._thread)
        self._outcomes.close()

    # In the thread

    def _serve(self) -> None:
        tell = self._outcomes.tell
        while (item := self._jobs.get()) is not None:
            job, on_end, begun = item
            try:
                self._lock_processes()
                try:
                    # Told before the lock is given back, which nobody who waits for this job needs.
                    tell(on_end, job(self._opened()), None)
                finally:
                    self._unlock_processes()
            except sqlite3.Error as driver_error:
                tell(on_end, None, self._dealt_with(driver_error))
            except BaseException as other:
                tell(on_end, None, other)
            if begun is not None and begun.locked():
                begun.release()
            if self._outcomes.is_loop_closed:
                # Without closing the store: nobody can be told, and the rest must not be run.
                break
            # Nothing of the job may live on while the thread waits for the next one.
            del item, job, on_end, begun
        self._disconnect()
        self._outcomes.end()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = connect_writer(self._path, synchronous=self._synchronous, busy_timeout=self._busy_timeout)
            try:
                check_schema(connection, self._path)
                self._secure_log(connection)
                self.on_connect(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _secure_log(self, connection: sqlite3.Connection) -> None:
        """Make durable what is in the log already, before any reply rests on it.

        A writer may have died, or its sync may have failed, after it wrote: then the log is readable from the
        system's memory, and not on the disk. A checkpoint writes it anew, into the file, and syncs that.
        """
        _, in_log, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if copied < in_log and connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise StoreBusy(f"another process reads {self._path} and keeps its log from being made durable: try again")

    def _dealt_with(self, driver_error: sqlite3.Error) -> EventStoreError:
        error = translated(driver_error, writing=True)
        error.__cause__ = driver_error
        connection = self._connection
        if connection is None:
            # It failed while it was opened: no job has run.
            return BackendUnavailable(str(error)) if isinstance(error, OutcomeUnknown) else error
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._disconnect()
        if not isinstance(error, StoreBusy):
            self._disconnect()
        return error

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                # The last connection to close checkpoints, so it needs the lock as a commit does.
                self._lock_processes()
                try:
                    connection.close()
                finally:
                    self._unlock_processes()
            except (sqlite3.Error, StoreBusy):
                connection.close()
        if self._lock_file is not None and self._is_closed:
            os.close(self._lock_file)
            self._lock_file = None

    def _lock_processes(self) -> None:
        """Keep the writes and checkpoints of processes apart, where SQLite does not do it well enough by itself."""
        if not _NEEDS_LOCK:
            return
        if self._lock_file is None:
            try:
                self._lock_file = os.open(f"{self._path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise BackendUnavailable(
                    f"{self._path}-lock, which keeps processes apart, cannot be opened: nothing was done ({error})"
                ) from error
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise StoreBusy(
                        f"another process has been writing to {self._path} for {self._busy_timeout:g} s: "
                        "nothing was stored, try again"
                    ) from error
                time.sleep(_LOCK_POLL_SECONDS)

    def _unlock_processes(self) -> None:
        if _NEEDS_LOCK and self._lock_file is not None:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)
