"""A rebuild that is broken off in the middle, as a kill would do it."""

from __future__ import annotations

import pytest

from eventstore import EventStore, Projection, rebuild
from eventstore.contract.checkpoint import Checkpoint, Status


async def rebuilt_in_part(store: EventStore, projection: type[Projection]) -> list[Checkpoint]:
    """Rebuild up to the third batch. Returns the checkpoints that this has left."""
    seen: list[int] = []

    def cut(position: int, count: int, end: int) -> None:
        seen.append(count)
        if len(seen) == 3:
            raise KeyError("killed")

    with pytest.raises(KeyError):
        await rebuild(store, projection, on_progress=cut)
    return [one for one in await store.checkpoints() if one.status is Status.BUILDING]
