"""Beginning: a version of a read model is made, with nothing in it, if the store and the class allow that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eventstore import read_model_tables
from eventstore.contract.checkpoint import Checkpoint, Status
from eventstore.errors import DefinitionError, PartitionsChanged
from eventstore.projections import Projection
from eventstore.read_models.applying import TRANSACTION_SECONDS
from eventstore.read_models.delivering import new
from eventstore.read_models.fingerprint import fingerprint
from eventstore.store import EventStore


async def begin(store: EventStore, projection: type[Projection], version: int, status: Status) -> bool:
    """Make a version of a read model, with nothing in it, in all its partitions. False if it is there already. Raises
    `DefinitionError` for tables that another projection writes."""
    check_tenant(store, projection)
    count = projection.partitions
    names = tuple(table.fullname for table in projection.tables)
    await _check_tables(store, projection, names)
    whole = Checkpoint(
        projection.name,
        version,
        status,
        kinds=projection.kinds,
        tenants=projection.tenants,
        tables=names,
        made_by=fingerprint(projection),
    )
    parts = [replace(whole, partition=number, partitions=count) for number in range(count)]
    made = new(projection, parts[0])
    building = version if made.is_building else None
    if not store.capabilities.user_sql:
        await made.prepare(None)
        # One that was killed here has left some of them out.
        return any([await store.save_checkpoint(part) for part in parts])
    transaction = await store.begin_sql(seconds=TRANSACTION_SECONDS)
    try:
        # First of all: of two who begin at once the second waits here, and finds that it is there.
        for part in parts:
            if not await transaction.save_checkpoint(part.stored()):
                return False
        await transaction.connection.run_sync(read_model_tables.create, projection.tables, building=building)
        await made.prepare(transaction.connection)
        await transaction.commit(())
        return True
    finally:
        await transaction.rollback()


async def _check_tables(store: EventStore, projection: type[Projection], names: Sequence[str]) -> None:
    """Raises `DefinitionError` where another projection has one of the tables: a class with another name by now would
    put every event into them once more."""
    for one in await store.checkpoints():
        shared = sorted({*names}.intersection(one.tables))
        if shared and one.name != projection.name:
            raise DefinitionError(
                f"projection {projection.name!r} has tables that projection {one.name!r} writes ({', '.join(shared)}): "
                f'nothing was done. If it is the same under another name, give the class name="{one.name}", or forget '
                f"the other one (`eventstore projections forget URL {one.name}`) and rebuild this one; else rebuild "
                "the other one without these tables first"
            )


def check_partitions(projection: type[Projection], found: Sequence[Checkpoint]) -> None:
    """Raises `PartitionsChanged` where a version has other partitions than the class."""
    for one in found:
        if one.partitions != projection.partitions:
            raise PartitionsChanged(projection.name, one.partitions, projection.partitions)


def check_class(given: object, what: str) -> None:
    """Raises `DefinitionError` for what is no projection's class: whoever has no type checker gives anything."""
    if not (isinstance(given, type) and issubclass(given, Projection)):
        raise DefinitionError(f"{what} a subclass of Projection, not {given!r}")


def check_tenant(store: EventStore, projection: type[Projection]) -> None:
    """Raises `DefinitionError` for a store of a tenant that the projection cannot be run on."""
    if not store.tenant:
        return
    if projection.tenants and store.tenant not in projection.tenants:
        raise DefinitionError(
            f"projection {projection.name!r} is of the tenants {', '.join(projection.tenants)}, and the store is "
            f"{store.tenant}'s: nothing was done"
        )
    if projection.tables:
        # Each tenant would have a checkpoint of its own, and all the same tables: one's rebuild drops what others have.
        raise DefinitionError(
            f"projection {projection.name!r} has tables, which all tenants would share: run it on a store that was "
            f'opened without a tenant, of tenants=("{store.tenant}",) if it is to have no others\' events'
        )
