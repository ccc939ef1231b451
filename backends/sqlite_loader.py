"""SQLiteLoader: the thread and connection that read what actors recover from, a page as one row."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from backends.page_texts import SEPARATOR, names_of
from backends.sqlite_connection import HARDENING, is_about_data, read_only_uri, thread_missing, translated
from backends.times import nearest_time
from eventstore.backend import NO_EVENTS, EventPage, Load, Loaded, StoredSnapshot
from eventstore.errors import EventStoreError, JournalCorrupt, StoreClosed

# A page is ONE row: every row is one sqlite3_step, and each gives the interpreter's lock away. Beside a busy event
# loop the reading thread may wait long to get it back, 500 times for 500 rows.
#
# A page's columns are strung together: JSON holds no control character but white space, and no name any. One scan of
# the index makes them all, in the order of versions, so that nothing is sorted.
_LOAD = """
WITH wanted AS MATERIALIZED (
    SELECT w.key AS number, s.id AS stream, s.truncated, w.value ->> '$[3]' AS size, w.value ->> '$[1]' AS after,
        (SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id) AS newest,
        CASE WHEN w.value ->> '$[2]' THEN
            (SELECT max(n.version) FROM journal_snapshots n WHERE n.stream = s.id AND n.version > w.value ->> '$[1]')
        END AS snapshot
    FROM json_each(?2) w CROSS JOIN journal_streams s ON s.tenant = ?1 AND s.stream_id = w.value ->> '$[0]'
)
SELECT
    (SELECT json_group_array(json_array(w.number, w.truncated, w.newest, n.version, n.fingerprint, n.encoding,
            hex(n.payload), hex(n.checksum), n.recorded_at, n.epoch))
        FROM wanted w LEFT JOIN journal_snapshots n ON n.stream = w.stream AND n.version = w.snapshot),
    (SELECT group_concat(w.number || char(29) || (
        SELECT CASE WHEN max(typeof(e.payload) <> 'text') THEN '' ELSE
            group_concat(e.version) || char(29) || group_concat(e.type, char(30)) || char(29) ||
            group_concat(e.schema_version) || char(29) || group_concat(e.payload, char(30)) || char(29) ||
            group_concat(e.checksum) END
        FROM (SELECT e.version, e.type, e.schema_version, e.payload, e.checksum FROM journal_events e
            WHERE e.stream = w.stream AND e.version > max(coalesce(w.snapshot, w.after), w.truncated)
                AND e.version <= max(coalesce(w.snapshot, w.after), w.truncated) + w.size
            ORDER BY e.version) e
    ), char(28)) FROM wanted w)
