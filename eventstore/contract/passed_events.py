"""What a stream's events are still needed for. A backend asks here in the step that removes them."""

from __future__ import annotations

from collections.abc import Iterable

from eventstore.contract.checkpoint import Checkpoint
from eventstore.contract.journal_facts import StoredCheckpoint
from eventstore.errors import ProjectionBehind
from eventstore.events import stream_kind


def check_passed(
    checkpoints: Iterable[StoredCheckpoint], tenant: str, stream_id: str, position: int, *, removed: int = 0
) -> None:
    """Raise `ProjectionBehind` while a projection that wants the events of a tenant's stream has not passed a position.

    The checkpoints are the tenant's, and those of the store without a tenant. Raises `JournalCorrupt` for a damaged
    one. `removed` counts what has gone before.
    """
    kind = stream_kind(stream_id)
    for stored in checkpoints:
        if stored.position >= position:
            continue
        found = Checkpoint.of(stored)
        if found.has(stream_id) and found.wants(tenant, kind):
            gone = f"{removed} events were removed before" if removed else "nothing was removed"
            raise ProjectionBehind(
                found.name,
                found.position,
                position,
                f"{stream_id!r} cannot be truncated, {gone}; let the projection catch up first, or forget it",
            )
