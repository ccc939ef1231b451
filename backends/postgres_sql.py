"""The journal's statements on Postgres. Names are put together with the journal's schema once, in `PostgresSQL`.

They are the driver's own and not SQLAlchemy's, because appending and replaying are the hot paths: through Core an
append takes 2 to 3 times as long. Values are always parameters. Tables are named with their schema, so that no
statement rests on a session's search path, which a proxy that pools connections may have from somebody else.
"""

from __future__ import annotations

import hashlib

from backends import seals_sql
from backends.checkpoints_sql import concerning_text, delete_text, insert_text, select_text, update_text
from backends.postgres_append_sql import append_statement
from backends.tenants_sql import TENANTS_FROM

_STREAMS = """
SELECT stream_id, id, version, epoch, forgotten FROM {schema}.journal_streams
WHERE tenant = {tenant} AND stream_id = ANY ($1::text[]) ORDER BY id
"""
# No stream has an empty id: what another tenant has stored is never what this one sends again.
_PLACES = """
SELECT e.event_id, CASE WHEN s.tenant = {tenant} THEN s.stream_id ELSE '' END, e.version, e.position
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.event_id = ANY ($1::bytea[])
"""

# Which of some commands are remembered: after the streams were looked at, so that what changed them is found.
_REMEMBERED = """
SELECT s.stream_id, c.command_id, c.outcome_id, c.version
FROM unnest($1::text[], $2::text[]) AS w (stream_id, command_id)
JOIN {schema}.journal_streams s ON s.tenant = {tenant} AND s.stream_id = w.stream_id
JOIN {schema}.journal_commands c ON c.stream = s.id AND c.command_id = w.command_id
"""

# The sequence is read first: the inner query is run for its row. Whoever has taken a position up to it holds the lock
# from before, and gives it back only after its events can be seen. What a sequence and the locks hold does not depend
# on a snapshot, so transactions that run long and append nothing do not matter. By the event at a position that was
# seen before, a server is told that has lost it and has given its position to another; the newest is for next time.
_MARK = """
SELECT h.position, (
    SELECT array_agg(l.virtualtransaction) FROM pg_catalog.pg_locks l
    WHERE {is_asked} AND {is_append}
) AS appends, n.position AS newest, n.event_id AS newest_id
FROM (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS position FROM {schema}.journal_events_position_seq) h
LEFT JOIN (SELECT e.position, e.event_id FROM {schema}.journal_events e ORDER BY e.position DESC LIMIT 1) n ON true
"""
_SETTLE = "SELECT m.*, (SELECT e.event_id FROM {schema}.journal_events e WHERE e.position = $1) FROM ({mark}) m"
_STILL_APPENDING = """
SELECT {end}, array_agg(l.virtualtransaction) FROM pg_catalog.pg_locks l
WHERE l.virtualtransaction = ANY ($1::text[]) AND {is_append}
"""
_IS_APPEND = """l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
        AND l.classid = {classid}::bigint::oid AND l.objid = {objid}::bigint::oid
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())"""

_RECORD = """e.position, s.stream_id, e.version, e.type, e.schema_version, e.payload, e.metadata, e.event_id,
    e.batch_id, e.epoch, e.recorded_at, e.checksum, s.tenant, e.origin, e.origin_sequence, e.clock, e.concurrent"""
# Tags in metadata that jsonb cannot hold are compared by the reader.
_MATCHES = """($1::text[] IS NULL OR s.kind = ANY ($1)) AND ($2::text[] IS NULL OR e.type = ANY ($2))
    AND ($3::text[] IS NULL OR s.stream_id = ANY ($3)) AND {seen} AND ($5::text[] IS NULL OR s.tenant = ANY ($5))
    AND ($4::text[] IS NULL OR {schema}.journal_json(e.metadata) -> 'tags' ?| $4
        OR (e.metadata IS NOT NULL AND {schema}.journal_json(e.metadata) IS NULL))"""

