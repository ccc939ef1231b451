"""Applying: events go to a projection's handlers, and that they did is stored, in one transaction if there is SQL."""

from __future__ import annotations

import time
from collections.abc import Sequence

from eventstore.backend import Appended
from eventstore.contract.checkpoint import Checkpoint
from eventstore.errors import JournalCorrupt, ProjectionError
from eventstore.events import RecordedEvent
from eventstore.projections import Projection
from eventstore.read_models.delivering import TROUBLE, Poison, handle_events
from eventstore.store import EventStore

TRANSACTION_SECONDS = 30.0


class Lost(ProjectionError):
    """Somebody else has changed the checkpoint: nothing was done."""


async def apply_events(
    store: EventStore, projection: type[Projection], checkpoint: Checkpoint, events: Sequence[RecordedEvent]
) -> float:
    """Apply events, and save the checkpoint that is behind them, in one transaction where the store has such. Returns
    how many seconds the handlers took.

    Raises `Poison` and `Lost`; then nothing was done. Without a transaction the events were applied, and come again.
    """
    if not store.capabilities.user_sql:
        # What the handlers do cannot be undone. So who has lost his turn had better see it before.
        key = (checkpoint.stored_name, checkpoint.version)
        stored = [one for one in await store.checkpoints() if (one.stored_name, one.version) == key]
        if [one.revision for one in stored] != [checkpoint.revision]:
            raise Lost
        start = time.monotonic()
        await handle_events(projection, checkpoint, events, None)
        taken = time.monotonic() - start
        if not await store.save_checkpoint(checkpoint):
            raise Lost
        return taken
    transaction = await store.begin_sql(seconds=TRANSACTION_SECONDS)
    try:
        # Before anything else. Another runner that has done so already is waited for, and then nothing is done here.
        if not await transaction.save_checkpoint(checkpoint.stored()):
            raise Lost
        start = time.monotonic()
        await handle_events(projection, checkpoint, events, transaction.connection)
        taken = time.monotonic() - start
        try:
            outcome = await transaction.commit(())
        except TROUBLE:
            raise
        except Exception as error:
            # A constraint that is looked at when it is committed, or handlers that took too long.
            raise Poison from error
        if not isinstance(outcome, Appended):
            raise JournalCorrupt(f"a transaction without events was answered with {outcome!r}")
        return taken
    finally:
        await transaction.rollback()
