"""Rebuilding a read model: a new version is made beside the live one, catches up, and takes its place."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from eventstore import read_model_tables
from eventstore.contract.checkpoint import Checkpoint, Status, version_of
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import BackendUnavailable, EventStoreError, ProjectionError, TransactionExpired
from eventstore.projections import Projection
from eventstore.read_models.applying import TRANSACTION_SECONDS
from eventstore.read_models.beginning import begin
from eventstore.read_models.delivering import Poison, handle_events, new
from eventstore.read_models.fingerprint import fingerprint
from eventstore.read_models.projection_runner import FIRST_BATCH, ProjectionRunner
from eventstore.read_models.runner_process import new_runner, this_process
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

_MOST_LEFT = 2000
_ROUNDS = 5

# So often it is tried to take the live one's place. Without transactions that one is held up after `_ROUNDS`.
_MOST_ROUNDS = 20


async def rebuild(
    store: EventStore, projection: type[Projection], *, on_progress: Callable[[int, int, int], None] | None = None
) -> Checkpoint:
    """Build the read model anew from the first event, and put it in the place of the live one, which is read, and goes
    on, until then. One that was killed is taken up where it was, if the class is as it was (`fingerprint`); else it
    begins anew. This is how the number of partitions is changed, too. Returns the new version's checkpoint, that of the
    first partition if there are several.

    On SQL stores the places are changed in one transaction, in which the new version also gets what the live one had
    got ahead of it: nobody who reads sees it go back. Elsewhere the live one is held up at last if it stays ahead, for
    less than the lease of its runner. Raises `ProjectionStopped` for an event that cannot be applied; the live one is
    not touched by that, and the next rebuild begins anew. Raises `ProjectionError` if it can never take the place.
    """
    version = await _begin(store, projection)
    runner = ProjectionRunner(store, projection, version=version, on_progress=on_progress)
    for round_ in range(_MOST_ROUNDS):
        if round_ >= _ROUNDS and not store.capabilities.user_sql:
            await _hold_up(store, projection)
        await runner.run(follow=False)
        live, building = await _versions(store, projection)
        positions = [part.position for part in building]
        behind = _most(live) - min(positions, default=0)
        # What is left stands in the way of the live one while the places are changed.
        if behind > _MOST_LEFT and round_ < _ROUNDS:
            continue
        try:
            if (switched := await _switch(store, projection, version)) is not None:
                return switched[0]
            continue
        except Poison as poison:
            # The runner names the event that it is, and pauses there.
            error = poison.__cause__ or poison
        except (TransactionExpired, BackendUnavailable) as trouble:
            error = trouble
        if round_ >= _ROUNDS:
            raise error
        logger.warning("projection %s: the rebuild tries again: %s", projection.name, error)
    raise ProjectionError(
        f"the rebuild of projection {projection.name!r} does not come to where the live one is, which has got ahead of "
        f"it {_MOST_ROUNDS} times; pause the live one, or stop its runners, and rebuild: it goes on where it is"
    )


async def _hold_up(store: EventStore, projection: type[Projection]) -> None:
    """Let the live one stand still until its runner takes it back, which it does after its lease."""
    live, _ = await _versions(store, projection)
    for part in live:
        # Each has a holder of its own: of one that has several, a runner would take some over. Where this is too late
        # the next round tries again.
        await store.save_checkpoint(replace(part, runner=new_runner(), runner_name=this_process()))


async def _begin(store: EventStore, projection: type[Projection]) -> int:
    """The version that is being built: the one that a rebuild before this has left, or a new one."""
    while True:
        live, building = await _versions(store, projection)
        made_by = fingerprint(projection)
        # What other handlers have made of the events before would stay among what these make of the others.
        is_sound = all(
            part.pause is None and part.partitions == projection.partitions and part.made_by == made_by
            for part in building
        )
        if building and is_sound:
            return building[0].version
        if building:
            await give_up(store, projection)
        version = (live[0].version if live else 0) + 1
        # The version is taken if the live one has been made in this moment.
        if await begin(store, projection, version, Status.BUILDING):
            return version


async def give_up(store: EventStore, projection: type[Projection]) -> bool:
    """Remove a rebuild that has not taken its place. Returns whether there was one."""
    while True:
        _, building = await _versions(store, projection)
        if not building:
            return False
        if not store.capabilities.user_sql:
            gone = await store.change_checkpoints([], [part.key for part in building])
        else:
            async with _transaction(store) as transaction:
                gone = await _delete(transaction, building)
                if gone:
                    version = building[0].version
                    await transaction.connection.run_sync(read_model_tables.drop, projection.tables, version)
                    await transaction.commit(())
        if gone:
            return True


async def _delete(transaction: SqlTransaction, parts: Sequence[Checkpoint]) -> bool:
    """Remove checkpoints. False if one of them has changed: then the transaction is to be rolled back."""
    for part in parts:
        if not await transaction.delete_checkpoint(part.stored_name, part.version, part.revision):
            return False
    return True


async def _locked(transaction: SqlTransaction, parts: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those that are still there, as they are now: a moment later, one that is brought forward is another."""
    found = [await transaction.lock_checkpoint(part.stored_name, part.version) for part in parts]
    return [Checkpoint.of(each) for each in found if each is not None]