_LOG = """
SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.journal_events_position_seq), {record}
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.position > $6 AND e.position <= $7 AND {matches}
ORDER BY e.position LIMIT $8
"""
# A page of the log by column, as one row, as `_LOAD` has a stream's: a row for each event takes longer to make and to
# take apart than all the rest. A stream's id may hold any character.
_COLUMNS = """count(*),
    array_agg(p.position), array_agg(p.stream_id), array_agg(p.version), string_agg(p.type, chr(30)),
    array_agg(p.schema_version), string_agg(p.payload, chr(30)),
    count(p.metadata), CASE WHEN count(p.metadata) > 0 THEN string_agg(coalesce(p.metadata, ''), chr(30)) END,
    string_agg(p.event_id, ''::bytea),
    CASE WHEN count(p.batch_id) > 0 THEN string_agg(coalesce(p.batch_id, p.event_id), ''::bytea) END,
    array_agg(p.recorded_at), array_agg(p.checksum),
    json_agg(json_build_array(p.position, p.epoch, p.tenant, p.origin, p.origin_sequence, p.clock, p.concurrent))
        FILTER (WHERE p.epoch <> 0 OR p.tenant <> {tenant} OR p.origin IS NOT NULL
            OR p.origin_sequence IS NOT NULL OR p.clock IS NOT NULL OR p.concurrent IS NOT NULL)"""
_LOG_COLUMNS = "SELECT {log_end}, {columns} FROM ({page}) p"
_LOG_END = "(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.journal_events_position_seq)"
_LOG_PAGE = """
SELECT {record}
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.position > $6 AND e.position <= $7 AND {matches}
ORDER BY e.position LIMIT $8
"""
_MOVED = """
SELECT s.stream_id, m.version FROM (
    SELECT stream, max(version) AS version FROM {schema}.journal_events
    WHERE position > $1 AND position <= $2 GROUP BY stream
) m JOIN {schema}.journal_streams s ON s.id = m.stream AND s.tenant = {tenant}
"""
_CHECKPOINTS = """
SELECT name, version, revision, position, events, checksum, state FROM {schema}.journal_checkpoints
WHERE tenant = $1 ORDER BY name, version
"""
# Numbers of removals are taken before they can be seen. One at a time, so that who has seen one has seen all below it.
# Before the rows of streams are locked: in another order two would wait for each other.
_LOCK_REMOVALS = "SELECT pg_advisory_xact_lock({removals_lock})"
# Who removes events has seen every checkpoint that wants them. So one that is new, is put back or may want other events
# than before waits until they are gone, and has read none of them; one that only goes on waits for nobody.
_SHARE_REMOVALS = "SELECT pg_advisory_xact_lock_shared({removals_lock})"
_GOES_ON = " AND (position < $5 OR pg_advisory_xact_lock_shared({removals_lock}) IS NOT NULL)"
# A row tells that something was changed.
_WHETHER = " RETURNING 1"
# With the metadata that the reader still has to look at: each row without is a match.
_LAST = """
SELECT e.position, CASE WHEN $4::text[] IS NOT NULL AND {schema}.journal_json(e.metadata) IS NULL THEN e.metadata END
FROM {schema}.journal_events e JOIN {schema}.journal_streams s ON s.id = e.stream
WHERE e.position <= $6 AND {matches}
ORDER BY e.position DESC OFFSET $7 LIMIT $8
"""

# One row for the stream, then its events, so that an empty page tells the version too.
_STREAM = """
WITH s AS MATERIALIZED (
    SELECT id, stream_id, tenant, version, truncated FROM {schema}.journal_streams
    WHERE tenant = {tenant} AND stream_id = $1
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
    JOIN {schema}.journal_streams s ON s.tenant = {tenant} AND s.stream_id = w.stream_id
    LEFT JOIN LATERAL (
        SELECT n.* FROM {schema}.journal_snapshots n
        WHERE w.use_snapshot AND n.stream = s.id AND n.version > w.after ORDER BY n.version DESC LIMIT 1
    ) n ON true
)
SELECT w.number, w.head, w.truncated,
    w.version, w.fingerprint, w.encoding, w.payload AS snapshot, w.checksum, w.recorded_at, w.epoch,
    (
        SELECT e.origin IS NOT NULL FROM {schema}.journal_events e WHERE e.stream = w.stream AND e.version = w.after + 1
    ) AS is_stamped,
    p.*
FROM wanted w CROSS JOIN LATERAL (
    SELECT count(*), min(e.version) AS first_version,
        CASE WHEN max(e.version) - min(e.version) + 1 <> count(*) THEN array_agg(e.version) END AS versions,
        string_agg(e.type, chr(30)) AS types, min(e.schema_version) AS schema_version,
        CASE WHEN max(e.schema_version) <> min(e.schema_version) THEN array_agg(e.schema_version) END
            AS schema_versions,
        string_agg(e.payload, chr(30)) AS payloads, string_agg(e.checksum::text, ',') AS checksums
    FROM (
        SELECT e.version, e.type, e.schema_version, e.payload, e.checksum FROM {schema}.journal_events e
        WHERE e.stream = w.stream AND e.version > w.after ORDER BY e.version LIMIT w.size
    ) e
) p
"""

