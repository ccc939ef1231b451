"""The tables of a read model: made, made anew beside the live ones, and put in their place."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Table


@lru_cache(maxsize=1024)
def while_building(table: Table, version: int) -> Table:
    """The table as a rebuild writes it: the same, under a name of its own until it takes the live one's place."""
    # Of the same kind as the user's: its naming convention may name the constraints.
    metadata = type(table.metadata)(naming_convention=table.metadata.naming_convention)
    copy = table.to_metadata(metadata, name=_name(table.name, version))
    for index in copy.indexes:
        # Names of indexes are unique in a schema, and an index keeps its name when its table gets another.
        if index.name is not None:
            index.name = type(index.name)(_name(index.name, version), None)
    return copy


def create(connection: Connection, tables: Sequence[Table], *, building: int | None = None) -> None:
    """Make the tables that are not there. Those of a rebuild that was given up are made anew."""
    for table in tables:
        if building is None:
            table.create(connection, checkfirst=True)
        else:
            copy = while_building(table, building)
            copy.drop(connection, checkfirst=True)
            copy.create(connection)


def switch(connection: Connection, tables: Sequence[Table], building: int) -> None:
    """Put the tables of a rebuild in the place of the live ones, which go."""
    quote = connection.dialect.identifier_preparer.format_table
    for table in tables:
        copy = while_building(table, building)
        table.drop(connection, checkfirst=True)
        name = connection.dialect.identifier_preparer.quote(table.name)
        connection.exec_driver_sql(f"ALTER TABLE {quote(copy)} RENAME TO {name}")


def drop(connection: Connection, tables: Sequence[Table], building: int) -> None:
    """Remove the tables of a rebuild that is given up."""
    for table in tables:
        while_building(table, building).drop(connection, checkfirst=True)


def _name(name: str, version: int) -> str:
    return f"{name}__v{version}"