async def _switch(store: EventStore, projection: type[Projection], version: int) -> list[Checkpoint] | None:
    """Put a version in its place. None if something has changed meanwhile."""
    live, building = await _versions(store, projection)
    if not building or building[0].version != version:
        raise ProjectionError(f"the rebuild of projection {projection.name!r} was given up by somebody else")
    if not store.capabilities.user_sql:
        return await _switch_without_transaction(store, projection, live, building)
    async with _transaction(store) as transaction:
        # From here on the live one stands still: whoever brings it forward waits, and finds it gone.
        locked = await _locked(transaction, live)
        if len(locked) < len(live) or not await _delete(transaction, locked):
            return None
        behind = [await _caught_up(store, projection, transaction, part, _most(locked)) for part in building]
        for part in behind:
            if not await transaction.save_checkpoint(part.stored()):
                return None
        await transaction.connection.run_sync(read_model_tables.switch, projection.tables, version)
        await new(projection, behind[0]).switched(transaction.connection)
        try:
            await transaction.connection.run_sync(read_model_tables.drop_replaced, projection.tables, version)
        except EventStoreError:
            raise
        except Exception as error:
            raise ProjectionError(
                f"the read model of projection {projection.name!r} cannot be replaced: {error}; drop what was made "
                "of its tables, such as views, or make it of the new ones in the projection's method `switched`; the "
                "live one is as it was, and the next rebuild goes on from here"
            ) from error
        await transaction.commit(())
    _tell_what_stays(projection, live)
    return [part.saved() for part in behind]


def _tell_what_stays(projection: type[Projection], live: Sequence[Checkpoint]) -> None:
    """Name the tables that the version before had, and this one has not. They are not dropped: another projection may
    have them now, and somebody may still read them."""
    kept = {table.fullname for table in projection.tables}
    stay = sorted({name for part in live for name in part.tables} - kept)
    if stay:
        logger.warning(
            "projection %s: %s: no longer among its tables, and left in the database as of position %d; drop what "
            "nobody reads",
            projection.name, ", ".join(stay), _most(live),
        )  # fmt: skip


async def _caught_up(
    store: EventStore, projection: type[Projection], transaction: SqlTransaction, behind: Checkpoint, wanted: int
) -> Checkpoint:
    """Apply what a partition has not got up to a position. Returns what is live then."""
    while behind.position < wanted:
        size = min(FIRST_BATCH, projection.batch_size)
        page = await store.read_page(after=behind.position, limit=size, where=projection.where())
        events = [recorded for recorded in page.events if recorded.position <= wanted]
        position = page.position if len(events) == len(page.events) else wanted
        own = [recorded for recorded in events if behind.has(recorded.stream_id)]
        if own:
            await handle_events(projection, behind, own, transaction.connection)
        behind = behind.advanced(position, [recorded.event_id for recorded in own])
    return replace(behind, status=Status.LIVE, runner="")


async def _switch_without_transaction(
    store: EventStore, projection: type[Projection], live: Sequence[Checkpoint], building: Sequence[Checkpoint]
) -> list[Checkpoint] | None:
    if any(part.position < _most(live) for part in building):
        return None
    behind = [replace(part, status=Status.LIVE, runner="") for part in building]
    # In one step: what stayed of the version before would hold up truncation, and nobody would bring it forward.
    if not await store.change_checkpoints(behind, [part.key for part in live]):
        return None
    await new(projection, behind[0]).switched(None)
    return [part.saved() for part in behind]


def _most(parts: Sequence[Checkpoint]) -> int:
    """How far the one is that is furthest. Where the number of partitions changes nobody knows who had got what."""
    return max((part.position for part in parts), default=0)


async def _versions(store: EventStore, projection: type[Projection]) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """The live version and the one that is being built, where there are such, in all their partitions."""
    found = await store.checkpoints()
    return version_of(found, projection.name, Status.LIVE), version_of(found, projection.name, Status.BUILDING)


@asynccontextmanager
async def _transaction(store: EventStore) -> AsyncGenerator[SqlTransaction, None]:
    transaction = await store.begin_sql(seconds=TRANSACTION_SECONDS)
    try:
        yield transaction
    finally:
        await transaction.rollback()
