"""The tables of a read model: made, made anew beside the live ones, and put in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection, Constraint, Index, Table


def while_building(tables: Iterable[Table], version: int) -> Mapping[Table, Table]:
    """The tables as a rebuild writes them: the same, under names of their own until they take the live ones' places.
    What refers to another of them refers to that one's copy."""
    return _copies(tuple(tables), f"__v{version}")


def create(connection: Connection, tables: Sequence[Table], *, building: int | None = None) -> None:
    """Make the tables that are not there. Those of a rebuild that was given up are made anew."""
    if building is None:
        found: Iterable[Table] = _copies(tuple(tables), "")
    else:
        drop(connection, tables, building)
        found = while_building(tables, building).values()
    for table in found:
        table.create(connection, checkfirst=True)


def switch(connection: Connection, tables: Sequence[Table], building: int) -> None:
    """Put the tables of a rebuild in the place of the live ones. These have other names until `drop_replaced`, so that
    what was made of them, such as views, can be made of the new ones."""
    prepare = connection.dialect.identifier_preparer
    # There views know tables by their names alone. Elsewhere they stay with a table when it gets another name.
    is_by_name = connection.dialect.name == "sqlite"
    if is_by_name:
        _drop(connection, _copies(tuple(tables), ""))
        connection.exec_driver_sql("PRAGMA legacy_alter_table = ON")
    try:
        for table, copy in while_building(tables, building).items():
            if not is_by_name:
                replaced = prepare.quote(_replaced(tables, building)[table].name)
                connection.exec_driver_sql(f"ALTER TABLE IF EXISTS {prepare.format_table(table)} RENAME TO {replaced}")
            connection.exec_driver_sql(
                f"ALTER TABLE {prepare.format_table(copy)} RENAME TO {prepare.quote(table.name)}"
            )
    finally:
        # Where it was cancelled the connection is lost, and to use it would raise another error.
        if is_by_name and not connection.invalidated:
            connection.exec_driver_sql("PRAGMA legacy_alter_table = OFF")


def drop_replaced(connection: Connection, tables: Sequence[Table], building: int) -> None:
    """Remove the tables whose places those of a rebuild have taken. Raises what the database raises if something was
    made of them, and is there still."""
    _drop(connection, _replaced(tables, building).values())


def drop(connection: Connection, tables: Sequence[Table], building: int) -> None:
    """Remove the tables of a rebuild that is given up."""
    _drop(connection, while_building(tables, building).values())


def _replaced(tables: Iterable[Table], building: int) -> Mapping[Table, Table]:
    return _copies(tuple(tables), f"__before_v{building}")


def _drop(connection: Connection, tables: Iterable[Table]) -> None:
    # Those that refer to others go before these.
    for table in reversed(tuple(tables)):
        table.drop(connection, checkfirst=True)


@lru_cache(maxsize=1024)
def _copies(tables: tuple[Table, ...], suffix: str) -> Mapping[Table, Table]:
    """Tables with their copies under other names, those that others refer to before these."""
    if not tables:
        return {}
    # Of the same kind as the user's: its naming convention may name the constraints.
    kind = type(tables[0].metadata)
    metadata = kind(naming_convention=tables[0].metadata.naming_convention)
    originals = {table.to_metadata(metadata): table for table in _with_referred(tables)}
    copies = {originals[copy]: copy for copy in metadata.sorted_tables if originals[copy] in tables}
    # The names come last: foreign keys have found their tables by those that these had.
    for copy in copies.values():
        copy.name = _longer(copy.name, suffix)
        # An index keeps its name when its table gets another, and names are unique in a schema; so is it with
        # constraints, where they are kept as indexes.
        kept: list[Index | Constraint] = [*copy.indexes, *copy.constraints]
        for named in kept:
            if isinstance(named.name, str):
                named.name = _longer(named.name, suffix)
    return copies


def _longer(name: Any, suffix: str) -> Any:
    """A name with more behind it, quoted as it was: SQLAlchemy has texts of its own for that."""
    longer: str = name + suffix
    return type(name)(longer, name.quote) if hasattr(name, "quote") else longer


def _with_referred(tables: Iterable[Table]) -> Sequence[Table]:
    """Tables, and those that they refer to, which may be none of the read model's."""
    found = list(tables)
    for table in found:
        found += {key.column.table for key in table.foreign_keys} - set(found)
    return found
