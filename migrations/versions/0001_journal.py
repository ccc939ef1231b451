"""The journal: streams, events, snapshots, and the record of what was removed.

Revision ID: 0001
Revises:

"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Ids are ordered by their bytes, whatever the database's locale.
ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ZERO = sa.text("0")


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    if dialect not in STATEMENTS:
        raise CommandError(f"the journal has no triggers and views for {dialect}")

    # The row that appends lock carries the version they compare, where several connections append at once.
    only_on_sqlite = [sa.Column("is_filed", sa.Boolean(), server_default=ZERO, nullable=False)]
    only_on_postgres = [sa.Column("version", BIG, server_default=ZERO, nullable=False)]
    op.create_table(
        "journal_streams",
        sa.Column("id", BIG, nullable=False),
        sa.Column("tenant", ID, server_default=sa.text("''"), nullable=False),
        sa.Column("stream_id", ID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("epoch", BIG, server_default=ZERO, nullable=False),
        sa.Column("truncated", BIG, server_default=ZERO, nullable=False),
        sa.Column("forgotten", BIG, server_default=ZERO, nullable=False),
        sa.Column("owner", sa.LargeBinary(16)),
        sa.Column("created_at", BIG, nullable=False),
        *(only_on_postgres if dialect == "postgresql" else ()),
        sa.PrimaryKeyConstraint("id", name="pk_journal_streams"),
        sa.UniqueConstraint("tenant", "stream_id", name="uq_journal_streams_tenant_stream_id"),
    )
    if dialect == "postgresql":
        # Every append writes its streams' rows anew: room on the page keeps that out of the indexes.
        op.execute("ALTER TABLE journal_streams SET (fillfactor = 70)")
    op.create_index("ix_journal_streams_kind", "journal_streams", ["kind"])
    op.create_index(
        "ix_journal_streams_owner",
        "journal_streams",
        ["owner"],
        sqlite_where=sa.text("owner IS NOT NULL"),
        postgresql_where=sa.text("owner IS NOT NULL"),
    )

    op.create_table(
        "journal_events",
        sa.Column("position", BIG, nullable=False),
        sa.Column("stream", BIG, nullable=False),
        sa.Column("version", BIG, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("metadata", sa.Text()),
        sa.Column("event_id", sa.LargeBinary(16), nullable=False),
        sa.Column("batch_id", sa.LargeBinary(16)),
        sa.Column("checksum", BIG, nullable=False),
        sa.Column("epoch", BIG, server_default=ZERO, nullable=False),
        sa.Column("origin", sa.Text()),
        sa.Column("origin_sequence", BIG),
        sa.Column("clock", sa.Text()),
        sa.Column("concurrent", sa.Boolean()),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_journal_events"),
    )
    op.create_index("ix_journal_events_stream_version", "journal_events", ["stream", "version"], unique=True)
    op.create_index("ix_journal_events_event_id", "journal_events", ["event_id"], unique=True)
    if dialect == "postgresql":
        # Times rise with the log, but for what clocks do: the ranges of its pages are enough, and cost an append nothing.
        op.create_index("ix_journal_events_recorded_at", "journal_events", ["recorded_at"], postgresql_using="brin")

    op.create_table(
        "journal_snapshots",
        sa.Column("stream", BIG, autoincrement=False, nullable=False),
        sa.Column("version", BIG, autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("encoding", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("checksum", sa.LargeBinary(), nullable=False),
        sa.Column("epoch", BIG, server_default=ZERO, nullable=False),
        sa.Column("metadata", sa.Text()),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("stream", "version", name="pk_journal_snapshots"),
    )

    op.create_table(
        "journal_removals",
        sa.Column("id", BIG, nullable=False),
        sa.Column("stream", BIG, nullable=False),
        sa.Column("through", BIG, nullable=False),
        sa.Column("removed", BIG, server_default=ZERO, nullable=False),
        sa.Column("log_end", BIG, server_default=ZERO, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("is_open", sa.Boolean(), nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_journal_removals"),
        sqlite_autoincrement=True,
    )

    # What the delete trigger looks for at every row: it must not search all removals there ever were.
    op.create_index(
        "ix_journal_removals_open",
        "journal_removals",
        ["stream"],
        sqlite_where=sa.text("is_open"),
        postgresql_where=sa.text("is_open"),
    )

    op.create_table(
        "journal_seals",
        sa.Column("number", BIG, autoincrement=False, nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.Column("leaves", sa.LargeBinary(), nullable=False),
        sa.Column("removals", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_journal_seals"),
    )

    op.create_table(
        "journal_commands",
        sa.Column("id", BIG, nullable=False),
        sa.Column("stream", BIG, nullable=False),
        sa.Column("command_id", ID, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(16), nullable=False),
        sa.Column("outcome_id", sa.LargeBinary(16), nullable=False),
        sa.Column("is_rejection", sa.Boolean(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("issued_at", BIG, nullable=False),
        sa.Column("version", BIG, nullable=False),
        sa.Column("recorded_at", BIG, nullable=False),
        *(only_on_sqlite if dialect == "sqlite" else ()),
        sa.PrimaryKeyConstraint("id", name="pk_journal_commands"),
    )
    by_stream = ("ix_journal_commands_stream_command_id", "journal_commands", ["stream", "command_id"])
    if dialect == "sqlite":
        by_command = ("ix_journal_commands_command_id_stream", "journal_commands", ["command_id", "stream"])
        op.create_index(*by_command, unique=True)
        op.create_index(*by_stream, sqlite_where=sa.text("is_filed"))
    else:
        op.create_index(*by_stream, unique=True)

    op.create_table(
        "journal_owners",
        sa.Column("tenant", ID, server_default=sa.text("''"), nullable=False),
        sa.Column("id", sa.LargeBinary(16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("renewals", BIG, nullable=False),
        sa.Column("duration", BIG, nullable=False),
        sa.Column("ends_at", BIG, nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.Column("started_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "id", name="pk_journal_owners"),
    )

    op.create_table(
        "journal_checkpoints",
        sa.Column("tenant", ID, server_default=sa.text("''"), nullable=False),
        sa.Column("name", ID, nullable=False),
        sa.Column("version", BIG, autoincrement=False, nullable=False),
        sa.Column("revision", BIG, nullable=False),
        sa.Column("position", BIG, nullable=False),
        sa.Column("events", BIG, nullable=False),
        sa.Column("checksum", sa.LargeBinary(16), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", "version", name="pk_journal_checkpoints"),
    )

    op.create_table(
        "journal_marks",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_journal_marks"),
    )

    # The database itself refuses to change or lose an event; and the views, which SQL of users may rest on.
    for statement in STATEMENTS[dialect]:
        op.execute(statement.strip())


def downgrade() -> None:
    raise CommandError(
        "a journal is never downgraded: that would drop its events. "
        "Restore a backup, or run the release that knows this schema"
    )


def sqlite_label(name: str) -> str:
    """One text in an event's metadata, as `backends.tables` has it. A function that reads JSON cannot be in an index of
    a schema that is not trusted."""
    key, start = f'"{name}"', f'"{name}":"'
    behind = f"substr(metadata, instr(metadata, '{start}') + {len(start)})"
    return (
        f"CASE WHEN instr(metadata, '\\') > 0 THEN char(1) WHEN instr(metadata, '{key}') = 0 THEN NULL "
        f"WHEN instr(metadata, '{start}') = 0 THEN char(1) WHEN instr({behind}, '{key}') > 0 THEN char(1) "
        f"WHEN instr(metadata, '{key}') < instr(metadata, '{start}') THEN char(1) "
        f"ELSE substr({behind}, 1, min(200, instr({behind}, '\"') - 1)) END"
    )


SQLITE = (
    *(
        f"CREATE INDEX ix_journal_events_{name} ON journal_events (({sqlite_label(name)})) WHERE metadata IS NOT NULL"
        for name in ("user", "correlation_id")
    ),
    """
