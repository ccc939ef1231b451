"""PostgresChanges: changes other than appends and claims: truncation, snapshots, forgotten commands."""

from __future__ import annotations

import time
from datetime import datetime

from backends.checkpoints_sql import stored_checkpoint
from backends.postgres_pool import PostgresPool
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.times import microseconds
from eventstore.backend import StoredSeal, StoredSnapshot
from eventstore.contract.passed_events import check_passed, no_snapshot
from eventstore.errors import FencedError
from eventstore.events import stream_kind

_LARGEST = 2**63 - 1

# Whoever changes a stream locks its row first, as appends do, so that they wait for each other.
_LOCK_STREAM = """
SELECT id, version, truncated, epoch FROM {schema}.journal_streams
WHERE tenant = {tenant} AND stream_id = $1 FOR NO KEY UPDATE
"""
_NEW_STREAM = """
INSERT INTO {schema}.journal_streams (tenant, stream_id, kind, created_at) VALUES ({tenant}, $1, $2, $3)
ON CONFLICT (tenant, stream_id) DO NOTHING
"""
# Where events were removed, other code has nothing but its newest snapshot from there on: that stays. The stream's row
# is locked, so that a truncation that found a snapshot there has removed the events before this looks, or comes after.
# One statement, so that an owner that is stopped in the middle keeps nobody from claiming the stream. It does not see
# its own snapshot in the table. Epoch 0 is nobody's, and is never overtaken.
_SAVE_SNAPSHOT = """
WITH s AS MATERIALIZED (
    SELECT id, epoch, truncated FROM {schema}.journal_streams
    WHERE tenant = {tenant} AND stream_id = $9 FOR NO KEY UPDATE
), there AS MATERIALIZED (
    SELECT n.version, n.fingerprint FROM {schema}.journal_snapshots n JOIN s ON n.stream = s.id
    UNION SELECT $1::bigint, $2::text FROM s WHERE NOT EXISTS (
        SELECT 1 FROM {schema}.journal_snapshots n
        WHERE n.stream = s.id AND n.version = $1 AND n.fingerprint <> $2 AND s.truncated > 0 AND s.truncated <= $1
    )
), kept AS MATERIALIZED (
    SELECT v.version FROM (SELECT DISTINCT version FROM there) v ORDER BY v.version DESC LIMIT $8
), standing AS MATERIALIZED (
    SELECT max(there.version) AS version FROM there, s
    WHERE s.truncated > 0 AND there.version >= s.truncated GROUP BY there.fingerprint
), saved AS (
    INSERT INTO {schema}.journal_snapshots AS n
        (stream, version, fingerprint, encoding, payload, checksum, epoch, recorded_at)
    SELECT s.id, $1::bigint, $2::text, $3::text, $4::bytea, $5::bytea, $6::bigint, $7::bigint FROM s
    WHERE (s.epoch <= $6 OR $6 = 0) AND ($1 IN (SELECT version FROM kept) OR $1 IN (SELECT version FROM standing))
    ON CONFLICT (stream, version) DO UPDATE SET fingerprint = excluded.fingerprint, encoding = excluded.encoding,
        payload = excluded.payload, checksum = excluded.checksum, epoch = excluded.epoch,
        recorded_at = excluded.recorded_at
    WHERE n.fingerprint = excluded.fingerprint OR NOT EXISTS
        (SELECT 1 FROM s WHERE s.truncated > 0 AND s.truncated <= $1)
    RETURNING 1
), dropped AS (
    DELETE FROM {schema}.journal_snapshots n USING s
    WHERE n.stream = s.id AND (s.epoch <= $6 OR $6 = 0) AND n.version NOT IN (SELECT version FROM kept)
        AND n.version NOT IN (SELECT version FROM standing)
)
SELECT epoch, EXISTS (SELECT FROM saved) FROM s
"""
_DELETE_SNAPSHOTS = """
DELETE FROM {schema}.journal_snapshots n USING {schema}.journal_streams s
WHERE s.id = n.stream AND s.tenant = {tenant} AND s.stream_id = $1 AND n.version <= $2
"""
_OPEN_REMOVAL = """
INSERT INTO {schema}.journal_removals (stream, through, log_end, reason, is_open, recorded_at)
VALUES ($1, $2, (SELECT last_value FROM {schema}.journal_events_position_seq), $3, true, $4) RETURNING id
"""
_LAST = "SELECT position FROM {schema}.journal_events WHERE stream = $1 AND version <= $2 ORDER BY version DESC LIMIT 1"
# The stream's row is locked by now: who saves a snapshot, and so may take others away, has committed, or waits.
_STANDING = """
SELECT 1 FROM {schema}.journal_snapshots WHERE stream = $1 AND version >= $2 AND fingerprint = $3 LIMIT 1
"""
_REMOVE = "DELETE FROM {schema}.journal_events WHERE stream = $1 AND version <= $2"
_CLOSE_REMOVAL = "UPDATE {schema}.journal_removals SET is_open = false, removed = $2 WHERE id = $1"
_TRUNCATED = "UPDATE {schema}.journal_streams SET truncated = $2 WHERE id = $1"

# Who adds the same number at the same moment waits at the key, and then adds nothing.
_ADD_SEAL = """
INSERT INTO {schema}.journal_seals (number, statement, signature, leaves, removals)
SELECT $1::bigint, $2::bytea, $3::bytea, $4::bytea, $5::bytea
WHERE $1 = (SELECT coalesce(max(number), 0) + 1 FROM {schema}.journal_seals)
ON CONFLICT (number) DO NOTHING
"""

