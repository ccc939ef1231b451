"""The journal's statements on Postgres. Names are put together with the journal's schema once, in `PostgresSQL`.

They are the driver's own and not SQLAlchemy's, because appending and replaying are the hot paths: through Core an
append takes 2 to 3 times as long. Values are always parameters. Tables are named with their schema, so that no
statement rests on a session's search path, which a proxy that pools connections may have from somebody else.
"""

from __future__ import annotations

import hashlib

# An append stores everything or nothing, and it stores only if every stream is exactly as it was when the append was
# decided. The order of its steps is what the readers' rule (`_SETTLE`) rests on, and each step forces the one before:
# 1. the shared lock by which a reader finds the transactions that may still store below a position;
# 2. the rows of the streams, locked in the order of their ids, so that two appends never wait for each other;
# 3. positions. One taken before its stream is locked could stand below an event of the stream that came earlier.
# Arrays that hold nothing but what is usual are left empty: each array costs about 20 µs on its way.
_APPEND = """
WITH lock AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared({lock})
), heads AS MATERIALIZED (
    {heads}
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
){created}, updated AS (
    UPDATE {schema}.journal_streams s SET version = h.next FROM heads h
    WHERE s.id = h.id AND s.version <> h.next AND {holds}
    RETURNING s.id
), stored AS (
    INSERT INTO {schema}.journal_events (position, stream, version, type, schema_version, payload, metadata, event_id,
        batch_id, epoch, recorded_at)
    SELECT nextval('{schema}.journal_events_position_seq'), e.stream, e.version, e.type, coalesce(e.schema_version, 1),
        e.payload, e.metadata, substr($7::bytea, 16 * e.number::int - 15, 16), e.batch_id, coalesce(e.epoch, 0),
        (SELECT greatest($10::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint))
    FROM {events}
    WHERE {holds}
    RETURNING position, recorded_at
)
SELECT count(*), (SELECT count(*) FROM updated), max(recorded_at), min(position), max(position),
    CASE WHEN max(position) - min(position) + 1 <> count(*) THEN array_agg(position ORDER BY position) END{ids}
FROM stored
"""
# Positions rise with the events, because they are taken in their order; they are told one by one only where another
# append took some in between.
# Numbers and texts come strung together, and the server takes them apart: the driver takes longer over each element of
# an array than all else an event costs there. JSON holds no control character but white space.
_EVENTS = """unnest(
            $1::text::bigint[], $2::text::bigint[], string_to_array($3::text, chr(30)), $4::int[],
            string_to_array($5::text, chr(30)), $6::text[], $8::bytea[], $9::bigint[]
        ) WITH ORDINALITY AS e (stream, version, type, schema_version, payload, metadata, batch_id, epoch, number)"""

# The usual group: one event for each of its streams, none of which has an owner. The events tell the heads.
_HEADS_OF_EVENTS = """SELECT s.id, w.version AS next
    FROM lock CROSS JOIN unnest($1::text::bigint[], $2::text::bigint[]) AS w (id, version)
    JOIN {schema}.journal_streams s ON s.id = w.id AND s.version = w.version - 1 AND s.epoch = 0"""
_HOLDS_FOR_EVENTS = "(SELECT count(*) FROM heads) = cardinality($1::text::bigint[])"

# Any other: with the streams that were only looked at, too.
_HEADS = """SELECT s.id, w.next
    FROM lock CROSS JOIN unnest($11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[])
        AS w (id, version, next, epoch)
    JOIN {schema}.journal_streams s ON s.id = w.id AND s.version = w.version AND s.epoch = coalesce(w.epoch, 0)"""
_HOLDS = "(SELECT count(*) FROM heads) = cardinality($11)"

# With streams that have no row yet: their events have -1, -2, …: the place of their stream in $15. A stream that
# somebody else is making at this moment is waited for, and is then a unique violation; one that is there already
# stores nothing, without an error in the server's log. The lock is asked for by name: where there is no row to lock, it
# would rest on the plan whether anything else asks.
_CREATED = """, guard AS MATERIALIZED (
    SELECT (SELECT count(*) FROM lock) = 1 AND {heads_hold} AND NOT EXISTS (
        SELECT FROM {schema}.journal_streams s WHERE s.tenant = '' AND s.stream_id = ANY ($15::text[])
    ) AS holds
), created AS (
    INSERT INTO {schema}.journal_streams (stream_id, kind, version, created_at)
    SELECT n.stream_id, n.kind, n.version, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    FROM unnest($15::text[], $16::text[], $17::bigint[]) AS n (stream_id, kind, version)
    WHERE {holds}
    ORDER BY n.stream_id COLLATE "C"
    RETURNING id, stream_id
)"""
_EVENTS_OF_NEW = """(
        SELECT coalesce(c.id, e.stream) AS stream, e.version, e.type, e.schema_version, e.payload, e.metadata,
            e.batch_id, e.epoch, e.number
        FROM {all_events}
        LEFT JOIN unnest($15::text[]) WITH ORDINALITY AS n (stream_id, place) ON n.place = -e.stream
        LEFT JOIN created c ON c.stream_id = n.stream_id
        ORDER BY e.number
    ) e"""
