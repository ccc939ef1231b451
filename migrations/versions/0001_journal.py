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
ZERO = sa.text("0")


def upgrade() -> None:
    op.create_table(
        "journal_streams",
        sa.Column("id", BIG, nullable=False),
        sa.Column("tenant", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("stream_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("epoch", BIG, server_default=ZERO, nullable=False),
        sa.Column("truncated", BIG, server_default=ZERO, nullable=False),
        sa.Column("created_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_journal_streams"),
        sa.UniqueConstraint("tenant", "stream_id", name="uq_journal_streams_tenant_stream_id"),
    )
    op.create_index("ix_journal_streams_kind", "journal_streams", ["kind"])

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
        sa.Column("epoch", BIG, server_default=ZERO, nullable=False),
        sa.Column("origin", sa.Text()),
        sa.Column("origin_sequence", BIG),
        sa.Column("clock", sa.Text()),
        sa.Column("concurrent", sa.Boolean()),
        sa.Column("recorded_at", BIG, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_journal_events"),
        sa.ForeignKeyConstraint(["stream"], ["journal_streams.id"], name="fk_journal_events_stream"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_journal_events_stream_version", "journal_events", ["stream", "version"], unique=True)
    op.create_index("ix_journal_events_event_id", "journal_events", ["event_id"], unique=True)

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

    protect_events(op.get_context().dialect.name)


def downgrade() -> None:
    raise CommandError(
        "a journal is never downgraded: that would drop its events. "
        "Restore a backup, or run the release that knows this schema"
    )


def protect_events(dialect: str) -> None:
    """Make the database itself refuse to change or lose an event."""
    match dialect:
        case "sqlite":
            statements = SQLITE_TRIGGERS
        case _:
            raise CommandError(f"the journal has no triggers for {dialect}")
    for statement in statements:
        op.execute(statement)


SQLITE_TRIGGERS = (
    """
CREATE TRIGGER journal_events_no_update
BEFORE UPDATE ON journal_events
BEGIN
    SELECT RAISE(ABORT, 'journal events are never changed');
END
""".strip(),
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
""".strip(),
)