_LIST = """
SELECT s.stream_id, s.version, s.truncated, s.tenant FROM {schema}.journal_streams s
WHERE s.tenant = $4 AND s.stream_id > $1 AND ($3::text IS NULL OR s.kind = $3) AND
    (s.version > 0 OR EXISTS (SELECT FROM {schema}.journal_snapshots n WHERE n.stream = s.id))
ORDER BY s.stream_id LIMIT $2
"""
_TENANTS = TENANTS_FROM.format(streams="{schema}.journal_streams", first="$1", limit="$2", own="{tenant}")
_SNAPSHOTS = """
SELECT n.version, n.fingerprint, n.encoding, n.payload, n.checksum, n.recorded_at, n.epoch
FROM {schema}.journal_snapshots n JOIN {schema}.journal_streams s ON s.id = n.stream
WHERE s.tenant = {tenant} AND s.stream_id = $1 AND n.version <= $2
ORDER BY n.version DESC LIMIT $3
"""
_STATISTICS = """
SELECT (SELECT count(*) FROM {schema}.journal_streams s
        WHERE s.version > 0 OR EXISTS (SELECT FROM {schema}.journal_snapshots n WHERE n.stream = s.id)),
    (SELECT count(*) FROM {schema}.journal_events), (SELECT count(*) FROM {schema}.journal_snapshots),
    (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.journal_events_position_seq),
    pg_total_relation_size('{schema}.journal_streams') + pg_total_relation_size('{schema}.journal_events') +
        pg_total_relation_size('{schema}.journal_snapshots') + pg_total_relation_size('{schema}.journal_removals') +
        pg_total_relation_size('{schema}.journal_commands') + pg_total_relation_size('{schema}.journal_seals')
"""

_SERVER = """
SELECT current_setting('server_version_num')::int AS version,
    split_part(current_setting('server_version'), ' ', 1) AS version_name, pg_is_in_recovery() AS is_standby,
    current_setting('server_encoding') AS encoding, current_setting('fsync') AS fsync,
    current_setting('full_page_writes') AS full_page_writes, pg_backend_pid() AS pid,
    to_regclass('{schema}.eventstore_version') IS NOT NULL AS has_revision,
    to_regclass('{schema}.journal_events') IS NOT NULL AS has_events,
    ARRAY(SELECT tgname::text FROM pg_catalog.pg_trigger WHERE NOT tgisinternal AND tgenabled IN ('O', 'A')
        AND tgrelid IN (to_regclass('{schema}.journal_events'), to_regclass('{schema}.journal_seals'))) AS triggers
"""
_REVISION = "SELECT version_num FROM {schema}.eventstore_version"