_IDS_OF_NEW = """,
    (SELECT array_agg(c.id ORDER BY n.number)
        FROM unnest($15::text[]) WITH ORDINALITY AS n (stream_id, number) JOIN created c USING (stream_id))"""

_STREAMS = """
SELECT stream_id, id, version, epoch FROM {schema}.journal_streams
WHERE tenant = '' AND stream_id = ANY ($1::text[]) ORDER BY id
"""
_PLACES = """
SELECT e.event_id, s.stream_id, e.version, e.position
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.event_id = ANY ($1::bytea[])
"""

# The sequence is read first: the inner query is run for its row. Whoever has taken a position up to it holds the lock
# from before, and gives it back only after its events can be seen. What a sequence and the locks hold does not depend
# on a snapshot, so transactions that run long and append nothing do not matter.
_SETTLE = """
SELECT h.position, (
    SELECT array_agg(l.virtualtransaction) FROM pg_catalog.pg_locks l
    WHERE h.position IS NOT NULL AND {is_append}
)
FROM (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS position FROM {schema}.journal_events_position_seq) h
"""
_STILL_APPENDING = """
SELECT array_agg(l.virtualtransaction) FROM pg_catalog.pg_locks l
WHERE l.virtualtransaction = ANY ($1::text[]) AND {is_append}
"""
_IS_APPEND = """l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.classid = {classid}::bigint::oid AND l.objid = {objid}::bigint::oid
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())"""

_RECORD = """e.position, s.stream_id, e.version, e.type, e.schema_version, e.payload, e.metadata, e.event_id,
    e.batch_id, e.epoch, e.recorded_at, s.tenant, e.origin, e.origin_sequence, e.clock, e.concurrent"""
# Tags in metadata that jsonb cannot hold are compared by the reader.
_MATCHES = """($1::text[] IS NULL OR s.kind = ANY ($1)) AND ($2::text[] IS NULL OR e.type = ANY ($2))
    AND ($3::text[] IS NULL OR s.stream_id = ANY ($3))
    AND ($4::text[] IS NULL OR {schema}.journal_json(e.metadata) -> 'tags' ?| $4
        OR (e.metadata IS NOT NULL AND {schema}.journal_json(e.metadata) IS NULL))"""

_LOG = """
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.journal_events_position_seq), {record}
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.position > $5 AND e.position <= $6 AND {matches}
ORDER BY e.position LIMIT $7
"""
# With the metadata that the reader still has to look at: each row without is a match.
_LAST = """
SELECT e.position, CASE WHEN $4::text[] IS NOT NULL AND {schema}.journal_json(e.metadata) IS NULL THEN e.metadata END
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.position <= $5 AND {matches}
ORDER BY e.position DESC OFFSET $6 LIMIT $7
"""

# One row for the stream, then its events, so that an empty page tells the version too.
_STREAM = """
WITH s AS MATERIALIZED (
    SELECT id, stream_id, tenant, version, truncated FROM {schema}.journal_streams
    WHERE tenant = '' AND stream_id = $1
)
SELECT s.version AS head, s.truncated, {record}
FROM s LEFT JOIN LATERAL (
    SELECT * FROM {schema}.journal_events e
    WHERE e.stream = s.id AND e.version > $2 AND e.version <= $3
    ORDER BY e.version {order} LIMIT $4
) e ON true
ORDER BY e.version {order}
"""

