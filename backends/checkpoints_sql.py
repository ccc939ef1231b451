"""Checkpoints in SQL: the same statements for every SQL backend, in whatever transaction the connection is in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.expression import Executable

from backends.tables import journal_checkpoints as _c
from eventstore.backend import StoredCheckpoint
from eventstore.sql_transaction import SqlTransaction

CHECKPOINT_SECONDS = 10.0
"""How long a transaction that changes a checkpoint alone may take."""

_T = TypeVar("_T", bound=SqlTransaction)

SELECT = select(_c.c.name, _c.c.version, _c.c.revision, _c.c.position, _c.c.events, _c.c.checksum, _c.c.state).order_by(
    _c.c.name, _c.c.version
)

# What is there already stays: two that begin at the same moment must not both go on.
_INSERT = {
    "sqlite": sqlite.insert(_c).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(_c).on_conflict_do_nothing(),
}


async def save_checkpoint(
    connection: AsyncConnection, checkpoint: StoredCheckpoint, *, schema: str | None = None
) -> bool:
    """Replace a checkpoint of this revision. On Postgres its row is locked until the transaction ends: who else wants
    to replace it waits, and finds that the revision is another one."""
    values = {**checkpoint._asdict(), "state": checkpoint.state.decode(), "revision": checkpoint.revision + 1}
    if checkpoint.revision == 0:
        statement: Executable = _INSERT[connection.dialect.name].values(values)
    else:
        statement = update(_c).where(*_is(checkpoint.name, checkpoint.version, checkpoint.revision)).values(values)
    return await _changes_one(connection, statement, schema)


async def lock_checkpoint(
    connection: AsyncConnection, name: str, version: int, *, schema: str | None = None
) -> StoredCheckpoint | None:
    """A checkpoint, whose row nobody else changes until the transaction ends. On SQLite nobody else writes at all."""
    statement = SELECT.where(_c.c.name == name, _c.c.version == version).with_for_update()
    options = {} if schema is None else {"schema_translate_map": {None: schema}}
    row = (await connection.execute(statement, execution_options=options)).first()
    return None if row is None else stored_checkpoint(*row)


async def delete_checkpoint(
    connection: AsyncConnection, name: str, version: int, revision: int, *, schema: str | None = None
) -> bool:
    """Remove a checkpoint of this revision."""
    return await _changes_one(connection, delete(_c).where(*_is(name, version, revision)), schema)


async def in_sql(transaction: _T, change: Callable[[_T], Awaitable[bool]]) -> bool:
    """Change a checkpoint in a transaction of its own, which is committed if that changed one."""
    try:
        if not await change(transaction):
            return False
        await transaction.commit(())
        return True
    finally:
        await transaction.rollback()


def stored_checkpoint(
    name: str, version: int, revision: int, position: int, events: int, checksum: bytes, state: str
) -> StoredCheckpoint:
    """A row of `SELECT`."""
    return StoredCheckpoint(name, version, revision, position, events, checksum, state.encode())


def _is(name: str, version: int, revision: int) -> tuple[Any, ...]:
    return _c.c.name == name, _c.c.version == version, _c.c.revision == revision


async def _changes_one(connection: AsyncConnection, statement: Executable, schema: str | None) -> bool:
    options = {} if schema is None else {"schema_translate_map": {None: schema}}
    return bool((await connection.execute(statement, execution_options=options)).rowcount == 1)
