"""Checkpoints in SQL: the same statements for every SQL backend, in whatever transaction the connection is in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Executable, select

from backends.tables import journal_checkpoints as _c
from eventstore.backend import CheckpointKey, StoredCheckpoint
from eventstore.contract.sql_transaction import SqlTransaction

CHECKPOINT_SECONDS = 10.0
"""How long a transaction that changes nothing but checkpoints may take."""


# The statements as text, made once: a projection saves a checkpoint with every batch, and SQLAlchemy would spend as
# much on it as on applying a hundred events. What is there already stays: two that begin at the same moment must not
# both go on. On Postgres the row is locked until the transaction ends: who else wants to replace it waits, and finds
# that the revision is another one.
_COLUMNS = ("tenant", "name", "version", "revision", "position", "events", "checksum", "state")


def selected(tenant: str) -> Executable:
    """The tenant's checkpoints."""
    return select(*(_c.c[name] for name in _COLUMNS[1:])).where(_c.c.tenant == tenant).order_by(_c.c.name, _c.c.version)


def insert_text(table: str, parameters: Sequence[str]) -> str:
    """The statement that makes a checkpoint, if the tenant has none of its name and version."""
    return f"INSERT INTO {table} ({', '.join(_COLUMNS)}) VALUES ({', '.join(parameters)}) ON CONFLICT DO NOTHING"  # noqa: S608 - names


def update_text(table: str, parameters: Sequence[str]) -> str:
    """The statement that replaces the checkpoint of the revision before. The parameters are those of the columns."""
    tenant, name, version, revision, *_ = parameters
    changes = ", ".join(f"{column} = {new}" for column, new in zip(_COLUMNS[3:], parameters[3:], strict=True))
    return (
        f"UPDATE {table} SET {changes} WHERE tenant = {tenant} "  # noqa: S608 - names
        f"AND name = {name} AND version = {version} AND revision = {revision} - 1"
    )


def delete_text(table: str, parameters: Sequence[str]) -> str:
    """The statement that removes the checkpoint of a tenant, a name, a version and a revision."""
    tenant, name, version, revision = parameters
    return (
        f"DELETE FROM {table} WHERE tenant = {tenant} "  # noqa: S608 - names
        f"AND name = {name} AND version = {version} AND revision = {revision}"
    )


def select_text(table: str, parameters: Sequence[str]) -> str:
    """The statement that finds the checkpoint of a tenant, a name and a version: a row for `stored_checkpoint`."""
    tenant, name, version = parameters
    return (
        f"SELECT {', '.join(_COLUMNS[1:])} FROM {table} "  # noqa: S608 - names
        f"WHERE tenant = {tenant} AND name = {name} AND version = {version}"
    )


def concerning_text(table: str, tenant: str) -> str:
    """The statement that finds the checkpoints of a tenant and of the store without one."""
    return f"SELECT {', '.join(_COLUMNS[1:])} FROM {table} WHERE tenant IN ({tenant}, '')"  # noqa: S608 - names


def saved_values(tenant: str, checkpoint: StoredCheckpoint) -> tuple[Any, ...]:
    """What is stored for a checkpoint, in the order of the columns: with the next revision."""
    return (tenant, *checkpoint[:2], checkpoint.revision + 1, *checkpoint[3:-1], checkpoint.state.decode())


async def change_in_sql(
    transaction: SqlTransaction, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey]
) -> bool:
    """Change checkpoints in a transaction of their own, which is committed if it could change all of them."""
    try:
        # All in one order: so no two of these wait for each other.
        for change in sorted([*saving, *removing], key=lambda each: each[:2]):
            match change:
                case StoredCheckpoint():
                    is_done = await transaction.save_checkpoint(change)
                case CheckpointKey():
                    is_done = await transaction.delete_checkpoint(*change)
            if not is_done:
                return False
        await transaction.commit(())
        return True
    finally:
        await transaction.rollback()


def stored_checkpoint(
    name: str, version: int, revision: int, position: int, events: int, checksum: bytes, state: str
) -> StoredCheckpoint:
    """A row of `selected`."""
    return StoredCheckpoint(name, version, revision, position, events, checksum, state.encode())