# One row for each wish: the stream's own numbers, its snapshot, and its page of events strung together, because making
# and taking apart a row for each event takes longer than all the rest. JSON holds no control character but white space.
# Where the versions have no hole, and the schema versions are all one, the first of them tells the others.
_LOAD = """
WITH wanted AS MATERIALIZED (
    SELECT w.number, w.size, s.id AS stream, s.version AS head, s.truncated,
        greatest(coalesce(n.version, w.after), s.truncated) AS after,
        n.version, n.fingerprint, n.encoding, n.payload, n.checksum, n.recorded_at, n.epoch
    FROM unnest($1::text[], $2::bigint[], $3::bool[], $4::bigint[])
        WITH ORDINALITY AS w (stream_id, after, use_snapshot, size, number)
    JOIN {schema}.journal_streams s ON s.tenant = '' AND s.stream_id = w.stream_id
    LEFT JOIN LATERAL (
        SELECT n.* FROM {schema}.journal_snapshots n
        WHERE w.use_snapshot AND n.stream = s.id AND n.version > w.after ORDER BY n.version DESC LIMIT 1
    ) n ON true
)
SELECT w.number, w.head, w.truncated,
    w.version, w.fingerprint, w.encoding, w.payload AS snapshot, w.checksum, w.recorded_at, w.epoch, p.*
FROM wanted w CROSS JOIN LATERAL (
    SELECT count(*), min(e.version) AS first_version,
        CASE WHEN max(e.version) - min(e.version) + 1 <> count(*) THEN array_agg(e.version) END AS versions,
        string_agg(e.type, chr(30)) AS types, min(e.schema_version) AS schema_version,
        CASE WHEN max(e.schema_version) <> min(e.schema_version) THEN array_agg(e.schema_version) END
            AS schema_versions,
        string_agg(e.payload, chr(30)) AS payloads
    FROM (
        SELECT e.version, e.type, e.schema_version, e.payload FROM {schema}.journal_events e
        WHERE e.stream = w.stream AND e.version > w.after ORDER BY e.version LIMIT w.size
    ) e
) p
"""

_LIST = """
SELECT s.stream_id, s.version, s.truncated FROM {schema}.journal_streams s
WHERE s.tenant = '' AND s.stream_id > $1 AND ($3::text IS NULL OR s.kind = $3) AND
    (s.version > 0 OR EXISTS (SELECT FROM {schema}.journal_snapshots n WHERE n.stream = s.id))
ORDER BY s.stream_id LIMIT $2
"""
_SNAPSHOTS = """
SELECT n.version, n.fingerprint, n.encoding, n.payload, n.checksum, n.recorded_at, n.epoch
FROM {schema}.journal_snapshots n JOIN {schema}.journal_streams s ON s.id = n.stream
WHERE s.tenant = '' AND s.stream_id = $1 AND n.version <= $2
ORDER BY n.version DESC LIMIT $3
"""
_STATISTICS = """
SELECT (SELECT count(*) FROM {schema}.journal_streams s
        WHERE s.version > 0 OR EXISTS (SELECT FROM {schema}.journal_snapshots n WHERE n.stream = s.id)),
    (SELECT count(*) FROM {schema}.journal_events), (SELECT count(*) FROM {schema}.journal_snapshots),
    (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.journal_events_position_seq),
    pg_total_relation_size('{schema}.journal_streams') + pg_total_relation_size('{schema}.journal_events') +
        pg_total_relation_size('{schema}.journal_snapshots') + pg_total_relation_size('{schema}.journal_removals')
"""

_CLAIM = """
INSERT INTO {schema}.journal_streams AS s (stream_id, kind, epoch, created_at) VALUES ($1, $2, 1, $3)
ON CONFLICT (tenant, stream_id) DO UPDATE SET epoch = s.epoch + 1
RETURNING s.epoch
"""
_STREAM_ID = "SELECT id FROM {schema}.journal_streams WHERE tenant = '' AND stream_id = $1"
_NEW_STREAM = """
INSERT INTO {schema}.journal_streams (stream_id, kind, created_at) VALUES ($1, $2, $3)
ON CONFLICT (tenant, stream_id) DO NOTHING RETURNING id
"""
_SAVE_SNAPSHOT = """
INSERT INTO {schema}.journal_snapshots (stream, version, fingerprint, encoding, payload, checksum, epoch, recorded_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (stream, version) DO UPDATE SET fingerprint = excluded.fingerprint, encoding = excluded.encoding,
    payload = excluded.payload, checksum = excluded.checksum, epoch = excluded.epoch, recorded_at = excluded.recorded_at
"""
_DROP_SNAPSHOTS = """
DELETE FROM {schema}.journal_snapshots WHERE stream = $1 AND version NOT IN
    (SELECT version FROM {schema}.journal_snapshots WHERE stream = $1 ORDER BY version DESC LIMIT $2)
"""
_DELETE_SNAPSHOTS = """
DELETE FROM {schema}.journal_snapshots n USING {schema}.journal_streams s
WHERE s.id = n.stream AND s.tenant = '' AND s.stream_id = $1 AND n.version <= $2
"""
_LOCK_STREAM = """
SELECT id, version, truncated FROM {schema}.journal_streams WHERE tenant = '' AND stream_id = $1 FOR NO KEY UPDATE
"""
_OPEN_REMOVAL = """
INSERT INTO {schema}.journal_removals (stream, through, log_end, reason, is_open, recorded_at)
VALUES ($1, $2, (SELECT last_value FROM {schema}.journal_events_position_seq), $3, true, $4) RETURNING id
"""
_REMOVE = "DELETE FROM {schema}.journal_events WHERE stream = $1 AND version <= $2"
_CLOSE_REMOVAL = "UPDATE {schema}.journal_removals SET is_open = false, removed = $2 WHERE id = $1"
_TRUNCATED = "UPDATE {schema}.journal_streams SET truncated = $2 WHERE id = $1"

