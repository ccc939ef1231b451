"""PostgresArchive: the records of a Postgres journal, read and stored as they are, and the fence that keeps writers
out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random

from backends.archiving import (
    COPIED,
    FENCE,
    TRUNCATED,
    check_copy,
    checked_reason,
    packed_fence,
    truncations,
    unpacked_fence,
)
from backends.postgres_pool import PostgresPool
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.records import snapshot_of
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
from eventstore.errors import StoreBusy
from eventstore.events import stream_kind

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)

_EVENTS = """
SELECT e.position, s.tenant, s.stream_id, s.truncated, e.version, e.event_id, e.type, e.schema_version, e.payload,
    e.metadata, e.batch_id, e.checksum, e.origin, e.origin_sequence, e.clock, e.concurrent, e.epoch, e.recorded_at
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.position > $1 AND e.position <= $2 ORDER BY e.position LIMIT $3
"""
_STREAMS = """
SELECT s.id, s.tenant, s.stream_id, s.version, s.truncated, s.epoch, s.forgotten, c.count,
    coalesce((SELECT o.command_id FROM {schema}.journal_commands o WHERE o.id = c.oldest), ''),
    coalesce((SELECT n.command_id FROM {schema}.journal_commands n WHERE n.id = c.newest), ''),
    ARRAY(SELECT n.version FROM {schema}.journal_snapshots n WHERE n.stream = s.id ORDER BY n.version),
    ARRAY(SELECT n.recorded_at FROM {schema}.journal_snapshots n WHERE n.stream = s.id ORDER BY n.version)
FROM {page} s CROSS JOIN LATERAL (
    SELECT count(*), min(n.id) AS oldest, max(n.id) AS newest
    FROM {schema}.journal_commands n WHERE n.stream = s.id
) c
ORDER BY s.id
"""
_BY_NUMBER = "(SELECT * FROM {schema}.journal_streams WHERE id > $1 ORDER BY id LIMIT $2)"
_BY_KEY = """(
    SELECT i.* FROM unnest($1::text[], $2::text[]) AS w (tenant, stream_id) CROSS JOIN LATERAL (
        SELECT * FROM {schema}.journal_streams i WHERE i.tenant = w.tenant AND i.stream_id = w.stream_id OFFSET 0
    ) i
)"""
_COMMANDS = """
SELECT command_id, fingerprint, outcome_id, is_rejection, payload, issued_at, version, recorded_at
FROM {schema}.journal_commands
WHERE stream = $1 AND id > coalesce((
    SELECT a.id FROM {schema}.journal_commands a WHERE a.stream = $1 AND a.command_id = $2
), 0)
ORDER BY id LIMIT $3
"""
_SNAPSHOTS = """
SELECT s.stream_id, n.version, n.fingerprint, n.encoding, n.payload, n.checksum, n.recorded_at, n.epoch
FROM {schema}.journal_snapshots n JOIN {schema}.journal_streams s ON s.id = n.stream
WHERE n.stream = $1 ORDER BY n.version
"""
# A server is known by its cluster, whichever host and port lead to it; a journal by its table, however its schema is
# named.
_IDENTITY = """
SELECT c.system_identifier, d.oid::bigint, '{schema}.journal_streams'::regclass::oid::bigint
FROM pg_control_system() c, pg_database d WHERE d.datname = current_database()
"""
_LAST_STREAM = "SELECT coalesce(max(id), 0) FROM {schema}.journal_streams"
_MARK = "SELECT value FROM {schema}.journal_marks WHERE name = $1"
_SET_MARK = """
INSERT INTO {schema}.journal_marks (name, value) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""

