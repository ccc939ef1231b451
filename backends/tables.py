"""The journal's tables, once: for the SQL backends' statements and for Alembic's autogenerate."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)

SCHEMA_REVISION = "0001"
"""The Alembic revision these tables are."""

VERSION_TABLE = "eventstore_version"
"""Alembic's table for the journal: not `alembic_version`, which belongs to the user's own migrations."""

# Constraints need stable names: a later migration, and the translation of driver errors, go by them.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# Ids of streams are ordered by their bytes, whatever the database's locale.
_Id = Text().with_variant(Text(collation="C"), "postgresql")
# SQLite makes a column the row id only if its type is spelled INTEGER, which holds 64 bits there.
_Big = BigInteger().with_variant(Integer(), "sqlite")
_ZERO = text("0")

journal_streams = Table(
    "journal_streams",
    metadata,
    Column("id", _Big, primary_key=True),
    # "" for the store without a tenant.
    Column("tenant", _Id, nullable=False, server_default=text("''")),
    Column("stream_id", _Id, nullable=False),
    Column("kind", Text, nullable=False),
    Column("epoch", _Big, nullable=False, server_default=_ZERO),
    Column("truncated", _Big, nullable=False, server_default=_ZERO),
    # Commands issued up to here (milliseconds since 1970) may have had outcomes that were removed.
    Column("forgotten", _Big, nullable=False, server_default=_ZERO),
    # Who claimed the stream and has not released it: an id of `journal_owners`, or of an owner that is gone.
    Column("owner", LargeBinary(16)),
    # Times are microseconds since 1970 in UTC: they compare and sort alike on every database.
    Column("created_at", _Big, nullable=False),
    UniqueConstraint("tenant", "stream_id"),
    Index(None, "kind"),
    Index(
        "ix_journal_streams_owner",
        "owner",
        sqlite_where=text("owner IS NOT NULL"),
        postgresql_where=text("owner IS NOT NULL"),
    ),
)

journal_events = Table(
    "journal_events",
    metadata,
    Column("position", _Big, primary_key=True),
    # No foreign key: an append takes the ids from the rows of streams, which are never removed. On Postgres checking
    # each event again took 30 % of the append.
    Column("stream", _Big, nullable=False),
    Column("version", _Big, nullable=False),
    Column("type", Text, nullable=False),
    Column("schema_version", Integer, nullable=False),
    # JSON as text, not as a JSON type: what is read back must be the bytes that were written.
    Column("payload", Text, nullable=False),
    Column("metadata", Text),
    Column("event_id", LargeBinary(16), nullable=False),
    # NULL: the event is the first of its own batch. Most batches are one event, so most rows save 16 bytes.
    Column("batch_id", LargeBinary(16)),
    # Of type, schema version, payload and metadata, as they were given.
    Column("checksum", _Big, nullable=False),
    Column("epoch", _Big, nullable=False, server_default=_ZERO),
    Column("origin", Text),
    Column("origin_sequence", _Big),
    Column("clock", Text),
    Column("concurrent", Boolean),
    Column("recorded_at", _Big, nullable=False),
    Index(None, "stream", "version", unique=True),
    Index(None, "event_id", unique=True),
)

journal_snapshots = Table(
    "journal_snapshots",
    metadata,
    Column("stream", _Big, primary_key=True, autoincrement=False),
    Column("version", _Big, primary_key=True, autoincrement=False),
    Column("fingerprint", Text, nullable=False),
    Column("encoding", Text, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("checksum", LargeBinary, nullable=False),
    Column("epoch", _Big, nullable=False, server_default=_ZERO),
    Column("metadata", Text),
    Column("recorded_at", _Big, nullable=False),
)

# The record of sanctioned removals, and the door they go through: the trigger on `journal_events` lets a row
# go only while an open removal covers it.
journal_removals = Table(
    "journal_removals",
    metadata,
    Column("id", _Big, primary_key=True),
    Column("stream", _Big, nullable=False),
    Column("through", _Big, nullable=False),
    Column("removed", _Big, nullable=False, server_default=_ZERO),
    # Where the log ended: what is appended next goes on from there, although that row may be gone. (AUTOINCREMENT would
    # see to it too, for the price of another page to write in each commit.)
    Column("log_end", _Big, nullable=False, server_default=_ZERO),
    Column("reason", Text, nullable=False),
    Column("is_open", Boolean, nullable=False),
    Column("recorded_at", _Big, nullable=False),
    # What the delete trigger looks for at every row: it must not search all removals there ever were.
    Index("ix_journal_removals_open", "stream", sqlite_where=text("is_open"), postgresql_where=text("is_open")),
    sqlite_autoincrement=True,
)

# What proves that events are as they were (docs/tamper-evidence.md). A trigger refuses to change or remove a seal.
journal_seals = Table(
    "journal_seals",
    metadata,
    Column("number", _Big, primary_key=True, autoincrement=False),
    # JSON, but signed byte for byte.
    Column("statement", LargeBinary, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("leaves", LargeBinary, nullable=False),
    Column("removals", LargeBinary, nullable=False),
)

# What commands with an id came to. Of two executions of one command a unique index lets one be stored.
journal_commands = Table(
    "journal_commands",
    metadata,
    Column("id", _Big, primary_key=True),
    Column("stream", _Big, nullable=False),
    Column("command_id", _Id, nullable=False),
    Column("fingerprint", LargeBinary(16), nullable=False),
    Column("outcome_id", LargeBinary(16), nullable=False),
    Column("is_rejection", Boolean, nullable=False),
    Column("payload", Text, nullable=False),
    # Milliseconds since 1970 as the id tells them, 0 if it tells no time.
    Column("issued_at", _Big, nullable=False),
    Column("version", _Big, nullable=False),
    Column("recorded_at", _Big, nullable=False),
)

# Processes that own streams. A lease is only who may claim; what keeps an old owner from writing are the epochs.
journal_owners = Table(
    "journal_owners",
    metadata,
    Column("tenant", _Id, primary_key=True, server_default=text("''")),
    Column("id", LargeBinary(16), primary_key=True),
    Column("name", Text, nullable=False),
    Column("renewals", _Big, nullable=False),
    # Microseconds: how long the lease runs after each renewal, and until when.
    Column("duration", _Big, nullable=False),
    Column("ends_at", _Big, nullable=False),
    Column("report", Text, nullable=False),
    Column("started_at", _Big, nullable=False),
)

# How far each projection has come through the log. A rebuild is a version of its own, beside the one that is read.
journal_checkpoints = Table(
    "journal_checkpoints",
    metadata,
    Column("tenant", _Id, primary_key=True, server_default=text("''")),
    Column("name", _Id, primary_key=True),
    Column("version", _Big, primary_key=True, autoincrement=False),
    # Counts the changes of the row: who changes it says which one it has seen.
    Column("revision", _Big, nullable=False),
    Column("position", _Big, nullable=False),
    # What was applied: how many events, and their ids, each bit added up without carrying.
    Column("events", _Big, nullable=False),
    Column("checksum", LargeBinary(16), nullable=False),
    Column("state", Text, nullable=False),
)

# Facts about the journal as a whole, each a JSON text: that it is a copy and up to where, that it is fenced and why.
journal_marks = Table(
    "journal_marks",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

# On Postgres many connections append at once, and a stream's row is what they lock: it carries the version that their
# appends compare. On SQLite one transaction writes at a time, and the newest event tells the version: a second row
# to write for each append would tell nothing more.
postgres_metadata = MetaData(naming_convention=metadata.naming_convention)
for _table in metadata.sorted_tables:
    _table.to_metadata(postgres_metadata)
postgres_metadata.tables["journal_streams"].append_column(
    Column("version", _Big, nullable=False, server_default=_ZERO),
)

# On SQLite a page of an index by streams, one for each stream in each commit, was nearly all that an outcome cost.
# There ids that rise lie on one page, whatever their streams, and the index by streams gets many outcomes at a time
# (docs/decisions.md, 32). Whether Postgres would gain by that was not measured: there one index serves both questions.
Index(
    None,
    postgres_metadata.tables["journal_commands"].c.stream,
    postgres_metadata.tables["journal_commands"].c.command_id,
    unique=True,
)
journal_commands.append_column(Column("is_filed", Boolean, nullable=False, server_default=_ZERO))
Index(None, journal_commands.c.command_id, journal_commands.c.stream, unique=True)
Index(None, journal_commands.c.stream, journal_commands.c.command_id, sqlite_where=text("is_filed"))

# What an audit finds events by. Within one user or one correlation an index has the order of the log: on SQLite a row's
# position is in every index. Events without metadata are in none of the two, and cost nothing there.
_WITH_METADATA = text("metadata IS NOT NULL")
MAY_HAVE_LABEL = (
    """metadata NOT LIKE '{"command_id":"%' OR metadata LIKE '{"command_id":"%"__%' OR metadata LIKE '%\\\\%'"""
)
"""On Postgres neither are events whose metadata is the id of their command and nothing else, which nobody has given
them: no quote behind the first has more behind it than a brace, and nothing is escaped. To find out by JSON that there
is no label took, with the two entries for it, a quarter of what the server does for such an event."""


# An entry of Postgres's indexes has a limit, and no id of a request needs more to be told from others.
LABEL_CHARACTERS = 200


def sqlite_label(name: str) -> str:
    """An expression for one text in an event's metadata, as far as that can be told without JSON functions: SQLite
    lets no index have these that is to work with an untrusted schema.

    It is the text's first `LABEL_CHARACTERS`, and `chr(1)` where that cannot be told: where something is escaped, where
    the name stands twice, or its value is no text. It may be the text of another thing by that name. Where the name
    does not stand at all, it is NULL.
    """
    key, start = f'"{name}"', f'"{name}":"'
    behind = f"substr(metadata, instr(metadata, '{start}') + {len(start)})"
    return (
        f"CASE WHEN instr(metadata, '\\') > 0 THEN char(1) WHEN instr(metadata, '{key}') = 0 THEN NULL "
        f"WHEN instr(metadata, '{start}') = 0 THEN char(1) WHEN instr({behind}, '{key}') > 0 THEN char(1) "
        f"WHEN instr(metadata, '{key}') < instr(metadata, '{start}') THEN char(1) "
        f"ELSE substr({behind}, 1, min({LABEL_CHARACTERS}, instr({behind}, '\"') - 1)) END"
    )


INDEXED_LABELS = ("user", "correlation_id")
for _label in INDEXED_LABELS:
    Index(
        f"ix_journal_events_{_label}",
        text(f"({sqlite_label(_label)})"),
        sqlite_where=_WITH_METADATA,
        _table=journal_events,
    )
    Index(
        f"ix_journal_events_{_label}",
        text(f"journal_label(metadata, '{_label}')"),
        postgres_metadata.tables["journal_events"].c.position,
        postgresql_where=text(MAY_HAVE_LABEL),
    )
# Times rise with the log, but for what clocks do: the ranges of its pages are enough, and cost an append nothing.
Index(
    "ix_journal_events_recorded_at", postgres_metadata.tables["journal_events"].c.recorded_at, postgresql_using="brin"
)

# Every append writes its streams' rows anew: room on the page keeps that out of the indexes. As an option of the table
# SQLAlchemy has it from 2.1 on.
event.listen(
    postgres_metadata.tables["journal_streams"],
    "after_create",
    DDL("ALTER TABLE %(fullname)s SET (fillfactor = 70)"),  # type: ignore[no-untyped-call]
)

METADATA = {"sqlite": metadata, "postgresql": postgres_metadata}
"""The journal's tables as each SQL database has them."""