# An id may carry a time that lies ahead of the server's clock: it counts as issued when it was stored, at the latest.
# The stream's row is locked first, as an append does that may store one of these commands again: else each would wait
# for the other.
_FORGET = """
WITH s AS MATERIALIZED (
    SELECT id FROM {schema}.journal_streams WHERE tenant = {tenant} AND stream_id = $1 FOR NO KEY UPDATE
), removed AS (
    DELETE FROM {schema}.journal_commands c USING s WHERE c.stream = s.id AND {doomed}
    RETURNING least(c.issued_at, c.recorded_at / 1000) AS issued_at
), counted AS MATERIALIZED (
    SELECT count(*) AS count, max(issued_at) AS issued_at FROM removed
), raised AS (
    UPDATE {schema}.journal_streams t SET forgotten = d.issued_at FROM counted d, s
    WHERE t.id = s.id AND t.forgotten < d.issued_at
)
SELECT count FROM counted
"""
# Row ids rise in the order in which a stream's outcomes were stored.
_OLD = """c.recorded_at < $3 AND c.id <= (
        SELECT n.id FROM {schema}.journal_commands n WHERE n.stream = (SELECT id FROM s)
        ORDER BY n.id DESC OFFSET $2 LIMIT 1
    )"""
_UP_TO = "c.version <= $2"


class PostgresChanges:
    """Each change is one transaction, on a session of the pool."""

    def __init__(self, sql: PostgresSQL, pool: PostgresPool) -> None:
        self._pool = pool
        self._lock_stream = sql.named(_LOCK_STREAM)
        self._new_stream = sql.named(_NEW_STREAM)
        self._save_snapshot = sql.named(_SAVE_SNAPSHOT)
        self._delete_snapshots = sql.named(_DELETE_SNAPSHOTS)
        self._tenant = sql.tenant
        self._lock_removals = sql.lock_removals
        self._last = sql.named(_LAST)
        self._concerning = sql.concerning_checkpoints
        self._add_seal = sql.named(_ADD_SEAL)
        self._open_removal = sql.named(_OPEN_REMOVAL)
        self._standing = sql.named(_STANDING)
        self._remove = sql.named(_REMOVE)
        self._close_removal = sql.named(_CLOSE_REMOVAL)
        self._truncated = sql.named(_TRUNCATED)
        self._forget_old = sql.named(_FORGET, doomed=_OLD)
        self._forget_up_to = sql.named(_FORGET, doomed=_UP_TO)

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None, fingerprint: str | None
    ) -> int:
        """Remove events, and the outcomes of commands, up to a version. Returns how many events."""

        async def truncate(session: PostgresSession) -> int:
            async with session.transaction():
                # Before the stream, as all who take both.
                await session.fetch(self._lock_removals)
                rows = await session.fetch(self._lock_stream, stream_id)
                if not rows:
                    return 0
                ((stream, version, truncated, claimed),) = rows
                _check_epoch(stream_id, epoch, claimed)
                last = min(through, version)
                if last <= truncated:
                    return 0
                for (position,) in await session.fetch(self._last, stream, last):
                    checkpoints = [stored_checkpoint(*row) for row in await session.fetch(self._concerning)]
                    check_passed(checkpoints, self._tenant, stream_id, position)
                if fingerprint is not None and not await session.fetch(self._standing, stream, last, fingerprint):
                    raise no_snapshot(stream_id, last, fingerprint)
                # The door that the delete trigger looks for; it stays as the record of what was removed.
                ((door,),) = await session.fetch(self._open_removal, stream, last, reason, _now())
                removed = await session.execute(self._remove, stream, last)
                await session.execute(self._truncated, stream, last)
                await session.execute(self._close_removal, door, removed)
                await session.fetch(self._forget_up_to, stream_id, last)
                return removed

        return await self._pool.run(truncate, writing=True)

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        """Forget outcomes that are neither among the newest nor recorded late enough. Returns how many."""
        latest = _LARGEST if before is None else microseconds(before)

        ((count,),) = await self._pool.run(
            lambda session: session.fetch(self._forget_old, stream_id, keep, latest), writing=True
        )
        return int(count)

    async def add_seal(self, seal: StoredSeal) -> bool:
        count = await self._pool.run(lambda session: session.execute(self._add_seal, *seal), writing=True)
        return count == 1

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        stream_id, epoch = snapshot.stream_id, snapshot.epoch
        values = (
            snapshot.version,
            snapshot.fingerprint,
            snapshot.encoding,
            snapshot.payload,
            snapshot.checksum,
            epoch,
            microseconds(snapshot.recorded_at),
        )

        async def save(session: PostgresSession) -> bool:
            rows = await session.fetch(self._save_snapshot, *values, keep, stream_id)
            if not rows:
                await session.execute(self._new_stream, stream_id, stream_kind(stream_id), _now())
                rows = await session.fetch(self._save_snapshot, *values, keep, stream_id)
            ((claimed, is_there),) = rows
            _check_epoch(stream_id, epoch or None, claimed)
            return bool(is_there)

        return await self._pool.run(save, writing=True)

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        last = _LARGEST if through is None else through
        return await self._pool.run(
            lambda session: session.execute(self._delete_snapshots, stream_id, last), writing=True
        )


def _check_epoch(stream_id: str, epoch: int | None, claimed: int) -> None:
    """Raise `FencedError` for an epoch that has been overtaken."""
    if epoch is not None and epoch < claimed:
        raise FencedError(stream_id, epoch, claimed)


def _now() -> int:
    return time.time_ns() // 1000
