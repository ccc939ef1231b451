"""Records on SQLite: the columns of one, what a filter is in SQL, and records out of rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from sqlalchemy import ColumnElement, SelectBase, exists, func, select
from sqlalchemy import literal_column as sql

from backends.sql_records import recorded
from backends.sqlite_log import Statement, log_select
from backends.tables import journal_events, journal_streams
from eventstore.backend import EventFilter, LogPage
from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent

_e, _s = journal_events.c, journal_streams.c
RECORD = (
    _e.position,
    _s.stream_id,
    _e.version,
    _e.type,
    _e.schema_version,
    _e.payload,
    _e.metadata,
    func.hex(_e.event_id).label("event_id"),
    func.hex(_e.batch_id).label("batch_id"),
    _e.epoch,
    _e.recorded_at,
    _e.checksum,
    _s.tenant,
    _e.origin,
    _e.origin_sequence,
    _e.clock,
    _e.concurrent,
)
# With the sign no index serves it: the planner would look up all of a tenant's streams, and sort their events, for each
# page of the log.
unindexed_tenant: ColumnElement[str] = sql("+journal_streams.tenant")


def conditions_of(where: EventFilter, own: str) -> list[ColumnElement[bool]]:
    """A filter in SQL: of what a tenant's store shows, or one without a tenant."""
    conditions: list[ColumnElement[bool]] = [unindexed_tenant == own] if own else []
    if where.kinds:
        conditions.append(_s.kind.in_(where.kinds))
    if where.types:
        conditions.append(_e.type.in_(where.types))
    if where.stream_ids:
        conditions.append(_s.stream_id.in_(where.stream_ids))
    if where.tenants:
        conditions.append(unindexed_tenant.in_(where.tenants))
    if where.tags:
        tags = func.json_each(_e.metadata, "$.tags").table_valued("value")
        conditions.append(exists(select(tags.c.value).where(tags.c.value.in_(where.tags))))
    return conditions


def as_one_row(page: SelectBase) -> ColumnElement[Any]:
    """A page of records as one JSON text."""
    rows = page.subquery()
    return select(func.json_group_array(func.json_array(*rows.c))).scalar_subquery()


def records_of(events: str) -> Sequence[RecordedEvent]:
    """The records of such a text. Raises `JournalCorrupt`."""
    try:
        rows = orjson.loads(events)
    except ValueError as error:
        raise JournalCorrupt(f"a stored event cannot be read: {error}") from error
    return [_record(*row) for row in rows]


def _record(*row: Any) -> RecordedEvent:
    """The record of a row of `RECORD`, whose ids are hexadecimal, because JSON holds no bytes."""
    columns = list(row)
    columns[7:9] = bytes.fromhex(row[7]), bytes.fromhex(row[8]) or None
    return recorded(*columns)


def log_within(connection: sqlite3.Connection, own: str, *, after: int, limit: int, where: EventFilter) -> LogPage:
    """A page of the log as the transaction sees it that a connection is in. Raises the driver's errors too."""
    statement = _within(EventFilter(*map(tuple, where)), own)
    parameters = {**statement.constants, "after": after, "limit": limit}
    records = [_record(*row) for row in connection.execute(statement.text, parameters)]
    position = records[-1].position if records else after
    return LogPage(records, position, len(records) < limit, position)


@lru_cache(maxsize=64)
def _within(where: EventFilter, own: str) -> Statement:
    # Making a statement takes as long as reading a hundred events.
    return Statement.of(log_select(RECORD, conditions_of(where, own), is_scan=not where.stream_ids))