"""
_PAGES, _COLUMNS, _TEXTS = b"\x1c", b"\x1d", SEPARATOR.encode()

# What one answer may hold: more is asked for in parts. Nobody knows how large events are before they are read; SQLite
# finds a text too large while it makes it, which costs those that are small nothing.
_ROOM = 16 * 1024 * 1024
_LARGEST = 1_000_000_000

# Whoever reads so many events will be busy with those before them: the thread is given the lock at once. A thread that
# wakes up needs it, and a busy loop lets go of it only when it polls, and takes it again before the thread is awake.
_MANY = 500
_HAND_OVER_SECONDS = 0.001

_Row = tuple[bytes, bytes | None]
_FoundRow = tuple[int, int, int | None, int | None, str, str, str, str, int, int]


class _TooLarge(Exception):
    """The answer would hold more than there is room for."""


class _Job(NamedTuple):
    wanted: str
    room: int
    future: asyncio.Future[_Row]
    begun: threading.Lock | None


class SQLiteLoader:
    """Answers loads one after another, in the order they came. A load under way runs to its end, whatever becomes of
    whoever wants it. After an error of the database the connection is thrown away, and the next load opens another.
    """

    def __init__(self, path: Path, *, tenant: str, busy_timeout: float) -> None:
        self._path = path
        self._tenant = tenant
        self._busy_timeout = busy_timeout
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._under_way = 0
        self._is_closed = False

    async def load(self, loads: Sequence[Load], *, room: int = _ROOM) -> Sequence[Loaded]:
        """Raises `JournalCorrupt`, which names no event yet, where anything that was read is damaged.

        What does not fit the room is read in parts: half of the streams, fewer events, and at last one event alone,
        or one snapshot, however large it is.
        """
        if self._is_closed:
            raise StoreClosed("the store is closed: nothing was read")
        if self._thread is None:
            self._start()
        wanted = orjson.dumps([tuple(load) for load in loads]).decode()
        is_at_once = not self._under_way and sum(load.limit for load in loads) >= _MANY
        self._under_way += 1
        try:
            found, pages = await (self._begun(wanted, room) if is_at_once else self._queued(wanted, room))
        except _TooLarge:
            return await self._load_in_parts(loads)
        finally:
            self._under_way -= 1
        try:
            return _loaded(loads, orjson.loads(found), _pages(pages))
        except ValueError as error:
            raise JournalCorrupt(f"a stored event cannot be read: {error}") from error

    async def _load_in_parts(self, loads: Sequence[Load]) -> Sequence[Loaded]:
        if len(loads) > 1:
            half = len(loads) // 2
            return [*await self.load(loads[:half]), *await self.load(loads[half:])]
        if loads[0].limit > 1:
            return await self.load([loads[0]._replace(limit=max(1, loads[0].limit // 8))])
        return await self.load(loads, room=_LARGEST)

    async def close(self) -> None:
        """Finish what is under way, close the connection, end the thread."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    def _queued(self, wanted: str, room: int, begun: threading.Lock | None = None) -> asyncio.Future[_Row]:
        future: asyncio.Future[_Row] = self._loop.create_future()
        self._jobs.put(_Job(wanted, room, future, begun))
        return future

    def _begun(self, wanted: str, room: int) -> asyncio.Future[_Row]:
        """The same, and the thread has begun when this returns."""
        begun = threading.Lock()
        begun.acquire()
        future = self._queued(wanted, room, begun)
        begun.acquire(timeout=_HAND_OVER_SECONDS)
        return future

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"sqlite-loader-{self._path.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise thread_missing(error) from error
        self._thread = thread

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            wanted, room, future, begun = job
            if begun is not None:
                begun.release()
            row: Any = None
            failure: BaseException | None = None
            try:
                row = self._read(wanted, room)
            except sqlite3.DataError as error:
                failure = _TooLarge() if room < _LARGEST else self._dealt_with(error)
            except sqlite3.Error as error:
                failure = self._dealt_with(error)
            except BaseException as error:
                failure = error
            try:
                self._loop.call_soon_threadsafe(_settle, future, row, failure)
            except RuntimeError:
                # The loop was closed without closing the store: nobody can be told.
                break
            # Nothing of the job may live on while the thread waits for the next one.
            del job, future, begun, row, failure
        self._disconnect()

    def _read(self, wanted: str, room: int) -> Any:
        connection = self._opened()
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, room)
        return connection.execute(_LOAD, (self._tenant, wanted)).fetchone()

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


def _settle(future: asyncio.Future[_Row], row: Any, failure: BaseException | None) -> None:
    # Whoever was cancelled does not want it.
    if future.done():
        return
    if failure is None:
        future.set_result(row)
    else:
        future.set_exception(failure)


def _pages(pages: bytes | None) -> Mapping[int, EventPage]:
    """The events of each load that found any. Raises `ValueError`."""
    if pages is None:
        return {}
    found: dict[int, EventPage] = {}
    for page in pages.split(_PAGES):
        number, versions, types, schema_versions, payloads, checksums = page.split(_COLUMNS)
        texts = payloads.split(_TEXTS)
        found[int(number)] = EventPage(
            orjson.loads(b"[%b]" % versions),
            names_of(types.decode(), len(texts)),
            orjson.loads(b"[%b]" % schema_versions),
            texts,
            orjson.loads(b"[%b]" % checksums),
        )
    return found


def _loaded(loads: Sequence[Load], found: Sequence[_FoundRow], pages: Mapping[int, EventPage]) -> Sequence[Loaded]:
    answers: list[Loaded] = [Loaded(None, NO_EVENTS, 0, 0)] * len(loads)
    for number, truncated, newest, version, fingerprint, encoding, payload, checksum, recorded_at, epoch in found:
        snapshot = None
        if version is not None:
            snapshot = StoredSnapshot(
                loads[number].stream_id,
                version,
                fingerprint,
                encoding,
                bytes.fromhex(payload),
                bytes.fromhex(checksum),
                nearest_time(recorded_at),
                epoch,
            )
        answers[number] = Loaded(snapshot, pages.get(number, NO_EVENTS), max(newest or 0, truncated), truncated)
    return answers
