"""Checkpoints of projections on SQLite, inside the transaction that a connection is in."""

from __future__ import annotations

import sqlite3

from backends.checkpoints_sql import (
    concerning_text,
    delete_text,
    insert_text,
    saved_values,
    select_text,
    stored_checkpoint,
    update_text,
)
from eventstore.backend import StoredCheckpoint

_PLACES = tuple(f"?{number}" for number in range(1, 9))
_SELECT = select_text("journal_checkpoints", _PLACES[:3])
_INSERT = insert_text("journal_checkpoints", _PLACES)
_UPDATE = update_text("journal_checkpoints", _PLACES)
_DELETE = delete_text("journal_checkpoints", _PLACES[:4])
_CONCERNING = concerning_text("journal_checkpoints", "?1")


def concerning(connection: sqlite3.Connection, tenant: str) -> list[StoredCheckpoint]:
    """The checkpoints of all who are given a tenant's events."""
    return [stored_checkpoint(*row) for row in connection.execute(_CONCERNING, (tenant,))]


def find(connection: sqlite3.Connection, tenant: str, name: str, version: int) -> StoredCheckpoint | None:
    """A checkpoint, if there is one."""
    row = connection.execute(_SELECT, (tenant, name, version)).fetchone()
    return None if row is None else stored_checkpoint(*row)


def save(connection: sqlite3.Connection, tenant: str, checkpoint: StoredCheckpoint) -> bool:
    """Returns whether it was stored: not if somebody else has changed it since it was read."""
    statement = _UPDATE if checkpoint.revision else _INSERT
    return connection.execute(statement, saved_values(tenant, checkpoint)).rowcount == 1


def delete(connection: sqlite3.Connection, tenant: str, name: str, version: int, revision: int) -> bool:
    """Returns whether it was there, unchanged since it was read."""
    return connection.execute(_DELETE, (tenant, name, version, revision)).rowcount == 1