class PostgresSQL:
    """Every statement, for one tenant of the journal in one schema."""

    def __init__(self, schema: str, tenant: str) -> None:
        # A schema's name is checked where the URL is read, a tenant's where the store is opened: they hold nothing that
        # could end the quotes. The tenant is a constant of every statement, so that none is slower for it.
        self._names = {"schema": f'"{schema}"', "tenant": "'" + tenant.replace("'", "''") + "'"}
        self.schema = schema
        self.tenant = tenant
        key = _lock_of("journal", schema)
        self.channel = f"eventstore_{key & (2**64 - 1):016x}"
        self._names["lock"] = f"({key})::bigint"
        self._names["removals_lock"] = f"({_lock_of('removals', schema)})::bigint"
        self.listeners_lock = _lock_of("listeners", schema)
        unsigned = key & (2**64 - 1)
        self._names["is_append"] = _IS_APPEND.format(classid=unsigned >> 32, objid=unsigned & (2**32 - 1))

        self._appends_one_each = {
            (owned, commands, at_once): self.named(
                append_statement("one each, owned" if owned else "one each", with_commands=commands, at_once=at_once)
            )
            for owned in (False, True)
            for commands in (False, True)
            for at_once in (False, True)
        }
        self._appends = {
            (new, commands, replicas): self.named(
                append_statement("new" if new else "known", with_commands=commands, with_replicas=replicas)
            )
            for new in (False, True)
            for commands in (False, True)
            for replicas in (False, True)
        }
        self.streams = self.named(_STREAMS)
        self.lock_streams = self.named(_STREAMS + "FOR NO KEY UPDATE")
        self.places = self.named(_PLACES)
        self.remembered = self.named(_REMEMBERED)
        self.settle = self.named(_SETTLE, mark=_MARK, is_asked="h.position IS NOT NULL")
        self.still_appending = self.named(_STILL_APPENDING, end=_LOG_END)
        # The store without a tenant sees everybody's events.
        matches = {"matches": _MATCHES, "seen": "s.tenant = {tenant}" if tenant else "true"}
        self.log = self.named(_LOG, record=_RECORD, **matches)
        columns = {"log_end": _LOG_END, "columns": _COLUMNS, "page": _LOG_PAGE}
        self.log_columns = self.named(_LOG_COLUMNS, **columns, record=_RECORD, **matches)
        self.moved = self.named(_MOVED)
        self.checkpoints = self.named(_CHECKPOINTS)
        in_schema = {"schema": f'"{schema}".', "after": "$1", "limit": "$2"}
        self.removals = seals_sql.REMOVALS.format(**in_schema)
        self.seals = seals_sql.seals(**in_schema, backwards=False)
        self.seals_backwards = seals_sql.seals(**in_schema, backwards=True)
        table, places = "{schema}.journal_checkpoints", [f"${number}" for number in range(1, 9)]
        self.lock_removals = self.named(_LOCK_REMOVALS)
        self.share_removals = self.named(_SHARE_REMOVALS)
        self.concerning_checkpoints = self.named(concerning_text(table, "{tenant}"))
        self.lock_checkpoint = self.named(select_text(table, places[:3]) + " FOR UPDATE")
        self.insert_checkpoint = self.named(insert_text(table, places) + _WHETHER)
        self.update_checkpoint = self.named(update_text(table, places) + _GOES_ON + _WHETHER)
        self.delete_checkpoint = self.named(delete_text(table, places[:4]) + _WHETHER)
        self.last = self.named(_LAST, **matches)
        self.stream = self.named(_STREAM, record=_RECORD, order="ASC")
        self.stream_backwards = self.named(_STREAM, record=_RECORD, order="DESC")
        self.load = self.named(_LOAD)
        self.list = self.named(_LIST)
        self.tenants = self.named(_TENANTS)
        self.snapshots = self.named(_SNAPSHOTS)
        self.statistics = self.named(_STATISTICS)
        self.server = self.named(_SERVER)
        self.revision = self.named(_REVISION)

    def append_one_each(self, *, owned: bool, commands: bool, at_once: bool) -> str:
        """The append of one event to each of some streams, with owners or not. `at_once`: see `append_statement`."""
        return self._appends_one_each[owned, commands, at_once]

    def append_to(self, *, new: bool, commands: bool, replicas: bool) -> str:
        """The append to any streams that have rows, or to some that have none; with commands, or what replicas say."""
        return self._appends[new, commands, replicas]

    def audit(self, statement: str, known: str) -> str:
        """An audit's statement, with the columns of its page, and with what tells how far the log is settled: who is
        under way is only looked for if the log does not end at the `known` position, which is a parameter."""
        return self.named(statement, columns=_COLUMNS, mark=_MARK, is_asked=f"h.position <> {known}")

    def named(self, statement: str, **parts: str) -> str:
        """A statement for this journal: with the names of its schema and of its lock, and with its parts."""
        for name, text in {**parts, **self._names}.items():
            statement = statement.replace(f"{{{name}}}", text)
        return statement


def _lock_of(what: str, schema: str) -> int:
    """The number of an advisory lock. A database has them for all its journals, so the schema is part of it."""
    return int.from_bytes(hashlib.sha256(f"eventstore {what} {schema}".encode()).digest()[:8], "big", signed=True)
