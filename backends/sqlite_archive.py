"""SQLiteArchive: the records of a file, read and stored as they are, and the fence that keeps writers out of it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import orjson

from backends.archiving import (
    COPIED,
    FENCE,
    LOG_END,
    TRUNCATED,
    check_copy,
    checked_reason,
    packed_fence,
    truncations,
    unpacked_fence,
)
from backends.records import snapshot_of
from backends.sqlite_append_sql import LOG_END as THE_LOGS_END
from backends.sqlite_changing import now, remove_events, transaction
from backends.sqlite_connection import FENCE as FENCE_TRIGGER
from backends.sqlite_connection import FENCED
from backends.sqlite_filing import FILED_THROUGH, file_all
from backends.times import microseconds
from eventstore.backend import CommandOutcome, EncodedEvent, ReplicaFields, StoredSnapshot
from eventstore.contract.archive import (
    ArchivedCommand,
    ArchivedEvent,
    ArchivedStream,
    ArchivePage,
    Fence,
    StreamKey,
    StreamRecords,
)
from eventstore.events import stream_kind

_T = TypeVar("_T")

# Texts as bytes: what is no UTF-8 any more is told by the checksum, and not by the driver.
_EVENTS = f"""
SELECT ({THE_LOGS_END}), e.position, s.tenant, s.stream_id, s.truncated, e.version, e.event_id, e.type,
    e.schema_version, CAST(e.payload AS BLOB), CAST(e.metadata AS BLOB), e.batch_id, e.checksum, e.origin,
    e.origin_sequence, CAST(e.clock AS BLOB), e.concurrent, e.epoch, e.recorded_at
FROM (SELECT 1) LEFT JOIN (
    SELECT * FROM journal_events WHERE position > ?1 ORDER BY position LIMIT ?2
) e ON true LEFT JOIN journal_streams s ON s.id = e.stream
ORDER BY e.position
"""  # noqa: S608 - a constant
# Outcomes that are not filed yet are in no index by streams: they are looked through once for the page.
_STREAMS = f"""
WITH page AS MATERIALIZED (
    {{page}}
), counted AS MATERIALIZED (
    SELECT c.stream, count(*) AS count, min(c.id) AS oldest, max(c.id) AS newest FROM (
        SELECT n.stream, n.id FROM page p CROSS JOIN journal_commands n ON n.stream = p.id AND n.is_filed
        UNION ALL
        SELECT n.stream, n.id FROM journal_commands n WHERE n.id > {FILED_THROUGH}
    ) c GROUP BY c.stream
)
SELECT s.id, s.tenant, s.stream_id,
    max(s.truncated, coalesce((SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id), 0)),
    s.truncated, s.epoch, s.forgotten, coalesce(c.count, 0),
    coalesce((SELECT o.command_id FROM journal_commands o WHERE o.id = c.oldest), ''),
    coalesce((SELECT n.command_id FROM journal_commands n WHERE n.id = c.newest), ''),
    (SELECT json_group_array(json_array(n.version, n.recorded_at)) FROM journal_snapshots n WHERE n.stream = s.id)
