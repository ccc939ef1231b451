"""The statements of an append on Postgres: all that a group stores in one, in a variant for each sort of group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

# An append stores everything or nothing, and it stores only if every stream is exactly as it was when the append was
# decided. The order of its steps is what the readers' rule (`_MARK` in postgres_sql.py) rests on, and each step
# forces the one before:
# 1. the shared lock by which a reader finds the transactions that may still store below a position;
# 2. the rows of the streams, locked in the order of their ids, so that two appends never wait for each other;
# 3. positions. One taken before its stream is locked could stand below an event of the stream that came earlier.
# Arrays that hold nothing but what is usual are left empty: each array costs about 20 µs on its way.
_APPEND = """
WITH lock AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared({lock})
), {moved}, stored AS (
    INSERT INTO {schema}.journal_events (position, stream, version, type, schema_version, payload, metadata, event_id,
        batch_id, checksum, epoch, recorded_at{replica_columns})
    SELECT nextval('{schema}.journal_events_position_seq'), e.stream, e.version, e.type, coalesce(e.schema_version, 1),
        e.payload, e.metadata, substr($7::bytea, 16 * e.number - 15, 16), e.batch_id, e.checksum,
        coalesce(e.epoch, 0), {recorded_at}{replica_values}
    FROM {events}
    WHERE {holds}
    RETURNING position, recorded_at
){remembered}
SELECT count(*), (SELECT count(*) FROM updated), {latest}, min(position), max(position),
    CASE WHEN max(position) - min(position) + 1 <> count(*)
        THEN array_agg(position ORDER BY position) END{memories}{ids}
