"""The events of one stream, one after the other, made of the pages that a backend gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

from eventstore.contract.pages import StreamPage, checked_limit, checked_page_size, held
from eventstore.events import RecordedEvent, checked_stream_id


async def stream_events(
    read_page: Callable[[int, int | None, int], Awaitable[StreamPage]],
    stream_id: str,
    *,
    after: int,
    through: int | None,
    limit: int | None,
    backwards: bool,
    page_size: int,
) -> AsyncGenerator[RecordedEvent, None]:
    """Those with after < version <= through, at most `limit`. `read_page` is given such bounds, and a limit of its own;
    its events come in version order, or falling if `backwards`."""
    checked_stream_id(stream_id)
    checked_page_size(page_size)
    after, through = held(after), None if through is None else held(through)
    remaining = checked_limit(limit)
    while remaining is None or remaining > 0:
        size = page_size if remaining is None else min(page_size, remaining)
        page = await read_page(after, through, size)
        for recorded in page.events:
            yield recorded
        if len(page.events) < size:
            return
        remaining = None if remaining is None else remaining - len(page.events)
        last = page.events[-1].version
        after, through = (after, last - 1) if backwards else (last, through)