FROM page s LEFT JOIN counted c ON c.stream = s.id
ORDER BY s.id
"""  # noqa: S608 - a constant
_BY_NUMBER = _STREAMS.format(page="SELECT * FROM journal_streams WHERE id > ?1 ORDER BY id LIMIT ?2")
_BY_KEY = _STREAMS.format(
    page="SELECT s.* FROM json_each(?1) w CROSS JOIN journal_streams s "
    "ON s.tenant = w.value ->> '$[0]' AND s.stream_id = w.value ->> '$[1]'"
)
_LAST_STREAM = "SELECT coalesce(max(id), 0) FROM journal_streams"
# Two ways to find a stream's outcomes, and each is in the order of row ids.
_COMMANDS = f"""
SELECT command_id, fingerprint, outcome_id, is_rejection, CAST(payload AS BLOB), issued_at, version, recorded_at FROM (
    SELECT * FROM journal_commands WHERE stream = ?1 AND is_filed
    UNION ALL SELECT * FROM journal_commands WHERE id > {FILED_THROUGH} AND stream = ?1
)
WHERE id > coalesce((SELECT id FROM journal_commands WHERE command_id = ?2 AND stream = ?1), 0)
ORDER BY id LIMIT ?3
"""  # noqa: S608 - a constant
_SNAPSHOTS = """
SELECT s.stream_id, n.version, n.fingerprint, n.encoding, n.payload, n.checksum, n.recorded_at, n.epoch
FROM journal_snapshots n JOIN journal_streams s ON s.id = n.stream WHERE s.id = ? ORDER BY n.version
"""
_MARK = "SELECT value FROM journal_marks WHERE name = ?"
_SET_MARK = (
    "INSERT INTO journal_marks (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)

_NEW_STREAMS = """
INSERT INTO journal_streams (tenant, stream_id, kind, created_at)
SELECT w.value ->> '$[0]', w.value ->> '$[1]', w.value ->> '$[2]', w.value ->> '$[3]' FROM json_each(?) w WHERE true
ON CONFLICT DO NOTHING
"""
_HEADS = """
SELECT s.tenant, s.stream_id, s.id, s.truncated,
    max(s.truncated, coalesce((SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id), 0))
FROM json_each(?) w CROSS JOIN journal_streams s ON s.tenant = w.value ->> '$[0]' AND s.stream_id = w.value ->> '$[1]'
"""
_RESTORE_EVENT = """
INSERT INTO journal_events (position, stream, version, type, schema_version, payload, metadata, event_id, batch_id,
    checksum, epoch, origin, origin_sequence, clock, concurrent, recorded_at)
VALUES (?, ?, ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), ?, ?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?)
"""
_RESTORE_COMMAND = """
INSERT INTO journal_commands (stream, command_id, fingerprint, outcome_id, is_rejection, payload, issued_at, version,
    recorded_at)