CREATE TRIGGER journal_events_no_update
BEFORE UPDATE ON journal_events
BEGIN
    SELECT RAISE(ABORT, 'journal events are never changed');
END
""",
    """
CREATE TRIGGER journal_events_no_delete
BEFORE DELETE ON journal_events
WHEN NOT EXISTS (
    SELECT 1 FROM journal_removals r
    WHERE r.is_open AND r.stream = OLD.stream AND OLD.version <= r.through
)
BEGIN
    SELECT RAISE(ABORT, 'journal events are only removed by truncation');
END
""",
    """
CREATE TRIGGER journal_seals_no_update
BEFORE UPDATE ON journal_seals
BEGIN
    SELECT RAISE(ABORT, 'journal seals are never changed');
END
""",
    """
CREATE TRIGGER journal_seals_no_delete
BEFORE DELETE ON journal_seals
BEGIN
    SELECT RAISE(ABORT, 'journal seals are never removed');
END
""",
    """
CREATE VIEW v_events AS
SELECT e.position, s.tenant, s.stream_id, s.kind, e.version, e.type, e.schema_version,
    CASE WHEN json_valid(e.payload) THEN e.payload END AS payload,
    CASE WHEN json_valid(e.metadata) THEN e.metadata END AS metadata,
    e.payload AS payload_text, e.metadata AS metadata_text,
    lower(substr(hex(e.event_id), 1, 8) || '-' || substr(hex(e.event_id), 9, 4) || '-' ||
        substr(hex(e.event_id), 13, 4) || '-' || substr(hex(e.event_id), 17, 4) || '-' ||
        substr(hex(e.event_id), 21)) AS event_id,
    lower(substr(hex(coalesce(e.batch_id, e.event_id)), 1, 8) || '-' ||
        substr(hex(coalesce(e.batch_id, e.event_id)), 9, 4) || '-' ||
        substr(hex(coalesce(e.batch_id, e.event_id)), 13, 4) || '-' ||
        substr(hex(coalesce(e.batch_id, e.event_id)), 17, 4) || '-' ||
        substr(hex(coalesce(e.batch_id, e.event_id)), 21)) AS batch_id,
    e.epoch,
    strftime('%Y-%m-%dT%H:%M:%S', e.recorded_at / 1000000, 'unixepoch') ||
        printf('.%06dZ', e.recorded_at % 1000000) AS recorded_at
