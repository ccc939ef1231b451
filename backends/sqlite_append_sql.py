"""The statements of an append on SQLite, each for so many rows."""

from __future__ import annotations

# A statement is prepared for these many rows, and a group is padded to the next: preparing costs more than padding.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)

COLUMNS = 11
_ROW = "(" + ",".join("?" * COLUMNS) + ")"

# One statement is one sqlite3_step, and so one release of the interpreter's lock: beside a busy event loop every
# further one may wait for many milliseconds. It is safe to decide on remembered versions, because it stores nothing if
# another connection has appended since (its events have the positions that are given here) or has truncated.
_INSERT = """
INSERT INTO {table}
    (position, stream, version, type, schema_version, payload, metadata, event_id, batch_id, checksum, epoch,
    recorded_at)
SELECT nullif(column1, 0), column2, column3, column4, column5, CAST(column6 AS TEXT),
    CAST(nullif(column7, 0) AS TEXT), column8, nullif(column9, 0), column10, column11, ?
FROM (VALUES {rows})
WHERE column2 <> 0 AND {guard}
"""
_REMOVALS = "(SELECT coalesce(max(id), 0) FROM journal_removals) = ?"
# A claim leaves no trace but its own row, and forgotten commands leave none: where epochs or commands are checked, any
# commit of another connection counts.
_COMMITS = _REMOVALS + " AND (SELECT data_version FROM pragma_data_version) = ?"  # noqa: S608 - two constants


def _inserts(table: str, guard: str) -> dict[int, str]:
    return {size: _INSERT.format(table=table, rows=",".join([_ROW] * size), guard=guard) for size in SIZES}


EVENTS = _inserts("journal_events", _REMOVALS)
FENCED_EVENTS = _inserts("journal_events", _COMMITS)
EVENTS_AND_COMMANDS = _inserts("journal_appends", _COMMITS)

# Events and outcomes of commands in one statement: a row without a position is an outcome. In a transaction of four
# statements they took three times as long beside a busy event loop. View and triggers are this connection's own, so
# that nobody else can change them.
_VIEW = """
CREATE TEMP VIEW {view} AS
SELECT position, stream, version, type, schema_version, payload, metadata, event_id, batch_id, checksum, epoch,
    recorded_at{columns}
FROM journal_events
"""
_STORE_EVENT = """
CREATE TEMP TRIGGER {view}_event INSTEAD OF INSERT ON {view} WHEN NEW.position IS NOT NULL
BEGIN
    INSERT INTO journal_events
        (position, stream, version, type, schema_version, payload, metadata, event_id, batch_id, checksum, epoch,
        recorded_at{columns})
    VALUES (NEW.position, NEW.stream, NEW.version, NEW.type, NEW.schema_version, NEW.payload, NEW.metadata,
        NEW.event_id, NEW.batch_id, NEW.checksum, NEW.epoch, NEW.recorded_at{new_columns});
END
"""
_STORE_COMMAND = """
CREATE TEMP TRIGGER {view}_command INSTEAD OF INSERT ON {view} WHEN NEW.position IS NULL
BEGIN
    INSERT INTO journal_commands
        (stream, version, command_id, is_rejection, payload, fingerprint, outcome_id, issued_at, recorded_at)
    VALUES (NEW.stream, NEW.version, NEW.type, NEW.schema_version, NEW.payload, NEW.event_id, NEW.batch_id,
        NEW.epoch, NEW.recorded_at);
END
"""

# Few events come with what a replica says of them, and the others shall not bind four columns in vain: these have
# statements of their own.
REPLICA = (", origin", ", origin_sequence", ", clock", ", concurrent")
_REPLICA_COLUMNS = COLUMNS + len(REPLICA)
WITH_REPLICAS = {
    size: _INSERT.replace("recorded_at)", f"recorded_at{''.join(REPLICA)})")
    .replace("column11, ?", "column11, ?, column12, column13, CAST(column14 AS TEXT), column15")
    .format(
        table="journal_replica_appends",
        rows=",".join(["(" + ",".join("?" * _REPLICA_COLUMNS) + ")"] * size),
        guard=_COMMITS,
    )
    for size in SIZES
}
TEMPORARY = [
    statement.format(
        view=view, columns="".join(columns), new_columns="".join(column.replace(" ", " NEW.") for column in columns)
    )
    for view, columns in (("journal_appends", ()), ("journal_replica_appends", REPLICA))
    for statement in (_VIEW, _STORE_EVENT, _STORE_COMMAND)
]

LOG_END = """
SELECT max(
    coalesce((SELECT max(position) FROM journal_events), 0),
    coalesce((SELECT log_end FROM journal_removals ORDER BY id DESC LIMIT 1), 0)
)
"""
"""The highest position there ever was: not only the last row's, for that may have been removed."""

STATE = """
SELECT (SELECT data_version FROM pragma_data_version), (SELECT coalesce(max(id), 0) FROM journal_removals),
    coalesce((SELECT recorded_at FROM journal_events ORDER BY position DESC LIMIT 1), 0)
"""
# CROSS JOIN: the planner would walk through all streams, and for each through all that are wanted.
STREAMS = """
SELECT s.stream_id, s.id, s.truncated, s.epoch, s.forgotten,
    (SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id)
FROM json_each(?2) wanted CROSS JOIN journal_streams s ON s.tenant = ?1 AND s.stream_id = wanted.value
"""
NEW_STREAMS = """
INSERT INTO journal_streams (tenant, stream_id, kind, created_at)
SELECT ?1, json_extract(value, '$[0]'), json_extract(value, '$[1]'), ?2 FROM json_each(?3)
"""
# No stream has an empty id: what another tenant has stored is never what this one sends again.
STORED_IDS = """
SELECT e.event_id, CASE WHEN s.tenant = ? THEN s.stream_id ELSE '' END, e.version, e.position
FROM journal_events e JOIN journal_streams s ON s.id = e.stream WHERE e.event_id IN ({ids})
"""
STORED_COMMANDS = """
SELECT s.stream_id, c.command_id, c.outcome_id, c.version
FROM json_each(?2) w
    CROSS JOIN journal_streams s ON s.tenant = ?1 AND s.stream_id = w.value ->> '$[0]'
    CROSS JOIN journal_commands c ON c.command_id = w.value ->> '$[1]' AND c.stream = s.id
"""
