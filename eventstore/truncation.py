"""What of a stream may be removed, as far as that can be told before."""

from __future__ import annotations

from eventstore.backend import Backend
from eventstore.errors import TruncationRefused


async def removable(backend: Backend, stream_id: str, through: int) -> int:
    """The last version that may be removed: no event that is stored after this has looked is among them.

    Raises `TruncationRefused` for the stream of a replicated actor, whose peers may want any of its events.
    """
    newest = await backend.read_stream(stream_id, after=0, through=None, limit=1, backwards=True)
    if any(event.origin is not None for event in newest.events):
        raise TruncationRefused(stream_id)
    return min(through, newest.version)
