"""SQLiteAppend: a group of batches as one statement, and what the writer remembers so that one is enough."""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import orjson

from backends.deciding import Group, Head, Place
from eventstore.backend import Appended, AppendOutcome, Batch
from eventstore.events import stream_kind

# How many streams' versions are remembered: beyond it the memory starts anew, and streams are looked up again.
_MAX_REMEMBERED = 100_000

# A statement is prepared for these many rows, and a group is padded to the next: preparing costs more than padding.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

_COLUMNS = 10
_ROW = "(" + ",".join("?" * _COLUMNS) + ")"
_PADDING = (None,) * _COLUMNS

# One statement is one sqlite3_step, and so one release of the interpreter's lock: beside a busy event loop every
# further one may wait for many milliseconds. It is safe to decide on remembered versions, because it stores nothing if
# another connection has appended since (its events have the positions that are given here) or has truncated.
_INSERT = """
INSERT INTO journal_events
    (position, stream, version, type, schema_version, payload, metadata, event_id, batch_id, epoch, recorded_at)
SELECT column1, column2, column3, column4, column5, CAST(column6 AS TEXT), CAST(column7 AS TEXT),
    column8, column9, column10, ?
FROM (VALUES {rows})
WHERE column1 IS NOT NULL AND {guard}
"""
_REMOVALS = "(SELECT coalesce(max(id), 0) FROM journal_removals) = ?"
# A claim leaves no trace but its own row: where epochs are checked, any commit of another connection counts.
_COMMITS = _REMOVALS + " AND (SELECT data_version FROM pragma_data_version) = ?"  # noqa: S608 - two constants
_INSERTS = {size: _INSERT.format(rows=",".join([_ROW] * size), guard=_REMOVALS) for size in _SIZES}
_FENCED_INSERTS = {size: _INSERT.format(rows=",".join([_ROW] * size), guard=_COMMITS) for size in _SIZES}

LOG_END = """
SELECT max(
    coalesce((SELECT max(position) FROM journal_events), 0),
    coalesce((SELECT log_end FROM journal_removals ORDER BY id DESC LIMIT 1), 0)
)
"""
"""The highest position there ever was: not only the last row's, for that may have been removed."""

_STATE = """
SELECT (SELECT data_version FROM pragma_data_version), (SELECT coalesce(max(id), 0) FROM journal_removals),
    coalesce((SELECT recorded_at FROM journal_events ORDER BY position DESC LIMIT 1), 0)
"""
# CROSS JOIN: the planner would walk through all streams, and for each through all that are wanted.
_STREAMS = """
SELECT s.stream_id, s.id, s.truncated, s.epoch,
    (SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id)
FROM json_each(?) wanted CROSS JOIN journal_streams s ON s.tenant = '' AND s.stream_id = wanted.value
"""
_NEW_STREAMS = """
INSERT INTO journal_streams (stream_id, kind, created_at)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), ? FROM json_each(?)
"""
_STORED_IDS = """
SELECT e.event_id, s.stream_id, e.version, e.position
FROM journal_events e JOIN journal_streams s ON s.id = e.stream WHERE e.event_id IN ({ids})
"""


_T = TypeVar("_T")


