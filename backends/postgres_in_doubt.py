"""InDoubt: a transaction that was told to commit and got no answer, and how it is found out whether it has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from backends.deciding import Group, Head
from backends.postgres_driver import DRIVER_ERRORS
from backends.postgres_errors import first_line
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.postgres_stream_locks import lock_streams, streams_of
from eventstore.backend import Appended, Batch
from eventstore.errors import EventStoreError, OutcomeUnknown

_STATUS = "SELECT pg_postmaster_start_time()::text, pg_xact_status($1::text::xid8)"
_TRUNCATED = """
SELECT stream_id, truncated FROM {schema}.journal_streams WHERE tenant = {tenant} AND stream_id = ANY ($1::text[])
"""


class InDoubt(NamedTuple):
    """What is known of a transaction that was told to commit. All that is still to be told is whether it has."""

    batch: Batch
    outcome: Appended
    xid: str
    server_started: str


async def has_committed(doubt: InDoubt, connect: Callable[[], Awaitable[PostgresSession]], sql: PostgresSQL) -> bool:
    """Whether the transaction was committed. It has locked the rows of the batch's streams, so who locks them next
    has waited for its end: only then is looked.

    Raises `OutcomeUnknown` as long as it cannot be told.
    """
    try:
        session = await connect()
    except EventStoreError as error:
        raise _still_unknown(error) from error
    try:
        async with session.transaction():
            await lock_streams(session, sql, streams_of(doubt.batch), are_made=False)
            # Nothing of this is to stay.
            raise _Found(await _look(session, sql, doubt))
    except _Found as found:
        is_stored = found.is_stored
    except DRIVER_ERRORS as error:
        raise _still_unknown(error) from error
    finally:
        await session.close()
    if is_stored is None:
        raise OutcomeUnknown("the server was started anew since it was told to commit, and nothing tells now")
    return is_stored


async def _look(session: PostgresSession, sql: PostgresSQL, doubt: InDoubt) -> bool | None:
    """None: it cannot be told, yet or any more."""
    batch = doubt.batch
    ((server_started, status),) = await session.fetch(_STATUS, doubt.xid)
    if server_started == doubt.server_started and status is not None:
        return {"committed": True, "aborted": False}.get(status)
    # It is another server, or the same one started anew: no session of that time is left. What is stored decides.
    events = [event.event_id for write in batch for event in write.events]
    keys = [(write.stream_id, command.command_id) for write in batch for command in write.commands]
    if not events and not keys:
        return None
    stream_ids = list({write.stream_id for write in batch})
    streams = {row[0]: Head(*row[1:]) for row in await session.fetch(sql.streams, stream_ids)}
    places = {row[0]: tuple(row[1:]) for row in await session.fetch(sql.places, events)}
    columns: Sequence[Sequence[str]] = list(zip(*keys, strict=True)) or [(), ()]
    remembered = {
        (stream_id, command_id): (outcome_id, version)
        for stream_id, command_id, outcome_id, version in await session.fetch(sql.remembered, *columns)
    }
    outcome = Group(streams, 0, places, remembered).decide(batch)
    if isinstance(outcome, Appended) and outcome.is_duplicate:
        return True
    # What was stored may have been removed since, with its ids.
    versions = dict(zip([write.stream_id for write in batch], doubt.outcome.versions, strict=True))
    truncated = await session.fetch(sql.named(_TRUNCATED), stream_ids)
    return None if any(through >= versions[stream_id] > 0 for stream_id, through in truncated) else False


class _Found(Exception):
    """Ends the transaction that was begun only to look."""

    def __init__(self, is_stored: bool | None) -> None:
        super().__init__()
        self.is_stored = is_stored


def _still_unknown(error: BaseException) -> OutcomeUnknown:
    return OutcomeUnknown(f"whether the transaction was committed could not be found out: {first_line(error)}")
