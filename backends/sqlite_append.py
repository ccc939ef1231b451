"""SQLiteAppend: a group of batches as one statement, and what the writer remembers so that one is enough."""

from __future__ import annotations

import sqlite3
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from backends.deciding import CommandKey, Group, Head, Place, Remembered
from backends.sqlite_append_sql import (
    COLUMNS,
    EVENTS,
    EVENTS_AND_COMMANDS,
    FENCED_EVENTS,
    LOG_END,
    NEW_STREAMS,
    REPLICA,
    SIZES,
    STATE,
    STORED_COMMANDS,
    STORED_IDS,
    STREAMS,
    TEMPORARY,
    WITH_REPLICAS,
)
from backends.sqlite_connection import fence_of
from backends.sqlite_filing import MOST_UNFILED, file_all, unfiled
from eventstore.backend import AppendOutcome, Batch, CommandOutcome, ReplicaFields
from eventstore.errors import JournalCorrupt
from eventstore.events import stream_kind

# How many streams' versions are remembered: beyond it the memory starts anew, and streams are looked up again.
_MAX_REMEMBERED = 100_000

# Python's sqlite3 binds an int, a str or a bytearray at once. For anything else, bytes and None too, it first looks for
# an adapter, in three places: 0.3 to 0.4 us each, with the interpreter's lock held. So bytes are bound as bytearrays,
# and 0 stands for what is not there: no id, position or text is 0.
_NOTHING = 0
_PADDING = (_NOTHING,) * COLUMNS

_T = TypeVar("_T")
_Row = tuple[Any, ...]
_Outcome = tuple[Head, int, CommandOutcome]


