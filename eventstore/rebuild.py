"""Rebuilding a read model: a new version is made beside the live one, catches up, and takes its place."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

from eventstore import read_model_tables
from eventstore.checkpoint import Checkpoint, Status
from eventstore.errors import BackendUnavailable, ProjectionError, TransactionExpired
from eventstore.projection_runner import TRANSACTION_SECONDS, ProjectionRunner, begin, handle_events, new
from eventstore.projections import Projection
from eventstore.sql_transaction import SqlTransaction
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

_MOST_PAGES_LEFT = 4
_ROUNDS = 5


async def rebuild(
    store: EventStore, projection: type[Projection], *, on_progress: Callable[[int, int], None] | None = None
) -> Checkpoint:
    """Build the read model anew from the first event, and put it in the place of the live one, which is read, and goes
    on, until then. A rebuild that was killed is taken up where it was. Returns the new version's checkpoint.

    On SQL stores the places are changed in one transaction, in which the new version also gets what the live one had
    got ahead of it: nobody who reads sees it go back. Raises `ProjectionStopped` for an event that cannot be applied;
    the live one is not touched by that, and the next rebuild begins anew.
    """
    version = await _begin(store, projection)
    runner = ProjectionRunner(store, projection, version=version, on_progress=on_progress)
    for round_ in count():
        await runner.run(follow=False)
        live, building = await _versions(store, projection)
        behind = 0 if live is None or building is None else live.position - building.position
        # What is left stands in the way of the live one while the places are changed.
        if behind > _MOST_PAGES_LEFT * projection.batch_size and round_ < _ROUNDS:
            continue
        try:
            if (switched := await _switch(store, projection, version)) is not None:
                return switched
        except (TransactionExpired, BackendUnavailable) as error:
            if round_ >= _ROUNDS:
                raise
            logger.warning("projection %s: the rebuild tries again: %s", projection.name, error)
    raise AssertionError("it is counted without an end")


async def _begin(store: EventStore, projection: type[Projection]) -> int:
    """The version that is being built: the one that a rebuild before this has left, or a new one."""
    while True:
        live, building = await _versions(store, projection)
        if building is not None and building.pause is None:
            return building.version
        if building is not None:
            await give_up(store, projection)
        version = (live.version if live else 0) + 1
        # The version is taken if the live one has been made in this moment.
        if await begin(store, projection, version, Status.BUILDING):
            return version


async def give_up(store: EventStore, projection: type[Projection]) -> bool:
    """Remove a rebuild that has not taken its place. Returns whether there was one."""
    while True:
        _, building = await _versions(store, projection)
        if building is None:
            return False
        if not store.capabilities.user_sql:
            gone = await store.delete_checkpoint(building)
        else:
            async with _transaction(store) as transaction:
                gone = await transaction.delete_checkpoint(building.name, building.version, building.revision)
                if gone:
                    await transaction.connection.run_sync(read_model_tables.drop, projection.tables, building.version)
                    await transaction.commit(())
        if gone:
            return True


async def _switch(store: EventStore, projection: type[Projection], version: int) -> Checkpoint | None:
    """Put a version in its place. None if something has changed meanwhile."""
    live, building = await _versions(store, projection)
    if building is None or building.version != version:
        raise ProjectionError(f"the rebuild of projection {projection.name!r} was given up by somebody else")
    if not store.capabilities.user_sql:
        return await _switch_without_transaction(store, projection, live, building)
    async with _transaction(store) as transaction:
        # From here on the live one stands still: whoever brings it forward waits, and finds it gone.
        if live is not None and not await transaction.delete_checkpoint(live.name, live.version, live.revision):
            return None
        behind = building
        while live is not None and behind.position < live.position:
            page = await store.read_page(after=behind.position, limit=projection.batch_size, where=projection.where())
            events = [recorded for recorded in page.events if recorded.position <= live.position]
            await handle_events(projection, behind, events, transaction.connection)
            position = page.position if len(events) == len(page.events) else live.position
            behind = behind.advanced(position, [recorded.event_id for recorded in events])
        behind = replace(behind, status=Status.LIVE, runner="")
        if not await transaction.save_checkpoint(behind.stored()):
            return None
        await transaction.connection.run_sync(read_model_tables.switch, projection.tables, version)
        await new(projection, behind).switched(transaction.connection)
        await transaction.commit(())
        return behind.saved()


async def _switch_without_transaction(
    store: EventStore, projection: type[Projection], live: Checkpoint | None, building: Checkpoint
) -> Checkpoint | None:
    if live is not None and building.position < live.position:
        return None
    behind = replace(building, status=Status.LIVE, runner="")
    if not await store.save_checkpoint(behind):
        return None
    await new(projection, behind).switched(None)
    while live is not None and not await store.delete_checkpoint(live):
        live = next((one for one in await store.checkpoints() if _is(one, projection, live.version)), None)
    return behind.saved()


def _is(checkpoint: Checkpoint, projection: type[Projection], version: int) -> bool:
    return checkpoint.name == projection.name and checkpoint.version == version


async def _versions(store: EventStore, projection: type[Projection]) -> tuple[Checkpoint | None, Checkpoint | None]:
    """The live version and the one that is being built, where there are such."""
    found = {one.status: one for one in await store.checkpoints() if one.name == projection.name}
    return found.get(Status.LIVE), found.get(Status.BUILDING)


@asynccontextmanager
async def _transaction(store: EventStore) -> AsyncGenerator[SqlTransaction, None]:
    transaction = await store.begin_sql(seconds=TRANSACTION_SECONDS)
    try:
        yield transaction
    finally:
        await transaction.rollback()