class SQLiteAppend:
    """Appends groups on the writing connection. All methods run in the writer's thread."""

    def __init__(self) -> None:
        self._streams: dict[str, Head] = {}
        self._data_version = -1
        self._removals = 0
        self._last_position = 0
        self._last_recorded_at = 0

    @property
    def last_position(self) -> int:
        """The end of the log as far as it was seen here; the file may be further. Any thread may read it."""
        return self._last_position

    def forget(self) -> None:
        """Start anew: after another connection's commit, a failed statement, or on a new connection."""
        self._streams.clear()
        self._data_version = -1

    def append(self, connection: sqlite3.Connection, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        """Store the batches in one commit. On any error nothing is stored, and nothing is remembered."""
        try:
            outcomes = self._append_guarded(connection, batches)
            return outcomes or self._append_verified(connection, batches)
        except BaseException:
            self.forget()
            raise

    def _append_guarded(
        self, connection: sqlite3.Connection, batches: Sequence[Batch]
    ) -> Sequence[AppendOutcome] | None:
        """Decide on what is remembered, and store in one statement. None: it takes more than that to decide."""
        self._look_up(connection, {write.stream_id for batch in batches for write in batch})
        group = Group(self._streams, self._last_position)
        for batch in batches:
            if not isinstance(group.decide(batch), Appended):
                return None
        if group.has_new_streams or not 0 < len(group.rows) <= _SIZES[-1]:
            return None
        try:
            is_stored = self._insert(connection, group.rows, self._now())
        except sqlite3.IntegrityError:
            # Another connection has appended, or an event id is stored already: the verified path finds out.
            return None
        if not is_stored:
            return None
        group.adopt()
        return group.outcomes

    def _append_verified(self, connection: sqlite3.Connection, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        """Decide on what the file holds, inside the transaction that stores."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            self.forget()
            self._look_up(connection, {write.stream_id for batch in batches for write in batch})
            group = Group(self._streams, self._last_position, _stored_ids(connection, batches))
            for batch in batches:
                group.decide(batch)
            now = self._now()
            if group.has_new_streams:
                self._create_streams(connection, group.new_streams(), now)
            for rows in _chunks(group.rows):
                if not self._insert(connection, rows, now):
                    raise sqlite3.OperationalError("another connection committed inside a write transaction")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        group.adopt()
        return group.outcomes

    def _look_up(self, connection: sqlite3.Connection, stream_ids: set[str]) -> None:
        """Remember the streams, and find out whether what was remembered of others still holds."""
        missing = [stream_id for stream_id in stream_ids if stream_id not in self._streams]
        if self._data_version == -1 or len(self._streams) > _MAX_REMEMBERED:
            self._streams.clear()
            missing = list(stream_ids)
            # Read before the streams: a commit in between makes the guard fail, never pass wrongly.
            self._data_version, self._removals, recorded_at = connection.execute(_STATE).fetchone()
            (self._last_position,) = connection.execute(LOG_END).fetchone()
            self._last_recorded_at = max(self._last_recorded_at, recorded_at)
        if not missing:
            return
        wanted = orjson.dumps(missing).decode()
        for stream_id, id_, truncated, epoch, newest in connection.execute(_STREAMS, (wanted,)).fetchall():
            self._streams[stream_id] = Head(id_, max(truncated, newest or 0), epoch)
        for stream_id in missing:
            self._streams.setdefault(stream_id, Head(0, 0, 0))

    def _create_streams(self, connection: sqlite3.Connection, stream_ids: Sequence[str], now: int) -> None:
        rows = orjson.dumps([(stream_id, stream_kind(stream_id)) for stream_id in stream_ids]).decode()
        connection.execute(_NEW_STREAMS, (now, rows))
        wanted = orjson.dumps(stream_ids).decode()
        for stream_id, id_, *_ in connection.execute(_STREAMS, (wanted,)).fetchall():
            self._streams[stream_id].id = id_

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], recorded_at: int) -> bool:
        """Store rows that go on where the log ends. False: the guard held them back."""
        size = _SIZES[bisect_left(_SIZES, len(rows))]
        parameters: list[Any] = [recorded_at]
        position = self._last_position
        has_epochs = False
        for row in rows:
            position += 1
            # The stream's id is filled in now: it was not known at the decision if the stream is new.
            parameters += (position, row[0].id)
            parameters += row[1:]
            has_epochs = has_epochs or row[-1] != 0
        parameters += _PADDING * (size - len(rows))
        parameters.append(self._removals)
        inserts = _INSERTS
        if has_epochs:
            inserts = _FENCED_INSERTS
            parameters.append(self._data_version)
        if connection.execute(inserts[size], parameters).rowcount == 0:
            return False
        self._last_position = position
        self._last_recorded_at = recorded_at
        return True

    def _now(self) -> int:
        # The wall clock may jump back; times in the log do not.
        return max(time.time_ns() // 1000, self._last_recorded_at)


def _stored_ids(connection: sqlite3.Connection, batches: Sequence[Batch]) -> dict[bytes, Place]:
    ids = [event.event_id for batch in batches for write in batch for event in write.events]
    found: dict[bytes, Place] = {}
    for chunk in _chunks(ids):
        size = _SIZES[bisect_left(_SIZES, len(chunk))]
        statement = _STORED_IDS.format(ids=",".join("?" * size))
        parameters = [*chunk, *(None,) * (size - len(chunk))]
        for event_id, stream_id, version, position in connection.execute(statement, parameters).fetchall():
            found[event_id] = (stream_id, version, position)
    return found


def _chunks(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (items[start : start + _SIZES[-1]] for start in range(0, len(items), _SIZES[-1]))