VALUES (?, ?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?)
"""
_RESTORE_SNAPSHOT = """
INSERT INTO journal_snapshots (stream, version, fingerprint, encoding, payload, checksum, epoch, recorded_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_RESTORE_END = """
INSERT INTO journal_removals (stream, through, reason, is_open, log_end, recorded_at) VALUES (0, 0, ?, 0, ?, ?)
"""

# Triggers that are only there while the journal is fenced cost nothing while it is not. Every connection finds them:
# SQLite prepares its statements anew when the schema has changed. The owner of a stream may let go of it.
_FENCED_CHANGES = {
    "events": "INSERT ON journal_events",
    "commands": "INSERT ON journal_commands",
    "forgotten": "DELETE ON journal_commands",
    "snapshots": "INSERT ON journal_snapshots",
    "dropped": "DELETE ON journal_snapshots",
    "streams": "INSERT ON journal_streams",
    "heads": "UPDATE OF epoch, truncated, forgotten ON journal_streams",
}

Read = Callable[[str, Sequence[Any]], Awaitable[Sequence[Any]]]


class SQLiteArchive:
    """Reads on a reading connection; stores as a job of the writer's thread (`change`)."""

    def __init__(
        self, path: Path, read: Read, change: Callable[[Callable[[sqlite3.Connection], Any]], Awaitable[Any]]
    ) -> None:
        self._path = path
        self._read = read
        self._change = change

    async def identity(self) -> str:
        # Its path may lead over a link, and a file may have several names.
        file = await asyncio.to_thread(os.stat, self._path)
        return f"sqlite:{file.st_dev}:{file.st_ino}"

    async def events(self, *, after: int, limit: int) -> ArchivePage:
        rows = await self._read(_EVENTS, (after, limit))
        end = rows[0][0]
        found = [_event(*row[1:]) for row in rows if row[1] is not None]
        truncated = {(row[2], row[3]): row[4] for row in rows if row[1] is not None}
        is_end = len(found) < limit
        return ArchivePage(found, truncated, max(after, end) if is_end else found[-1].position, is_end)

    async def streams(self, *, after: int, limit: int) -> Sequence[ArchivedStream]:
        return _streams(await self._read(_BY_NUMBER, (after, limit)))

    async def last_stream(self) -> int:
        ((number,),) = await self._read(_LAST_STREAM, ())
        return int(number)

    async def find(self, keys: Sequence[StreamKey]) -> Mapping[StreamKey, ArchivedStream]:
        rows = await self._read(_BY_KEY, (_json(keys),))
        return {stream.key: stream for stream in _streams(rows)}

    async def commands(self, number: int, *, after: str, limit: int) -> Sequence[ArchivedCommand]:
        rows = await self._read(_COMMANDS, (number, after, limit))
        return [_command(*row) for row in rows]

    async def snapshots(self, number: int) -> Sequence[StoredSnapshot]:
        return [snapshot_of(*row) for row in await self._read(_SNAPSHOTS, (number,))]

    async def copied(self) -> int | None:
        rows = await self._read(_MARK, (COPIED,))
        return int(rows[0][0]) if rows else None

    async def restore_events(self, *, after: int, page: ArchivePage) -> None:
        await self._change(lambda connection: _restore_events(connection, after, page))

    async def restore_streams(self, records: Sequence[StreamRecords]) -> None:
        await self._change(lambda connection: _restore_streams(connection, records))

    async def fence(self, reason: str) -> Fence:
        checked_reason(reason)
        fence: Fence = await self._change(lambda connection: _fence(connection, reason))
        return fence

    async def fenced(self) -> Fence | None:
        rows = await self._read(_MARK, (FENCE,))
        return unpacked_fence(rows[0][0]) if rows else None


def _restore_events(connection: sqlite3.Connection, after: int, page: ArchivePage) -> None:
    with transaction(connection):
        copied = connection.execute(_MARK, (COPIED,)).fetchone()
        (end,) = connection.execute(THE_LOGS_END).fetchone()
        is_empty = end == 0 and connection.execute("SELECT 1 FROM journal_streams LIMIT 1").fetchone() is None
        check_copy(copied and int(copied[0]), after=after, end=end, is_empty=is_empty)
        first_at: dict[StreamKey, int] = {}
        for event in page.events:
            first_at.setdefault(event.key, event.recorded_at)
        heads = _made(connection, first_at)
        versions = {key: version for key, (_, _, version) in heads.items()}
        for key, through in truncations(page, versions).items():
            remove_events(connection, heads[key][0], through, TRUNCATED)
        rows = ((event.position, heads[event.key][0], *_columns(event)) for event in page.events)
        connection.executemany(_RESTORE_EVENT, rows)
        (end,) = connection.execute(THE_LOGS_END).fetchone()
        if page.position > end:
            connection.execute(_RESTORE_END, (LOG_END, page.position, now()))
        connection.execute(_SET_MARK, (COPIED, str(page.position)))


def _restore_streams(connection: sqlite3.Connection, records: Sequence[StreamRecords]) -> None:
    with transaction(connection):
        heads = _made(connection, dict.fromkeys((one.key for one in records), now()))
        for one in records:
            stream, truncated, _ = heads[one.key]
            if one.truncated > truncated:
                remove_events(connection, stream, one.truncated, TRUNCATED)
            connection.execute(
                "UPDATE journal_streams SET epoch = ?, forgotten = ? WHERE id = ?", (one.epoch, one.forgotten, stream)
            )
            if one.replaces:
                connection.execute("DELETE FROM journal_commands WHERE stream = ?", (stream,))
            connection.executemany(
                _RESTORE_COMMAND, ((stream, *outcome, version, at) for outcome, version, at in one.commands)
            )
            if one.snapshots is not None:
                connection.execute("DELETE FROM journal_snapshots WHERE stream = ?", (stream,))
                connection.executemany(_RESTORE_SNAPSHOT, ((stream, *_packed(each)) for each in one.snapshots))
        if any(one.commands for one in records):
            file_all(connection)


def _fence(connection: sqlite3.Connection, reason: str) -> Fence:
    with transaction(connection):
        found = connection.execute(_MARK, (FENCE,)).fetchone()
        if found is not None:
            return unpacked_fence(found[0])
        fence = Fence(reason, datetime.now(UTC))
        connection.execute(_SET_MARK, (FENCE, packed_fence(fence)))
        text = f"{FENCED}{reason}".replace("'", "''")
        for name, change in _FENCED_CHANGES.items():
            connection.execute(
                f"CREATE TRIGGER {FENCE_TRIGGER}{name} BEFORE {change} BEGIN SELECT RAISE(ABORT, '{text}'); END"
            )
        return fence


def _made(connection: sqlite3.Connection, first_at: Mapping[StreamKey, int]) -> dict[StreamKey, tuple[int, int, int]]:
    """The row id, the truncation mark and the version of streams, whose rows are made where there are none."""
    rows = [(tenant, stream_id, stream_kind(stream_id), at) for (tenant, stream_id), at in first_at.items()]
    connection.execute(_NEW_STREAMS, (_json(rows),))
    found = connection.execute(_HEADS, (_json(list(first_at)),)).fetchall()
    return {(tenant, stream_id): (id_, truncated, version) for tenant, stream_id, id_, truncated, version in found}


def _columns(event: ArchivedEvent) -> tuple[Any, ...]:
    event_id, type_, schema_version, payload, metadata, batch_id, checksum, replica = event.event
    first_of = None if batch_id == event_id else batch_id
    own = (event.version, type_, schema_version, payload, metadata, event_id, first_of, checksum, event.epoch)
    return (*own, *(replica or (None, None, None, None)), event.recorded_at)


def _packed(snapshot: StoredSnapshot) -> tuple[Any, ...]:
    _, version, fingerprint, encoding, payload, checksum, recorded_at, epoch = snapshot
    return version, fingerprint, encoding, payload, checksum, epoch, microseconds(recorded_at)


def _event(
    position: int,
    tenant: str,
    stream_id: str,
    _: int,
    version: int,
    event_id: bytes,
    type_: str,
    schema_version: int,
    payload: bytes,
    metadata: bytes | None,
    batch_id: bytes | None,
    checksum: int,
    origin: str | None,
    sequence: int | None,
    clock: bytes | None,
    concurrent: int | None,
    epoch: int,
    recorded_at: int,
) -> ArchivedEvent:
    replica = None
    if origin is not None and sequence is not None and clock is not None:
        replica = ReplicaFields(origin, sequence, clock, bool(concurrent))
    encoded = EncodedEvent(event_id, type_, schema_version, payload, metadata, batch_id or event_id, checksum, replica)
    return ArchivedEvent(position, tenant, stream_id, version, encoded, epoch, recorded_at)


def _streams(rows: Iterable[Any]) -> list[ArchivedStream]:
    return [
        ArchivedStream._make((*columns, tuple(sorted((version, at) for version, at in orjson.loads(snapshots)))))
        for *columns, snapshots in rows
    ]


def _command(
    command_id: str,
    fingerprint: bytes,
    outcome_id: bytes,
    is_rejection: int,
    payload: bytes,
    issued_at: int,
    version: int,
    recorded_at: int,
) -> ArchivedCommand:
    outcome = CommandOutcome(command_id, fingerprint, outcome_id, bool(is_rejection), payload, issued_at)
    return ArchivedCommand(outcome, version, recorded_at)


def _json(values: Sequence[Any]) -> str:
    return orjson.dumps(values).decode()