class SQLiteAppend:
    """Appends groups of one tenant on the writing connection. All methods run in the writer's thread."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self._streams: dict[str, Head] = {}
        self._data_version = -1
        self._removals = 0
        self._last_position = 0
        self._last_recorded_at = 0
        self._unfiled = 0

    @property
    def last_position(self) -> int:
        """The end of the log as far as it was seen here; the file may be further. Any thread may read it."""
        return self._last_position

    def begin(self, connection: sqlite3.Connection) -> None:
        """Prepare a connection that was just opened, and start anew on it."""
        for statement in TEMPORARY:
            connection.execute(statement)
        self._unfiled = unfiled(connection)
        self.forget()

    def forget(self, stream_ids: Iterable[str] | None = None) -> None:
        """Look these streams up again, which were changed otherwise on this connection; or start anew with all."""
        if stream_ids is None:
            self._streams.clear()
            self._data_version = -1
        else:
            for stream_id in stream_ids:
                self._streams.pop(stream_id, None)

    def append(
        self, connection: sqlite3.Connection, batches: Sequence[Batch], begun: threading.Lock | None = None
    ) -> Sequence[AppendOutcome]:
        """Store the batches in one commit. On any error nothing is stored, and nothing is remembered.

        `begun` is released when all is done that needs the interpreter's lock.
        """
        try:
            if self._unfiled >= MOST_UNFILED:
                file_all(connection)
                self._unfiled = 0
            outcomes = self._append_guarded(connection, batches, begun)
            return outcomes or self._append_verified(connection, batches)
        except BaseException:
            self.forget()
            raise

    def _append_guarded(
        self, connection: sqlite3.Connection, batches: Sequence[Batch], begun: threading.Lock | None
    ) -> Sequence[AppendOutcome] | None:
        """Decide on what is remembered, and store in one statement. None: it takes more than that to decide."""
        self._look_up(connection, {write.stream_id for batch in batches for write in batch})
        group = Group(self._streams, self._last_position)
        if not group.stores_all(batches):
            return None
        if group.has_new_streams or not 0 < len(group.rows) + len(group.commands) <= SIZES[-1]:
            return None
        try:
            is_stored = self._insert(
                connection,
                group.rows,
                group.commands,
                self._now(),
                group.replicas,
                begun,
                has_epochs=group.asserts_epochs,
            )
        except sqlite3.IntegrityError:
            # Another connection has appended, or an event or a command is stored already: the verified path finds out.
            return None
        if not is_stored:
            return None
        group.adopt()
        return group.outcomes

    def _append_verified(self, connection: sqlite3.Connection, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        """Decide on what the file holds, inside the transaction that stores."""
        fence: str | None = None
        while True:
            connection.execute("BEGIN IMMEDIATE")
            try:
                group = self.append_within(connection, batches, fence)
                connection.execute("COMMIT")
                break
            except BaseException as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                # Told by the database when there is something to store, and then decided on, batch by batch.
                is_told_now = fence is None and (fence := fence_of(error)) is not None
                if not is_told_now:
                    raise
        group.adopt()
        return group.outcomes

    def append_within(
        self, connection: sqlite3.Connection, batches: Sequence[Batch], fence: str | None = None
    ) -> Group:
        """Decide on what the file holds, and store, inside the write transaction that the connection is in."""
        group = self.decided(connection, batches, fence)
        now = self._now()
        if group.has_new_streams:
            self._create_streams(connection, group.new_streams(), now)
        for rows, outcomes, replicas in _portions(group):
            if not self._insert(connection, rows, outcomes, now, replicas):
                raise sqlite3.OperationalError("another connection committed inside a write transaction")
        return group

    def decided(self, connection: sqlite3.Connection, batches: Sequence[Batch], fence: str | None = None) -> Group:
        """The decision about batches on what the file holds. It is true while nobody else can write."""
        self.forget()
        self._look_up(connection, {write.stream_id for batch in batches for write in batch})
        stored = _stored_ids(connection, self.tenant, batches)
        commands = _stored_commands(connection, self.tenant, batches)
        group = Group(self._streams, self._last_position, stored, commands, fence=fence)
        for batch in batches:
            group.decide(batch)
        return group

    def moved(self, position: int) -> None:
        """Another connection of this process has stored up to a position."""
        self.forget()
        self._last_position = max(self._last_position, position)

    def _look_up(self, connection: sqlite3.Connection, stream_ids: set[str]) -> None:
        """Remember the streams, and find out whether what was remembered of others still holds."""
        missing = list(stream_ids.difference(self._streams))
        if self._data_version == -1 or len(self._streams) > _MAX_REMEMBERED:
            self._streams.clear()
            missing = list(stream_ids)
            # Read before the streams: a commit in between makes the guard fail, never pass wrongly.
            self._data_version, self._removals, recorded_at = connection.execute(STATE).fetchone()
            (self._last_position,) = connection.execute(LOG_END).fetchone()
            self._last_recorded_at = max(self._last_recorded_at, recorded_at)
        if not missing:
            return
        wanted = orjson.dumps(missing).decode()
        for stream_id, id_, truncated, epoch, forgotten, newest in connection.execute(
            STREAMS, (self.tenant, wanted)
        ).fetchall():
            self._streams[stream_id] = Head(id_, max(truncated, newest or 0), epoch, forgotten)
        for stream_id in missing:
            self._streams.setdefault(stream_id, Head(0, 0, 0))

    def _create_streams(self, connection: sqlite3.Connection, stream_ids: Sequence[str], now: int) -> None:
        rows = orjson.dumps([(stream_id, stream_kind(stream_id)) for stream_id in stream_ids]).decode()
        connection.execute(NEW_STREAMS, (self.tenant, now, rows))
        wanted = orjson.dumps(stream_ids).decode()
        for stream_id, id_, *_ in connection.execute(STREAMS, (self.tenant, wanted)).fetchall():
            self._streams[stream_id].id = id_

    def _insert(
        self,
        connection: sqlite3.Connection,
        rows: Sequence[_Row],
        commands: Sequence[_Outcome],
        recorded_at: int,
        replicas: Mapping[int, ReplicaFields],
        begun: threading.Lock | None = None,
        *,
        has_epochs: bool = False,
    ) -> bool:
        """Store events that go on where the log ends, and outcomes. False: the guard held them back.

        `has_epochs`: they rest on epochs, also where no event has one.
        """
        count = len(rows) + len(commands)
        size = SIZES[bisect_left(SIZES, count)]
        parameters: list[Any] = [recorded_at]
        position = self._last_position
        for stream, version, type_, schema_version, payload, metadata, event_id, batch_id, checksum, epoch in rows:
            position += 1
            # The stream's id is filled in now: it was not known at the decision if the stream is new.
            parameters += (
                position,
                stream.id,
                version,
                type_,
                schema_version,
                bytearray(payload),
                _NOTHING if metadata is None else bytearray(metadata),
                bytearray(event_id),
                _NOTHING if batch_id is None else bytearray(batch_id),
                checksum,
                epoch,
            )
            if epoch:
                has_epochs = True
        for stream, version, (command_id, fingerprint, outcome_id, is_rejection, payload, issued_at) in commands:
            parameters += (_NOTHING, stream.id, version, command_id, int(is_rejection), bytearray(payload), _NOTHING)
            parameters += (bytearray(fingerprint), bytearray(outcome_id), _NOTHING, issued_at)
        parameters += _PADDING * (size - count)
        if replicas:
            parameters = _with_replicas(parameters, size, replicas)
        parameters.append(self._removals)
        inserts = EVENTS
        if replicas:
            inserts = WITH_REPLICAS
            parameters.append(self._data_version)
        elif commands or has_epochs:
            inserts = EVENTS_AND_COMMANDS if commands else FENCED_EVENTS
            parameters.append(self._data_version)
        before = connection.total_changes
        if begun is not None:
            begun.release()
        stored = connection.execute(inserts[size], parameters).rowcount
        if commands or replicas:
            # What triggers store is in the connection's count alone.
            stored = connection.total_changes - before
        if stored == 0:
            return False
        if stored != count:
            raise JournalCorrupt(
                f"{stored} rows were stored instead of {count}: a trigger changes what is appended; find out whose"
            )
        self._last_position = position
        self._last_recorded_at = recorded_at
        self._unfiled += len(commands)
        return True

    def _now(self) -> int:
        # The wall clock may jump back; times in the log do not.
        return max(time.time_ns() // 1000, self._last_recorded_at)


def _stored_ids(connection: sqlite3.Connection, tenant: str, batches: Sequence[Batch]) -> dict[bytes, Place]:
    ids = [event.event_id for batch in batches for write in batch for event in write.events]
    found: dict[bytes, Place] = {}
    for chunk in _chunks(ids):
        size = SIZES[bisect_left(SIZES, len(chunk))]
        statement = STORED_IDS.format(ids=",".join("?" * size))
        parameters = [tenant, *chunk, *(None,) * (size - len(chunk))]
        for event_id, stream_id, version, position in connection.execute(statement, parameters).fetchall():
            found[event_id] = (stream_id, version, position)
    return found


def _stored_commands(
    connection: sqlite3.Connection, tenant: str, batches: Sequence[Batch]
) -> dict[CommandKey, Remembered]:
    wanted = [
        (write.stream_id, command.command_id) for batch in batches for write in batch for command in write.commands
    ]
    if not wanted:
        return {}
    rows = connection.execute(STORED_COMMANDS, (tenant, orjson.dumps(wanted).decode())).fetchall()
    return {(stream_id, command_id): (outcome_id, version) for stream_id, command_id, outcome_id, version in rows}


def _portions(group: Group) -> Iterable[tuple[Sequence[_Row], Sequence[_Outcome], Mapping[int, ReplicaFields]]]:
    """What a group stores, in parts that fit one statement each."""
    if group.is_empty:
        return
    if len(group.rows) + len(group.commands) <= SIZES[-1]:
        yield group.rows, group.commands, group.replicas
        return
    first = 0
    for rows in _chunks(group.rows):
        places = range(first, first + len(rows))
        yield rows, (), {place - first: group.replicas[place] for place in places if place in group.replicas}
        first += len(rows)
    for commands in _chunks(group.commands):
        yield (), commands, {}


def _with_replicas(parameters: Sequence[Any], size: int, replicas: Mapping[int, ReplicaFields]) -> list[Any]:
    """The parameters of a statement's rows, each with what a replica says of it, or with nothing."""
    recorded_at, *given = parameters
    wider: list[Any] = [recorded_at]
    for place in range(size):
        wider += given[place * COLUMNS : (place + 1) * COLUMNS]
        wider += replicas.get(place, (None,) * len(REPLICA))
    return wider


def _chunks(items: Sequence[_T]) -> Iterable[Sequence[_T]]:
    return (items[start : start + SIZES[-1]] for start in range(0, len(items), SIZES[-1]))
