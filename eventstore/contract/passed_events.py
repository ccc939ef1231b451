"""What a stream's events are still needed for: a backend refuses with this, in the step that would remove them."""

from __future__ import annotations

from collections.abc import Iterable

from eventstore.contract.checkpoint import Checkpoint
from eventstore.contract.journal_facts import StoredCheckpoint
from eventstore.errors import DeadLetterWaits, ProjectionBehind, RetentionRefused
from eventstore.events import stream_kind


def check_passed(
    checkpoints: Iterable[StoredCheckpoint], tenant: str, stream_id: str, position: int, *, removed: int = 0
) -> None:
    """Raise `ProjectionBehind` while a projection that wants the events of a tenant's stream has not passed a position,
    and `DeadLetterWaits` while it has one of them, up to there, among its dead letters.

    The checkpoints are the tenant's, and those of the store without a tenant. Raises `JournalCorrupt` for a damaged
    one. `removed` counts what has gone before.
    """
    kind = stream_kind(stream_id)
    gone = f"{removed} events were removed before" if removed else "nothing was removed"
    cannot = f"{stream_id!r} cannot be truncated, {gone}"
    for found in map(Checkpoint.of, checkpoints):
        if found.position < position and found.has(stream_id) and found.wants(tenant, kind):
            what = (
                f"{cannot}; let the projection catch up first, or forget it with `eventstore projections forget URL "
                f"{found.name}` if nobody needs it any more"
            )
            raise ProjectionBehind(found.name, found.position, position, what)
        for letter in found.letters:
            if letter.position <= position and (letter.tenant, letter.stream_id) == (tenant, stream_id):
                what = (
                    f"{cannot}; apply it with `eventstore dead-letters replay` once its cause is mended, or forget it "
                    f"with `eventstore dead-letters purge URL {found.name} {letter.position}`"
                )
                raise DeadLetterWaits(found.name, found.position, letter.position, stream_id, letter.version, what)


def no_snapshot(stream_id: str, version: int, fingerprint: str, *, removed: int = 0) -> RetentionRefused:
    """What is raised where a state could not be rebuilt once the events up to a version are gone. `removed` counts what
    has gone before, at a snapshot that was there then."""
    gone = f"; {removed} events were removed before" if removed else ""
    return RetentionRefused(
        stream_id,
        f"it has no snapshot of schema {fingerprint!r} at version {version} or above, from which its state could be "
        f"rebuilt: take one with `eventstore rebuild snapshots`{gone}",
    )