FROM journal_events e JOIN journal_streams s ON s.id = e.stream
""",
    """
CREATE VIEW v_streams AS
SELECT s.tenant, s.stream_id, s.kind,
    max(s.truncated, coalesce((SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id), 0)) AS version,
    s.truncated, s.epoch,
    strftime('%Y-%m-%dT%H:%M:%S', s.created_at / 1000000, 'unixepoch') ||
        printf('.%06dZ', s.created_at % 1000000) AS created_at
FROM journal_streams s
""",
)

# Names are not bound to a schema: the migration runs with the journal's alone in its search path. A trigger's
# function runs under whatever path a session has, so it takes the schema from the table.
POSTGRES = (
    """
CREATE FUNCTION journal_events_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    is_removal boolean := false;
BEGIN
    IF TG_OP = 'DELETE' THEN
        EXECUTE format(
            'SELECT EXISTS (SELECT FROM %I.journal_removals WHERE is_open AND stream = $1 AND $2 <= through)',
            TG_TABLE_SCHEMA
        ) INTO is_removal USING OLD.stream, OLD.version;
        IF is_removal THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION 'journal events are only removed by truncation' USING ERRCODE = 'restrict_violation';
    ELSIF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION 'journal events are only removed by truncation' USING ERRCODE = 'restrict_violation';
    END IF;
    RAISE EXCEPTION 'journal events are never changed' USING ERRCODE = 'restrict_violation';
END
$$
""",
    """
CREATE TRIGGER journal_events_no_update BEFORE UPDATE ON journal_events
FOR EACH ROW EXECUTE FUNCTION journal_events_refuse()
""",
    """
CREATE TRIGGER journal_events_no_delete BEFORE DELETE ON journal_events
FOR EACH ROW EXECUTE FUNCTION journal_events_refuse()
""",
    """
CREATE TRIGGER journal_events_no_truncate BEFORE TRUNCATE ON journal_events
FOR EACH STATEMENT EXECUTE FUNCTION journal_events_refuse()
""",
    """
CREATE FUNCTION journal_seals_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'journal seals are never changed or removed' USING ERRCODE = 'restrict_violation';
END
$$
""",
    """
CREATE TRIGGER journal_seals_no_change BEFORE UPDATE OR DELETE ON journal_seals
FOR EACH ROW EXECUTE FUNCTION journal_seals_refuse()
""",
    """
CREATE TRIGGER journal_seals_no_truncate BEFORE TRUNCATE ON journal_seals
FOR EACH STATEMENT EXECUTE FUNCTION journal_seals_refuse()
""",
    # jsonb holds neither U+0000 nor half of a surrogate pair, which JSON may. One such event must not make a query
    # over all of them fail.
    """
CREATE FUNCTION journal_json(value text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN value::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
    RETURN NULL;
END
$$
""",
    # For the indexes of an audit: one field of the metadata, no longer than an index may have it, and a character that marks what jsonb cannot hold, so that
    # whoever looks for a field finds those events, too, and decides himself.
    """
CREATE FUNCTION journal_label(metadata text, name text) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
    RETURN left(metadata::jsonb ->> name, 200);
EXCEPTION WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
    RETURN chr(1);
END
$$
""",
    """
CREATE INDEX ix_journal_events_user ON journal_events (journal_label(metadata, 'user'), position)
WHERE metadata NOT LIKE '{"command_id":"%' OR metadata LIKE '{"command_id":"%"__%' OR metadata LIKE '%\\\\%'
""",
    """
CREATE INDEX ix_journal_events_correlation_id ON journal_events (journal_label(metadata, 'correlation_id'), position)
WHERE metadata NOT LIKE '{"command_id":"%' OR metadata LIKE '{"command_id":"%"__%' OR metadata LIKE '%\\\\%'
""",
    """
CREATE VIEW v_events AS
SELECT e.position, s.tenant, s.stream_id, s.kind, e.version, e.type, e.schema_version,
    journal_json(e.payload) AS payload, journal_json(e.metadata) AS metadata,
    e.payload AS payload_text, e.metadata AS metadata_text,
    encode(e.event_id, 'hex')::uuid AS event_id, encode(coalesce(e.batch_id, e.event_id), 'hex')::uuid AS batch_id,
    e.epoch, to_timestamp(0) + e.recorded_at * interval '1 microsecond' AS recorded_at
FROM journal_events e JOIN journal_streams s ON s.id = e.stream
""",
    """
CREATE VIEW v_streams AS
SELECT s.tenant, s.stream_id, s.kind, s.version, s.truncated, s.epoch,
    to_timestamp(0) + s.created_at * interval '1 microsecond' AS created_at
FROM journal_streams s
""",
)

STATEMENTS = {"sqlite": SQLITE, "postgresql": POSTGRES}
