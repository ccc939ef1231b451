"""What is said where nothing was found: to say nothing would look like an answer, and it may be a slip of the pen."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from eventstore.backend import StreamInfo
from eventstore.cli.messages import Messages
from eventstore.store import EventStore

# Which kinds there are is asked for each tenant. Beyond so many it takes too long for a note.
_MOST_TENANTS = 100


async def note_nothing(
    messages: Messages, store: EventStore, what: str, *, kinds: Iterable[str] = (), is_narrowed: bool
) -> None:
    """Say that there is no such thing, or with `is_narrowed` that none matched what was asked for; where the journal is
    empty, or has none of the kinds that were asked for, that."""
    if await _first(store.streams(page_size=1) if store.tenant else store.tenants(page_size=1)) is None:
        messages.note(f"tenant {store.tenant!r} has no streams" if store.tenant else "the journal is empty")
    elif not await note_unknown_kinds(messages, store, kinds):
        messages.note(f"no {what} matched" if is_narrowed else f"there is no {what}")


async def note_unknown_kinds(messages: Messages, store: EventStore, kinds: Iterable[str]) -> bool:
    """Say which of the kinds that were asked for no stream has. Returns whether there was something to be said."""
    unknown = [kind for kind in kinds if not await _may_know(store, kind)]
    if unknown:
        messages.note(f"nothing matched: the journal has no stream of kind {' or '.join(map(repr, unknown))}")
    return bool(unknown)


async def _may_know(store: EventStore, kind: str) -> bool:
    """Whether there may be streams of a kind."""
    looked_at = 0
    async for tenant in store.tenants():
        if looked_at == _MOST_TENANTS:
            return True
        looked_at += 1
        if await _first(store.streams(kind=kind, tenants=(tenant,), page_size=1)) is not None:
            return True
    return False


async def _first(found: AsyncIterator[StreamInfo | str]) -> StreamInfo | str | None:
    async for each in found:
        return each
    return None