# Behind the lock of removals, as a truncation locks a stream behind it. The lock that appends share: no other append
# takes a position meanwhile, and whoever reads the log waits for this.
_LOCK = "SELECT pg_advisory_xact_lock({lock})"
_END = """
SELECT greatest(
        coalesce((SELECT max(position) FROM {schema}.journal_events), 0),
        coalesce((SELECT log_end FROM {schema}.journal_removals ORDER BY id DESC LIMIT 1), 0)
    ), EXISTS (SELECT FROM {schema}.journal_streams)
"""
_NEW_STREAMS = """
INSERT INTO {schema}.journal_streams (tenant, stream_id, kind, created_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
ON CONFLICT (tenant, stream_id) DO NOTHING
"""
_HEADS = """
SELECT s.tenant, s.stream_id, s.id, s.truncated, s.version
FROM unnest($1::text[], $2::text[]) AS w (tenant, stream_id) CROSS JOIN LATERAL (
    SELECT * FROM {schema}.journal_streams i WHERE i.tenant = w.tenant AND i.stream_id = w.stream_id OFFSET 0
) s
"""
_RESTORE_EVENTS = """
INSERT INTO {schema}.journal_events (position, stream, version, type, schema_version, payload, metadata, event_id,
    batch_id, checksum, epoch, origin, origin_sequence, clock, concurrent, recorded_at)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::int[], $6::text[], $7::text[],
    $8::bytea[], $9::bytea[], $10::bigint[], $11::bigint[], $12::text[], $13::bigint[], $14::text[], $15::bool[],
    $16::bigint[])
"""
_VERSIONS = """
UPDATE {schema}.journal_streams s SET version = w.version FROM unnest($1::bigint[], $2::bigint[]) AS w (id, version)
WHERE s.id = w.id
"""
_MOVE_ON = "SELECT setval('{schema}.journal_events_position_seq', $1)"
_RESTORE_STREAM = """
UPDATE {schema}.journal_streams SET epoch = $2, forgotten = $3 WHERE id = $1
"""
_REMOVE_COMMANDS = "DELETE FROM {schema}.journal_commands WHERE stream = $1"
# In the order of the rows, because their ids tell the order in which outcomes were stored.
_RESTORE_COMMANDS = """
INSERT INTO {schema}.journal_commands (stream, command_id, fingerprint, outcome_id, is_rejection, payload, issued_at,
    version, recorded_at)
SELECT c.stream, c.command_id, c.fingerprint, c.outcome_id, c.is_rejection, c.payload, c.issued_at, c.version,
    c.recorded_at
FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::bytea[], $5::bool[], $6::text[], $7::bigint[], $8::bigint[],
    $9::bigint[]) WITH ORDINALITY AS c (stream, command_id, fingerprint, outcome_id, is_rejection, payload, issued_at,
    version, recorded_at, number)
ORDER BY c.number
"""
_REMOVE_SNAPSHOTS = "DELETE FROM {schema}.journal_snapshots WHERE stream = $1"
_RESTORE_SNAPSHOT = """
INSERT INTO {schema}.journal_snapshots (stream, version, fingerprint, encoding, payload, checksum, epoch, recorded_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
_OPEN_REMOVAL = """
INSERT INTO {schema}.journal_removals (stream, through, log_end, reason, is_open, recorded_at)
VALUES ($1, $2, $3, $4, true, $5) RETURNING id
"""
_REMOVE = "DELETE FROM {schema}.journal_events WHERE stream = $1 AND version <= $2"
_CLOSE_REMOVAL = "UPDATE {schema}.journal_removals SET is_open = false, removed = $2 WHERE id = $1"
_TRUNCATED = "UPDATE {schema}.journal_streams SET truncated = $2, version = greatest(version, $2) WHERE id = $1"

# Triggers that are there only while the journal is fenced cost nothing while it is not. To make them takes a lock on
# the tables that whoever writes waits for before he looks for triggers, and that waits for whoever has begun. (A row
# that appends would look at will not do: one that waits for a lock knows the rows as they were before it waited.)
_LOCK_TABLES = """
LOCK TABLE {schema}.journal_streams, {schema}.journal_events, {schema}.journal_commands, {schema}.journal_snapshots
IN SHARE ROW EXCLUSIVE MODE
"""
_FENCE_FUNCTION = """
CREATE OR REPLACE FUNCTION {schema}.journal_fence() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'ES001';
END
$$
"""
_FENCE_TRIGGER = """
CREATE TRIGGER journal_fence BEFORE {change} ON {schema}.{table}
FOR EACH ROW EXECUTE FUNCTION {schema}.journal_fence({reason})
"""
_FENCED_CHANGES = (
    ("INSERT", "journal_events"),
    ("INSERT OR DELETE", "journal_commands"),
    ("INSERT OR DELETE", "journal_snapshots"),
    ("INSERT OR UPDATE OF epoch, truncated, forgotten", "journal_streams"),
)
_FENCE_TRIES = 10


class PostgresArchive:
    """Through the pool. Storing takes a transaction of several statements, and the lock of all appends."""

    def __init__(
        self, sql: PostgresSQL, pool: PostgresPool, settle: Callable[[], Awaitable[int]], changed: Callable[[], None]
    ) -> None:
        self._sql = sql
        self._pool = pool
        self._settle = settle
        self._changed = changed

    async def identity(self) -> str:
        ((cluster, database, table),) = await self._rows(_IDENTITY)
        return f"postgres:{cluster}:{database}:{table}"

    async def events(self, *, after: int, limit: int) -> ArchivePage:
        end = await self._settle()
        rows = await self._rows(_EVENTS, after, end, limit)
        found = [_event(*row) for row in rows]
        truncated = {(row[1], row[2]): row[3] for row in rows}
        is_end = len(found) < limit
        return ArchivePage(found, truncated, max(after, end) if is_end else found[-1].position, is_end)

    async def streams(self, *, after: int, limit: int) -> Sequence[ArchivedStream]:
        return _streams(await self._rows(self._sql.named(_STREAMS, page=_BY_NUMBER), after, limit))

    async def last_stream(self) -> int:
        ((number,),) = await self._rows(_LAST_STREAM)
        return int(number)

    async def find(self, keys: Sequence[StreamKey]) -> Mapping[StreamKey, ArchivedStream]:
        rows = await self._rows(self._sql.named(_STREAMS, page=_BY_KEY), *_key_columns(keys))
        return {stream.key: stream for stream in _streams(rows)}

    async def commands(self, number: int, *, after: str, limit: int) -> Sequence[ArchivedCommand]:
        return [_command(*row) for row in await self._rows(_COMMANDS, number, after, limit)]

    async def snapshots(self, number: int) -> Sequence[StoredSnapshot]:
        return [snapshot_of(*row) for row in await self._rows(_SNAPSHOTS, number)]

    async def copied(self) -> int | None:
        rows = await self._rows(_MARK, COPIED)
        return int(rows[0][0]) if rows else None

    async def restore_events(self, *, after: int, page: ArchivePage) -> None:
        async def restore(session: PostgresSession) -> None:
            async with session.transaction():
                await self._restore_events(session, after, page)

        await self._pool.run(restore, writing=True)
        self._changed()

    async def restore_streams(self, records: Sequence[StreamRecords]) -> None:
        async def restore(session: PostgresSession) -> None:
            async with session.transaction():
                await self._restore_streams(session, records)

        await self._pool.run(restore, writing=True)
        self._changed()

    async def fence(self, reason: str) -> Fence:
        checked_reason(reason)

        async def fence(session: PostgresSession) -> Fence:
            async with session.transaction():
                return await self._fence(session, reason)

        # It may be chosen as the one to give way where it and an append wait for each other.
        again = AsyncRetrying(
            retry=retry_if_exception_type(StoreBusy),
            stop=stop_after_attempt(_FENCE_TRIES),
            wait=wait_random(max=0.1),
            reraise=True,
        )

        async def attempt() -> Fence:
            return await self._pool.run(fence, writing=True)

        found: Fence = await again(attempt)
        return found

    async def fenced(self) -> Fence | None:
        rows = await self._rows(_MARK, FENCE)
        return unpacked_fence(rows[0][0]) if rows else None

    async def _rows(self, statement: str, *parameters: object) -> Sequence[Any]:
        return await self._pool.run(lambda session: self._fetch(session, statement, *parameters))

    async def _fetch(self, session: PostgresSession, statement: str, *parameters: object) -> Sequence[Any]:
        return await session.fetch(self._sql.named(statement), *parameters)

    async def _restore_events(self, session: PostgresSession, after: int, page: ArchivePage) -> None:
        await session.fetch(self._sql.lock_removals)
        await self._fetch(session, _LOCK)
        copied = await self._fetch(session, _MARK, COPIED)
        ((end, has_streams),) = await self._fetch(session, _END)
        is_empty = end == 0 and not has_streams
        check_copy(int(copied[0][0]) if copied else None, after=after, end=end, is_empty=is_empty)
        first_at: dict[StreamKey, int] = {}
        for event in page.events:
            first_at.setdefault(event.key, event.recorded_at)
        heads = await self._made(session, first_at)
        versions = {key: version for key, (_, _, version) in heads.items()}
        for key, through in truncations(page, versions).items():
            await self._remove(session, heads[key][0], through, end)
        if page.events:
            columns = zip(*((each.position, heads[each.key][0], *_columns(each)) for each in page.events), strict=True)
            await self._fetch(session, _RESTORE_EVENTS, *columns)
            versions = {event.key: event.version for event in page.events}
            await self._fetch(session, _VERSIONS, [heads[key][0] for key in versions], [*versions.values()])
        if page.position:
            # Where this is rolled back the sequence is ahead, which leaves a hole at most.
            await self._fetch(session, _MOVE_ON, page.position)
        await self._fetch(session, _SET_MARK, COPIED, str(page.position))

    async def _restore_streams(self, session: PostgresSession, records: Sequence[StreamRecords]) -> None:
        # How far streams are truncated must not change once it was looked at.
        await session.fetch(self._sql.lock_removals)
        now = (datetime.now(UTC) - _EPOCH_START) // timedelta(microseconds=1)
        heads = await self._made(session, dict.fromkeys((one.key for one in records), now))
        commands: list[tuple[Any, ...]] = []
        for one in records:
            stream, truncated, _ = heads[one.key]
            if one.truncated > truncated:
                ((end, _),) = await self._fetch(session, _END)
                await self._remove(session, stream, one.truncated, end)
            await self._fetch(session, _RESTORE_STREAM, stream, one.epoch, one.forgotten)
            if one.replaces:
                await self._fetch(session, _REMOVE_COMMANDS, stream)
            commands += ((stream, *_outcome(outcome), version, at) for outcome, version, at in one.commands)
            if one.snapshots is not None:
                await self._fetch(session, _REMOVE_SNAPSHOTS, stream)
                for snapshot in one.snapshots:
                    await self._fetch(session, _RESTORE_SNAPSHOT, stream, *_packed(snapshot))
        if commands:
            await self._fetch(session, _RESTORE_COMMANDS, *zip(*commands, strict=True))

    async def _fence(self, session: PostgresSession, reason: str) -> Fence:
        await self._fetch(session, _LOCK_TABLES)
        if found := await self._fetch(session, _MARK, FENCE):
            return unpacked_fence(found[0][0])
        fence = Fence(reason, datetime.now(UTC))
        await self._fetch(session, _SET_MARK, FENCE, packed_fence(fence))
        await self._fetch(session, _FENCE_FUNCTION)
        ((quoted,),) = await self._fetch(session, "SELECT quote_literal($1::text)", reason)
        for change, table in _FENCED_CHANGES:
            trigger = self._sql.named(_FENCE_TRIGGER, change=change, table=table)
            await session.execute(trigger.replace("{reason}", quoted))
        return fence

    async def _made(
        self, session: PostgresSession, first_at: Mapping[StreamKey, int]
    ) -> dict[StreamKey, tuple[int, int, int]]:
        """The row id, the truncation mark and the version of streams, whose rows are made where there are none."""
        if not first_at:
            return {}
        tenants, stream_ids = _key_columns(first_at)
        kinds = [stream_kind(stream_id) for stream_id in stream_ids]
        await self._fetch(session, _NEW_STREAMS, tenants, stream_ids, kinds, list(first_at.values()))
        rows = await self._fetch(session, _HEADS, tenants, stream_ids)
        return {(tenant, stream_id): (id_, truncated, version) for tenant, stream_id, id_, truncated, version in rows}

    async def _remove(self, session: PostgresSession, stream: int, through: int, end: int) -> None:
        now = (datetime.now(UTC) - _EPOCH_START) // timedelta(microseconds=1)
        ((door,),) = await self._fetch(session, _OPEN_REMOVAL, stream, through, end, TRUNCATED, now)
        removed = await session.execute(self._sql.named(_REMOVE), stream, through)
        await self._fetch(session, _TRUNCATED, stream, through)
        await self._fetch(session, _CLOSE_REMOVAL, door, removed)


def _key_columns(keys: Iterable[StreamKey]) -> tuple[list[str], list[str]]:
    listed = list(keys)
    return [tenant for tenant, _ in listed], [stream_id for _, stream_id in listed]


def _columns(event: ArchivedEvent) -> tuple[Any, ...]:
    event_id, type_, schema_version, payload, metadata, batch_id, checksum, replica = event.event
    first_of = None if batch_id == event_id else batch_id
    notes = None if metadata is None else metadata.decode()
    own = (event.version, type_, schema_version, payload.decode(), notes, event_id, first_of, checksum, event.epoch)
    if replica is None:
        return (*own, None, None, None, None, event.recorded_at)
    origin, sequence, clock, concurrent = replica
    return (*own, origin, sequence, clock.decode(), concurrent, event.recorded_at)


def _outcome(outcome: CommandOutcome) -> tuple[Any, ...]:
    command_id, fingerprint, outcome_id, is_rejection, payload, issued_at = outcome
    return command_id, fingerprint, outcome_id, is_rejection, payload.decode(), issued_at


def _packed(snapshot: StoredSnapshot) -> tuple[Any, ...]:
    _, version, fingerprint, encoding, payload, checksum, recorded_at, epoch = snapshot
    at = (recorded_at - _EPOCH_START) // timedelta(microseconds=1)
    return version, fingerprint, encoding, payload, checksum, epoch, at


def _event(
    position: int,
    tenant: str,
    stream_id: str,
    _: int,
    version: int,
    event_id: bytes,
    type_: str,
    schema_version: int,
    payload: str,
    metadata: str | None,
    batch_id: bytes | None,
    checksum: int,
    origin: str | None,
    sequence: int | None,
    clock: str | None,
    concurrent: bool | None,
    epoch: int,
    recorded_at: int,
) -> ArchivedEvent:
    replica = None
    if origin is not None and sequence is not None and clock is not None:
        replica = ReplicaFields(origin, sequence, clock.encode(), bool(concurrent))
    notes = None if metadata is None else metadata.encode()
    encoded = EncodedEvent(
        event_id, type_, schema_version, payload.encode(), notes, batch_id or event_id, checksum, replica
    )
    return ArchivedEvent(position, tenant, stream_id, version, encoded, epoch, recorded_at)


def _streams(rows: Iterable[Any]) -> list[ArchivedStream]:
    return [
        ArchivedStream._make((*columns, tuple(zip(versions, times, strict=True)))) for *columns, versions, times in rows
    ]


def _command(
    command_id: str,
    fingerprint: bytes,
    outcome_id: bytes,
    is_rejection: bool,
    payload: str,
    issued_at: int,
    version: int,
    recorded_at: int,
) -> ArchivedCommand:
    outcome = CommandOutcome(command_id, fingerprint, outcome_id, is_rejection, payload.encode(), issued_at)
    return ArchivedCommand(outcome, version, recorded_at)
