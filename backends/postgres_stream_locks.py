"""The locks on the rows of a batch's streams, those that do not exist yet included."""

from __future__ import annotations

from backends.postgres_errors import ROLLED_BACK
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from eventstore.backend import Batch
from eventstore.errors import TransactionConflict
from eventstore.events import stream_kind

# A stream that is not there can be neither locked nor be kept from being made, so its row is made. One that another
# transaction is making at this moment is waited for.
_MAKE_STREAMS = """
INSERT INTO {schema}.journal_streams (tenant, stream_id, kind, version, created_at)
SELECT {tenant}, n.stream_id, n.kind, 0, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
FROM unnest($1::text[], $2::text[]) AS n (stream_id, kind)
ORDER BY n.stream_id COLLATE "C"
ON CONFLICT DO NOTHING
"""
# How often streams that do not exist yet are looked for again because others make them.
_ROUNDS = 12


def streams_of(batch: Batch) -> list[str]:
    """The streams of a batch, in the order of their ids' bytes."""
    return sorted({write.stream_id for write in batch}, key=str.encode)


async def lock_streams(session: PostgresSession, sql: PostgresSQL, stream_ids: list[str], *, are_made: bool) -> None:
    """Lock the rows of streams until the end of the transaction, in the order of all appends: those that are there by
    their ids, then new ones by their names. Raises the driver's errors."""
    if are_made:
        await session.fetch(sql.lock_streams, stream_ids)
        return
    await session.execute("SAVEPOINT eventstore_streams")
    for _ in range(_ROUNDS):
        found = {row[0] for row in await session.fetch(sql.lock_streams, stream_ids)}
        missing = [stream_id for stream_id in stream_ids if stream_id not in found]
        kinds = [stream_kind(stream_id) for stream_id in missing]
        if not missing or await session.execute(sql.named(_MAKE_STREAMS), missing, kinds) == len(missing):
            return
        # Others have made some of them meanwhile. To lock these now would be out of order, so it begins anew.
        await session.execute("ROLLBACK TO SAVEPOINT eventstore_streams")
    raise TransactionConflict(f"others were faster every time; {ROLLED_BACK}")
