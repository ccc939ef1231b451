"""What a stream's events are still needed for. Whoever removes them asks here first."""

from __future__ import annotations

from eventstore.backend import Backend
from eventstore.contract.checkpoint import Checkpoint
from eventstore.errors import ProjectionBehind, TruncationRefused
from eventstore.events import stream_kind


async def check_truncation(backend: Backend, stream_id: str, through: int) -> None:
    """Raise `TruncationRefused` for the stream of a replicated actor, whose peers may want any of its events, and
    `ProjectionBehind` while a projection of the tenant's, or of the store without a tenant, has not passed the version.
    """
    newest = await backend.read_stream(stream_id, after=0, through=None, limit=1, backwards=True)
    if any(event.origin is not None for event in newest.events):
        raise TruncationRefused(stream_id)
    kind = stream_kind(stream_id)
    checkpoints = await backend.checkpoints()
    if backend.tenant:
        checkpoints = [*checkpoints, *await backend.checkpoints(shared=True)]
    needy = [one for one in map(Checkpoint.of, checkpoints) if one.has(stream_id) and one.wants(backend.tenant, kind)]
    if not needy:
        return
    page = await backend.read_stream(stream_id, after=0, through=through, limit=1, backwards=True)
    for last in page.events:
        for checkpoint in needy:
            if checkpoint.position < last.position:
                raise ProjectionBehind(
                    checkpoint.name,
                    checkpoint.position,
                    last.position,
                    f"{stream_id!r} cannot be truncated, nothing was removed; let the projection catch up first, "
                    "or forget it",
                )
