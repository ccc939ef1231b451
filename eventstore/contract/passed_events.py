"""What a stream's events are still needed for: a backend refuses with this, in the step that would remove them."""

from __future__ import annotations

from collections.abc import Iterable

from eventstore.contract.checkpoint import Checkpoint
from eventstore.contract.journal_facts import StoredCheckpoint
from eventstore.errors import ProjectionBehind, RetentionRefused
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


def no_snapshot(stream_id: str, version: int, fingerprint: str, *, removed: int = 0) -> RetentionRefused:
    """What is raised where a state could not be rebuilt once the events up to a version are gone. `removed` counts what
    has gone before, at a snapshot that was there then."""
    gone = f"; {removed} events were removed before" if removed else ""
    return RetentionRefused(
        stream_id,
        f"it has no snapshot of schema {fingerprint!r} at version {version} or above, from which its state could be "
        f"rebuilt: take one with `eventstore rebuild snapshots`{gone}",
    )
