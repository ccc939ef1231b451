"""SQLiteAppend: a group of batches as one statement, and what the writer remembers so that one is enough."""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import orjson

from eventstore.backend import Appended, AppendOutcome, Batch, StreamWrite, refusal
from eventstore.errors import DuplicateEventError
from eventstore.events import stream_kind

# How many streams' versions are remembered: beyond it the memory starts anew, and streams are looked up again.
_MAX_REMEMBERED = 100_000

# A statement is prepared for these many rows, and a group is padded to the next: preparing costs more than padding.
_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

_COLUMNS = 9
_ROW = "(" + ",".join("?" * _COLUMNS) + ")"
_PADDING = (None,) * _COLUMNS

# One statement is one sqlite3_step, and so one release of the interpreter's lock: beside a busy event loop every
# further one may wait for many milliseconds. The guard makes it safe to decide on remembered versions: it stores
# nothing if any other connection has committed since they were read.
_INSERT = """
INSERT INTO journal_events
    (stream, version, type, schema_version, payload, metadata, event_id, batch_id, epoch, recorded_at)
SELECT column1, column2, column3, column4, CAST(column5 AS TEXT), CAST(column6 AS TEXT),
    column7, column8, column9, ?
FROM (VALUES {rows})
WHERE column1 IS NOT NULL AND (SELECT data_version FROM pragma_data_version) = ?
"""
_INSERTS = {size: _INSERT.format(rows=",".join([_ROW] * size)) for size in _SIZES}

