"""Empty journals to test on: making the schema anew takes longer than most tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from eventstore import schema
from eventstore.url import parse_store_url

_TABLES = (
    "journal_streams, journal_events, journal_snapshots, journal_removals, journal_commands, journal_owners, "
    "journal_checkpoints, journal_seals, journal_marks"
)
# Only the tables' owner can do this: to everyone else the journal's events are there for ever.
_EMPTY = f"""
DROP FUNCTION IF EXISTS journal_fence CASCADE;
ALTER TABLE journal_events DISABLE TRIGGER USER;
ALTER TABLE journal_seals DISABLE TRIGGER USER;
TRUNCATE {_TABLES} RESTART IDENTITY;
ALTER TABLE journal_events ENABLE TRIGGER USER;
ALTER TABLE journal_seals ENABLE TRIGGER USER;
"""


def new_journal(kind: str, folder: Path) -> str:
    """The URL of an empty journal that no one else has."""
    if kind == "memory":
        return f"memory://{uuid4()}"
    (folder / "journal.db").write_bytes(_empty_file())
    return f"sqlite:///{folder}/journal.db"


async def empty_postgres(url: str, *, also: str = "") -> None:
    """Remove all that a test has left, and do one thing more: a new database takes many times as long."""
    dsn = urlsplit(url)._replace(query="").geturl()
    connection = await asyncpg.connect(dsn, timeout=60, command_timeout=60)
    try:
        await connection.execute(_EMPTY + also)
    finally:
        await connection.close(timeout=60)


@functools.cache
def _empty_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        schema.upgrade(parse_store_url(f"sqlite:///{folder}/journal.db"))
        return (Path(folder) / "journal.db").read_bytes()
