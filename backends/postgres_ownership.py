"""PostgresOwnership: who may write to a stream alone. Who holds what is decided by the server's clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from backends.postgres_pool import PostgresPool
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from eventstore.backend import Claim, Holder, Holding, OwnerInfo
from eventstore.errors import LeaseLost, StoreBusy
from eventstore.events import stream_kind

_MICROSECONDS = 1_000_000

# The next try knows of whoever was faster in the one before.
_TRIES = 12

_NEW_STREAMS = """
INSERT INTO {schema}.journal_streams (tenant, stream_id, kind, created_at)
SELECT {tenant}, n.stream_id, n.kind, $3 FROM unnest($1::text[], $2::text[]) AS n (stream_id, kind)
ORDER BY n.stream_id COLLATE "C"
ON CONFLICT (tenant, stream_id) DO NOTHING
"""
# OFFSET 0, and a comparison that no index of owners serves, have each stream looked up by its id, whatever was known of
# the tables when the statement was planned.
#
# One statement, so that a process that is stopped in the middle keeps nobody waiting. Rows are locked in the order in
# which appends lock them: a claim waits for the append that is under way, and the next one finds the new epoch.
# All of it knows the journal as it was when it began, but for the rows that it locked. Where somebody else claimed one
# in the meantime, his lease may not be known: then nothing is claimed (`is_current`), and it is asked again.
_CLAIM = """
WITH moment AS MATERIALIZED (
    SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
), locked AS MATERIALIZED (
    SELECT w.number, w.owner, w.lapsed, s.id, s.epoch
    FROM unnest($1::text[], $2::bytea[], $3::bigint[]) WITH ORDINALITY AS w (stream_id, owner, lapsed, number)
    CROSS JOIN LATERAL (
        SELECT i.id FROM {schema}.journal_streams i WHERE i.tenant = {tenant} AND i.stream_id = w.stream_id OFFSET 0
    ) i
    JOIN {schema}.journal_streams s ON s.id = i.id
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
), asked AS MATERIALIZED (
    SELECT l.number, l.owner, l.id, h.id AS holder, h.name, h.renewals, h.duration, h.ends_at - m.now AS remaining,
        l.owner IS NULL OR l.epoch = s.epoch AS is_current,
        l.owner IS NULL OR EXISTS (
            SELECT FROM {schema}.journal_owners o
            WHERE o.tenant = {tenant} AND o.id = l.owner AND o.ends_at > m.now
        ) AS has_lease
    FROM moment m CROSS JOIN locked l
    JOIN {schema}.journal_streams s ON s.id = l.id
    LEFT JOIN {schema}.journal_owners h ON h.tenant = {tenant} AND h.id = s.owner AND s.owner <> l.owner
        AND h.ends_at > m.now AND h.renewals IS DISTINCT FROM l.lapsed
), verdict AS MATERIALIZED (
    SELECT count(*) FILTER (WHERE is_current AND has_lease) = cardinality($1) AS is_good FROM asked
), taken AS (
    UPDATE {schema}.journal_streams s SET epoch = s.epoch + 1, owner = a.owner FROM asked a
    WHERE s.id = a.id AND a.holder IS NULL AND (SELECT is_good FROM verdict)
    RETURNING a.number, s.epoch
)
SELECT t.number, true AS is_current, true AS has_lease, t.epoch, NULL AS holder, NULL, NULL, NULL, NULL FROM taken t
UNION ALL
SELECT a.number, a.is_current, a.has_lease, NULL, a.holder, a.name, a.renewals, a.duration, a.remaining FROM asked a
WHERE a.holder IS NOT NULL OR NOT (SELECT is_good FROM verdict)
ORDER BY number
"""
_RELEASE = """
WITH held AS MATERIALIZED (
    SELECT s.id FROM unnest($2::text[], $3::bigint[]) AS w (stream_id, epoch)
    CROSS JOIN LATERAL (
        SELECT i.id FROM {schema}.journal_streams i WHERE i.tenant = {tenant} AND i.stream_id = w.stream_id OFFSET 0
    ) i
    JOIN {schema}.journal_streams s ON s.id = i.id AND s.epoch = w.epoch AND s.owner IS NOT DISTINCT FROM $1::bytea
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
)
UPDATE {schema}.journal_streams s SET owner = NULL FROM held h WHERE s.id = h.id
"""

_OWNERS = """
SELECT id, name, renewals, ends_at - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, report
FROM {schema}.journal_owners WHERE tenant = {tenant} ORDER BY name COLLATE "C", id
"""
_HOLDINGS = """
SELECT stream_id, epoch, owner FROM {schema}.journal_streams
WHERE tenant = {tenant} AND owner IS NOT NULL AND stream_id > $1 ORDER BY stream_id LIMIT $2
"""


class PostgresOwnership:
    """Claims and what there is to see of them, through the pool."""

    def __init__(self, sql: PostgresSQL, pool: PostgresPool) -> None:
        self._pool = pool
        self._new_streams = sql.named(_NEW_STREAMS)
        self._claim = sql.named(_CLAIM)
        self._release = sql.named(_RELEASE)
        self._owners = sql.named(_OWNERS)
        self._holdings = sql.named(_HOLDINGS)

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        """Take streams' next epochs in one statement."""
        if not claims:
            return []
        return await self._pool.run(lambda session: self._claimed(session, claims), writing=True)

    async def _claimed(self, session: PostgresSession, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        columns = list(zip(*claims, strict=True))
        for _ in range(_TRIES):
            rows = await session.fetch(self._claim, *columns)
            if len(rows) < len(claims):
                # A statement of its own, so that nobody waits for these rows while it waits for others.
                stream_ids = [claim.stream_id for claim in claims]
                kinds = [stream_kind(stream_id) for stream_id in stream_ids]
                await session.execute(self._new_streams, stream_ids, kinds, time.time_ns() // 1000)
            elif not all(row["has_lease"] for row in rows):
                raise LeaseLost(
                    "this process holds no lease that runs: nothing was claimed; it is renewed in the background, "
                    "try again"
                )
            elif all(row["is_current"] for row in rows):
                return [_holder(*holder) if epoch is None else epoch for _, _, _, epoch, *holder in rows]
        raise StoreBusy("other processes claimed the same streams every time: nothing was claimed, try again")

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        """Let others claim streams that the owner still holds with these epochs."""
        if epochs:
            columns = list(epochs), list(epochs.values())
            await self._pool.run(lambda session: session.execute(self._release, owner, *columns), writing=True)

    async def owners(self) -> Sequence[OwnerInfo]:
        rows = await self._pool.run(lambda session: session.fetch(self._owners))
        return [
            OwnerInfo(id_, name, renewals, remaining / _MICROSECONDS, report.encode())
            for id_, name, renewals, remaining, report in rows
        ]

    async def holdings(self, *, after: str, limit: int) -> Sequence[Holding]:
        rows = await self._pool.run(lambda session: session.fetch(self._holdings, after, limit))
        return [Holding(*row) for row in rows]


def _holder(owner: bytes, name: str, renewals: int, duration: int, remaining: int) -> Holder:
    return Holder(owner, name, renewals, duration / _MICROSECONDS, remaining / _MICROSECONDS)