# The sequence, not the last row: positions of removed events are not used again.
_LOG_END = """
SELECT (SELECT data_version FROM pragma_data_version),
    coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'journal_events'), 0),
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


class _Stream:
    """What is remembered of a stream. `id` is 0 while its row does not exist."""

    __slots__ = ("epoch", "id", "version")

    def __init__(self, id: int, version: int, epoch: int) -> None:
        self.id = id
        self.version = version
        self.epoch = epoch


_Place = tuple[str, int, int]
"""Where an event is stored: stream, version, position."""


class SQLiteAppend:
    """Appends groups on the writing connection. All methods run in the writer's thread."""

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._data_version = -1
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
        group = _Group(self._streams, self._last_position)
        for batch in batches:
            if not isinstance(group.decide(batch), Appended):
                return None
        if group.has_new_streams or not 0 < len(group.rows) <= _SIZES[-1]:
            return None
        try:
            is_stored = self._insert(connection, group.rows, self._now())
        except sqlite3.IntegrityError:
            # An event id that is stored already: the verified path finds out which.
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
            group = _Group(self._streams, self._last_position, _stored_ids(connection, batches))
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
            self._data_version, self._last_position, recorded_at = connection.execute(_LOG_END).fetchone()
            self._last_recorded_at = max(self._last_recorded_at, recorded_at)
        if not missing:
            return
        wanted = orjson.dumps(missing).decode()
        for stream_id, id_, truncated, epoch, newest in connection.execute(_STREAMS, (wanted,)).fetchall():
            self._streams[stream_id] = _Stream(id_, max(truncated, newest or 0), epoch)
        for stream_id in missing:
            self._streams.setdefault(stream_id, _Stream(0, 0, 0))

    def _create_streams(self, connection: sqlite3.Connection, stream_ids: Sequence[str], now: int) -> None:
        rows = orjson.dumps([(stream_id, stream_kind(stream_id)) for stream_id in stream_ids]).decode()
        connection.execute(_NEW_STREAMS, (now, rows))
        wanted = orjson.dumps(stream_ids).decode()
        for stream_id, id_, *_ in connection.execute(_STREAMS, (wanted,)).fetchall():
            self._streams[stream_id].id = id_

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]], recorded_at: int) -> bool:
        """Store rows at the positions after the last one. False: the guard held them back."""
        size = _SIZES[bisect_left(_SIZES, len(rows))]
        parameters: list[Any] = [recorded_at]
        for stream, *rest in rows:
            # The id is filled in now: it was not known at the decision if the stream is new.
            parameters.append(stream.id)
            parameters.extend(rest)
        parameters.extend(_PADDING * (size - len(rows)))
        parameters.append(self._data_version)
        cursor = connection.execute(_INSERTS[size], parameters)
        if cursor.rowcount == 0:
            return False
        self._last_position += len(rows)
        if (cursor.rowcount, cursor.lastrowid) != (len(rows), self._last_position):
            raise sqlite3.DatabaseError(
                f"positions are not what was announced: {cursor.rowcount} rows through {cursor.lastrowid}"
            )
        self._last_recorded_at = recorded_at
        return True

    def _now(self) -> int:
        # The wall clock may jump back; times in the log do not.
        return max(time.time_ns() // 1000, self._last_recorded_at)


class _Group:
    """The decision about a group: which batches are stored, in order, each seeing those before it.

    With `stored`, the places of the group's events that are in the journal already, repeats are recognised.
    """

    def __init__(
        self, streams: dict[str, _Stream], last_position: int, stored: dict[bytes, _Place] | None = None
    ) -> None:
        self._streams = streams
        self._last_position = last_position
        self._stored = stored
        self._versions: dict[str, int] = {}
        self.rows: list[tuple[Any, ...]] = []
        self.outcomes: list[AppendOutcome] = []
        self.has_new_streams = False

    def decide(self, batch: Batch) -> AppendOutcome:
        """Decide about one batch. An outcome that is `Appended` becomes true when `rows` are stored."""
        repeated = None if self._stored is None else self._repeated(batch, self._stored)
        outcome = self._placed(batch) if repeated is None else repeated
        self.outcomes.append(outcome)
        return outcome

    def new_streams(self) -> list[str]:
        """The streams that get their first event now."""
        return [stream_id for stream_id in self._versions if not self._streams[stream_id].id]

    def adopt(self) -> None:
        """Remember what is stored now."""
        for stream_id, version in self._versions.items():
            self._streams[stream_id].version = version

    def _placed(self, batch: Batch) -> AppendOutcome:
        versions: dict[str, int] = {}
        after: list[int] = []
        rows: list[tuple[Any, ...]] = []
        for write in batch:
            stream_id = write.stream_id
            stream = self._streams[stream_id]
            version = versions.get(stream_id)
            if version is None:
                version = self._versions.get(stream_id, stream.version)
            # Most writes expect exactly this version and hold no epoch: no call for them.
            if version != write.expected or write.epoch is not None:
                refused = refusal(write, version, stream.epoch)
                if refused is not None:
                    return refused
            epoch = write.epoch or 0
            for event_id, type_, schema_version, payload, metadata, batch_id in write.events:
                version += 1
                first_of = None if batch_id == event_id else batch_id
                rows.append((stream, version, type_, schema_version, payload, metadata, event_id, first_of, epoch))
            if write.events:
                versions[stream_id] = version
                self.has_new_streams = self.has_new_streams or not stream.id
            after.append(version)
        if self._stored is not None:
            first = self._last_position + len(self.rows) + 1
            self._stored.update(
                (event.event_id, (write.stream_id, rows[index][1], first + index))
                for index, (write, event) in enumerate((write, event) for write in batch for event in write.events)
            )
        self._versions.update(versions)
        self.rows.extend(rows)
        return Appended(self._last_position + len(self.rows) if rows else 0, tuple(after))

    def _repeated(self, batch: Batch, stored: dict[bytes, _Place]) -> AppendOutcome | None:
        """The original outcome of a batch that is stored, an error for one that is in part, None for a new one."""
        seen: set[bytes] = set()
        repeated: tuple[StreamWrite, bytes] | None = None
        is_whole = True
        for write in batch:
            for event in write.events:
                if event.event_id in stored or event.event_id in seen:
                    repeated = write, event.event_id
                is_whole = is_whole and event.event_id in stored
                seen.add(event.event_id)
        if repeated is None:
            return None
        if is_whole and (original := self._original(batch, stored)) is not None:
            return original
        write, event_id = repeated
        return DuplicateEventError(write.stream_id, str(UUID(bytes=event_id)))

    def _original(self, batch: Batch, stored: dict[bytes, _Place]) -> Appended | None:
        versions: list[int] = []
        last_position = 0
        for write in batch:
            version = self._versions.get(write.stream_id, self._streams[write.stream_id].version)
            for index, event in enumerate(write.events):
                stream_id, stored_version, position = stored[event.event_id]
                follows = index == 0 or stored_version == version + 1
                if stream_id != write.stream_id or not follows or position <= last_position:
                    return None
                version, last_position = stored_version, position
            versions.append(version)
        return Appended(last_position, tuple(versions), is_duplicate=True)


def _stored_ids(connection: sqlite3.Connection, batches: Sequence[Batch]) -> dict[bytes, _Place]:
    ids = [event.event_id for batch in batches for write in batch for event in write.events]
    found: dict[bytes, _Place] = {}
    for chunk in _chunks(ids):
        size = _SIZES[bisect_left(_SIZES, len(chunk))]
        statement = _STORED_IDS.format(ids=",".join("?" * size))
        parameters = [*chunk, *(None,) * (size - len(chunk))]
        for event_id, stream_id, version, position in connection.execute(statement, parameters).fetchall():
            found[event_id] = (stream_id, version, position)
    return found


def _chunks(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (items[start : start + _SIZES[-1]] for start in range(0, len(items), _SIZES[-1]))