_SERVER = """
SELECT current_setting('server_version_num')::int AS version,
    split_part(current_setting('server_version'), ' ', 1) AS version_name, pg_is_in_recovery() AS is_standby,
    current_setting('server_encoding') AS encoding, current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes,
    current_setting('synchronous_commit') AS synchronous_commit, pg_backend_pid() AS pid,
    to_regclass('{schema}.eventstore_version') IS NOT NULL AS has_revision,
    to_regclass('{schema}.journal_events') IS NOT NULL AS has_events,
    ARRAY(SELECT tgname::text FROM pg_catalog.pg_trigger WHERE NOT tgisinternal AND tgenabled IN ('O', 'A')
        AND tgrelid = to_regclass('{schema}.journal_events')) AS triggers
"""
_REVISION = "SELECT version_num FROM {schema}.eventstore_version"


class PostgresSQL:
    """Every statement, for the journal in one schema."""

    def __init__(self, schema: str) -> None:
        # A schema's name is checked where the URL is read: it holds nothing that could end the quotes.
        self._names = {"schema": f'"{schema}"'}
        # Locks are the database's own, so the schema tells one journal's from another's.
        key = int.from_bytes(hashlib.sha256(f"eventstore journal {schema}".encode()).digest()[:8], "big", signed=True)
        self.channel = f"eventstore_{key & (2**64 - 1):016x}"
        self._names["lock"] = f"({key})::bigint"
        unsigned = key & (2**64 - 1)
        is_append = _IS_APPEND.format(classid=unsigned >> 32, objid=unsigned & (2**32 - 1))

        # A part may hold those that are named after it.
        no_new = {"created": "", "ids": "", "events": _EVENTS}
        self.append_one_each = self._named(_APPEND, heads=_HEADS_OF_EVENTS, **no_new, holds=_HOLDS_FOR_EVENTS)
        self.append = self._named(_APPEND, heads=_HEADS, **no_new, holds=_HOLDS)
        self.append_new = self._named(
            _APPEND,
            heads=_HEADS,
            created=_CREATED,
            ids=_IDS_OF_NEW,
            events=_EVENTS_OF_NEW,
            all_events=_EVENTS,
            heads_hold=_HOLDS,
            holds="(SELECT holds FROM guard)",
        )
        self.streams = self._named(_STREAMS)
        self.lock_streams = self._named(_STREAMS + "FOR NO KEY UPDATE")
        self.places = self._named(_PLACES)
        self.settle = self._named(_SETTLE, is_append=is_append)
        self.still_appending = self._named(_STILL_APPENDING, is_append=is_append)
        self.log = self._named(_LOG, record=_RECORD, matches=_MATCHES)
        self.last = self._named(_LAST, matches=_MATCHES)
        self.stream = self._named(_STREAM, record=_RECORD, order="ASC")
        self.stream_backwards = self._named(_STREAM, record=_RECORD, order="DESC")
        self.load = self._named(_LOAD)
        self.list = self._named(_LIST)
        self.snapshots = self._named(_SNAPSHOTS)
        self.statistics = self._named(_STATISTICS)
        self.claim = self._named(_CLAIM)
        self.stream_id = self._named(_STREAM_ID)
        self.new_stream = self._named(_NEW_STREAM)
        self.save_snapshot = self._named(_SAVE_SNAPSHOT)
        self.drop_snapshots = self._named(_DROP_SNAPSHOTS)
        self.delete_snapshots = self._named(_DELETE_SNAPSHOTS)
        self.lock_stream = self._named(_LOCK_STREAM)
        self.open_removal = self._named(_OPEN_REMOVAL)
        self.remove = self._named(_REMOVE)
        self.close_removal = self._named(_CLOSE_REMOVAL)
        self.truncated = self._named(_TRUNCATED)
        self.server = self._named(_SERVER)
        self.revision = self._named(_REVISION)

    def _named(self, statement: str, **parts: str) -> str:
        for name, text in {**parts, **self._names}.items():
            statement = statement.replace(f"{{{name}}}", text)
        return statement