FROM stored
"""
# If a stream is not as it was, nothing is stored, and the row that comes back says so.
_LOCKED_THEN_MOVED = """heads AS MATERIALIZED (
    SELECT s.id, w.next
    FROM lock CROSS JOIN ({wanted} LIMIT {count} + 1) w
    JOIN {schema}.journal_streams s ON s.id = w.id AND s.version = {version} AND {owned}
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
){created}, updated AS (
    UPDATE {schema}.journal_streams s SET version = h.next FROM heads h
    WHERE s.id = h.id AND s.version <> h.next AND {holds}
    RETURNING s.id
)"""
_HEADS_HOLD = "(SELECT count(*) FROM heads) = {count}"

# A seventh less work for the server: rows are locked by being moved on. If a stream is not as it was, those before it
# have been moved, so the statement has to fail, and the server's log says why.
_MOVED_AT_ONCE = """updated AS (
    UPDATE {schema}.journal_streams s SET version = w.next
    FROM lock CROSS JOIN ({wanted} ORDER BY id LIMIT {count} + 1) w
    WHERE s.id = w.id AND s.version = {version} AND {owned}
    RETURNING s.id
), guard AS MATERIALIZED (
    SELECT CASE WHEN count(*) = {count} THEN true
        ELSE ('eventstore: another writer was faster, this append is decided again: ' || count(*))::boolean END AS holds
    FROM updated
)"""
_GUARD_HOLDS = "(SELECT holds FROM guard)"

_RECORDED_AT = "(SELECT greatest($11::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))"

# Positions rise with the events, because they are taken in their order; they are told one by one only where another
# append took some in between.
# Numbers and texts come strung together, and the server takes them apart: the driver takes longer over each element of
# an array than all else an event costs there. JSON holds no control character but white space. Arrays that are
# unnested side by side in a SELECT go in step, the shorter ones with NULLs, and unlike those in a FROM no column is
# stored away first.
_EVENTS = """(
        SELECT unnest($1::text::bigint[]) AS stream, unnest($2::text::bigint[]) AS version,
            unnest(string_to_array($3::text, chr(30))) AS type, unnest($4::int[]) AS schema_version,
            unnest(string_to_array($5::text, chr(30))) AS payload, unnest($6::text[]) AS metadata,
            unnest($8::bytea[]) AS batch_id, unnest($9::text::bigint[]) AS epoch,
            unnest($10::text::bigint[]) AS checksum, generate_series(1, length($7::bytea) / 16) AS number
    ) e"""
_EVENT_PARAMETERS = 11

# The usual group: one event for each of its streams, none of which has an owner. The events tell the heads.
_WANTED_BY_EVENTS = "SELECT unnest($1::text::bigint[]) AS id, unnest($2::text::bigint[]) AS next"
_VERSION_BEFORE_EVENT = "w.next - 1"
_UNOWNED = "s.epoch = 0"
# The same where streams have owners, and each event is of its stream's.
_WANTED_BY_OWNED_EVENTS = _WANTED_BY_EVENTS + ", unnest($9::text::bigint[]) AS epoch"
_OWNED = "s.epoch = coalesce(w.epoch, 0)"
# The same where commands are remembered, with owners or without.
_WANTED_BY_EVENTS_AND_COMMANDS = _WANTED_BY_OWNED_EVENTS + ", unnest({forgotten}::text::bigint[]) AS forgotten"
_OWNED_AND_FORGOTTEN = "s.epoch = coalesce(w.epoch, 0) AND s.forgotten = coalesce(w.forgotten, 0)"
# Each id of an event has 16 bytes.
_COUNT_OF_EVENTS = "length($7::bytea) / 16"

# Any other: with the streams that were only looked at, too.
_WANTED = """SELECT unnest($12::bigint[]) AS id, unnest($13::bigint[]) AS version, unnest($14::bigint[]) AS next,
        unnest($15::bigint[]) AS epoch"""
_WANTED_AND_FORGOTTEN = _WANTED + ", unnest({forgotten}::text::bigint[]) AS forgotten"
_COUNT = "cardinality($12)"
_HEAD_PARAMETERS = 4

# With streams that have no row yet: their events have -1, -2, …: the place of their stream in $16. A stream that
# somebody else is making at this moment is waited for, and is then a unique violation; one that is there already
# stores nothing, without an error in the server's log. The lock is asked for by name: where there is no row to lock, it
# would rest on the plan whether anything else asks.
_CREATED = """, guard AS MATERIALIZED (
    SELECT (SELECT count(*) FROM lock) = 1 AND {heads_hold} AND NOT EXISTS (
        SELECT FROM {schema}.journal_streams s WHERE s.tenant = {tenant} AND s.stream_id = ANY ($16::text[])
    ) AS holds
), created AS (
    INSERT INTO {schema}.journal_streams (tenant, stream_id, kind, version, created_at)
    SELECT {tenant}, n.stream_id, n.kind, n.version, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    FROM unnest($16::text[], $17::text[], $18::bigint[]) AS n (stream_id, kind, version)
    WHERE {holds}
    ORDER BY n.stream_id COLLATE "C"
    RETURNING id, stream_id
)"""
_CREATED_PARAMETERS = 3
_EVENTS_OF_NEW = """(
        SELECT coalesce(c.id, e.stream) AS stream, e.version, e.type, e.schema_version, e.payload, e.metadata,
            e.batch_id, e.epoch, e.checksum, e.number
        FROM {all_events}
        LEFT JOIN unnest($16::text[]) WITH ORDINALITY AS n (stream_id, place) ON n.place = -e.stream
        LEFT JOIN created c ON c.stream_id = n.stream_id
        ORDER BY e.number
    ) e"""
_IDS_OF_NEW = """,
    (SELECT array_agg(c.id ORDER BY n.number)
        FROM unnest($16::text[]) WITH ORDINALITY AS n (stream_id, number) JOIN created c USING (stream_id))"""

# What commands came to. Their ids may hold any character that a text can, so they are an array. The ids of the rows
# rise with the order in which a stream's outcomes are stored, because its row is locked by then.
_REMEMBERED = """, remembered AS (
    INSERT INTO {schema}.journal_commands (stream, command_id, fingerprint, outcome_id, is_rejection, payload,
        issued_at, version, recorded_at)
    SELECT c.stream, c.command_id, substr({digests}::bytea, 16 * c.number - 15, 16),
        substr({digests}::bytea, length({digests}::bytea) / 2 + 16 * c.number - 15, 16),
        coalesce(c.is_rejection, false), c.payload, coalesce(c.issued_at, 0), c.version, {recorded_at}
    FROM {commands}
    WHERE {holds}
    RETURNING recorded_at
)"""
_COMMANDS = """(
        SELECT unnest({streams}::text::bigint[]) AS stream, unnest({versions}::text::bigint[]) AS version,
            unnest({command_ids}::text[]) AS command_id, unnest({rejections}::bool[]) AS is_rejection,
            unnest(string_to_array({payloads}::text, chr(30))) AS payload,
            unnest({issued}::text::bigint[]) AS issued_at, generate_series(1, length({digests}::bytea) / 32) AS number
    ) c"""
_COMMANDS_OF_NEW = """(
        SELECT coalesce(n.id, c.stream) AS stream, c.version, c.command_id, c.is_rejection, c.payload, c.issued_at,
            c.number
        FROM {all_commands}
        LEFT JOIN unnest($16::text[]) WITH ORDINALITY AS p (stream_id, place) ON p.place = -c.stream
        LEFT JOIN created n ON n.stream_id = p.stream_id
        ORDER BY c.number
    ) c"""
# In the order of `command_columns`.
_COMMAND_PARAMETERS = (
    "forgotten",
    "streams",
    "versions",
    "command_ids",
    "digests",
    "rejections",
    "payloads",
    "issued",
)
_MEMORIES = ", (SELECT count(*) FROM remembered)"
_LATEST_OF_BOTH = "greatest(max(recorded_at), (SELECT max(recorded_at) FROM remembered))"

# Few events come with what a replica says of them, and the others do without these arrays.
_REPLICA_COLUMNS = ", origin, origin_sequence, clock, concurrent"
_REPLICA_VALUES = ", e.origin, e.origin_sequence, e.clock, e.concurrent"
_EVENTS_AND_REPLICAS = """(
        SELECT e.*, r.origin, r.origin_sequence, r.clock, r.concurrent
        FROM {single_events}
        LEFT JOIN unnest({places}::bigint[], {origins}::text[], {sequences}::bigint[], {clocks}::text[],
            {concurrent}::bool[]) AS r (number, origin, origin_sequence, clock, concurrent) ON r.number = e.number
        ORDER BY e.number
    ) e"""
# In the order of `replica_columns`.
_REPLICA_PARAMETERS = ("places", "origins", "sequences", "clocks", "concurrent")

Streams = Literal["one each", "one each, owned", "known", "new"]
"""Which streams a statement is for: with one event each, any that have rows, or some that have none yet."""


def append_statement(
    streams: Streams, *, with_commands: bool = False, with_replicas: bool = False, at_once: bool = False
) -> str:
    """The statement, with the names of the schema and of the lock still to be filled in.

    Its parameters are an event's columns and the time of the last append, then the heads of streams that are not
    told by one event each, then the new streams, then the commands' columns, then the replicas' columns.

    `at_once`: it fails if a stream is not as it was, and is faster where they all are. Each must get events.
    """
    parts = {"events": _EVENTS, "recorded_at": _RECORDED_AT, "latest": "max(recorded_at)"}
    parts |= dict.fromkeys(("created", "ids", "remembered", "memories", "replica_columns", "replica_values"), "")
    parts |= (
        {"moved": _MOVED_AT_ONCE, "holds": _GUARD_HOLDS}
        if at_once
        else {"moved": _LOCKED_THEN_MOVED, "holds": _HEADS_HOLD}
    )
    parameters = _EVENT_PARAMETERS
    if streams in ("one each", "one each, owned"):
        parts |= {"version": _VERSION_BEFORE_EVENT, "count": _COUNT_OF_EVENTS}
        if with_commands:
            parts |= {"wanted": _WANTED_BY_EVENTS_AND_COMMANDS, "owned": _OWNED_AND_FORGOTTEN}
        elif streams == "one each":
            parts |= {"wanted": _WANTED_BY_EVENTS, "owned": _UNOWNED}
        else:
            parts |= {"wanted": _WANTED_BY_OWNED_EVENTS, "owned": _OWNED}
    else:
        parts |= {"version": "w.version", "count": _COUNT}
        parts |= {"wanted": _WANTED_AND_FORGOTTEN if with_commands else _WANTED}
        parts |= {"owned": _OWNED_AND_FORGOTTEN if with_commands else _OWNED}
        parameters += _HEAD_PARAMETERS
    if streams == "new":
        parts |= {"created": _CREATED, "ids": _IDS_OF_NEW, "events": _EVENTS_OF_NEW, "all_events": _EVENTS}
        parts |= {"heads_hold": _HEADS_HOLD, "holds": _GUARD_HOLDS}
        parameters += _CREATED_PARAMETERS
    if with_commands:
        parts |= {"remembered": _REMEMBERED, "memories": _MEMORIES, "latest": _LATEST_OF_BOTH}
        parts |= {"commands": _COMMANDS_OF_NEW if streams == "new" else _COMMANDS, "all_commands": _COMMANDS}
        parts |= {name: f"${number}" for number, name in enumerate(_COMMAND_PARAMETERS, start=parameters + 1)}
        parameters += len(_COMMAND_PARAMETERS)
    if with_replicas:
        parts |= {"replica_columns": _REPLICA_COLUMNS, "replica_values": _REPLICA_VALUES}
        parts |= {"single_events": parts["events"], "events": _EVENTS_AND_REPLICAS}
        parts |= {name: f"${number}" for number, name in enumerate(_REPLICA_PARAMETERS, start=parameters + 1)}
    return _filled(_APPEND, parts)


def _filled(statement: str, parts: Mapping[str, str]) -> str:
    """The statement with its parts, which may hold further ones, in place of their names."""
    while found := [name for name in parts if f"{{{name}}}" in statement]:
        for name in found:
            statement = statement.replace(f"{{{name}}}", parts[name])
    return statement
