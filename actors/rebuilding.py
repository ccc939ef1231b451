"""Rebuilding: the state of a live actor, from the journal or from a copy that was kept of it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from actors.actor import PersistentActor
from actors.cells.living_cell import LivingCell
from actors.recovery import catch_up, recover
from eventstore.store import EventStore


async def rebuild(store: EventStore, cell: LivingCell, *, page_timeout: float) -> PersistentActor[Any]:
    """Bring a cell to what the journal says. Returns its actor. Raises `RecoveryError`.

    Where others write to the stream too, that happens again and again, and a copy is kept, from which there is less to
    apply.
    """
    actor = cell.start_anew()
    if not cell.is_overtaken:
        cell.base = None
        await recover(store, actor, cell, page_timeout=page_timeout)
        return actor
    if cell.base is not None:
        cell.version, state = cell.base
        actor.state = deepcopy(state)
        await catch_up(store, actor, cell, page_timeout=page_timeout)
    else:
        await recover(store, actor, cell, page_timeout=page_timeout)
    try:
        cell.base = cell.version, deepcopy(actor.state)
    except Exception:
        # A state may hold what cannot be copied.
        cell.base = None
    return actor
