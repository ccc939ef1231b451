"""Audit: questions to the whole journal: which events match, and what came of one request."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

from eventstore.audit_query import AuditQuery
from eventstore.events import RecordedEvent
from eventstore.store import EventStore

_FIRST_PAGE = 200
_LARGEST_PAGE = 1000
# A page holds no more than this, if its events are about as large as those of the page before.
_PAGE_BYTES = 4 * 1024 * 1024


async def find(
    store: EventStore,
    query: AuditQuery,
    *,
    cursor: int | None = None,
    limit: int | None = None,
    backwards: bool = False,
) -> AsyncGenerator[RecordedEvent, None]:
    """The events that match, in the order of the log, or the newest first if `backwards`; at most `limit`.

    To go on another time, give the position of the last event as `cursor`: no event comes twice or is left out,
    whatever is written meanwhile. What is appended after the first page was read does not come.

    Raises `JournalCorrupt` for an event that is damaged, and what reading the log raises.
    """
    remaining = limit
    size = _FIRST_PAGE
    while remaining is None or remaining > 0:
        wanted = size if remaining is None else min(size, remaining)
        page = await store.audit_page(query, cursor=cursor, limit=wanted, backwards=backwards)
        for recorded in page.events:
            yield recorded
        if page.is_end:
            return
        remaining = None if remaining is None else remaining - len(page.events)
        cursor, query = page.position, page.rest
        query = query if query.through is not None else replace(query, through=page.end)
        size = _next_size(size, sum(len(recorded.payload) for recorded in page.events), len(page.events))


def _next_size(size: int, read_bytes: int, events: int) -> int:
    """How many events the next page is to have: more and more, as long as they are small."""
    room = _PAGE_BYTES * events // read_bytes if read_bytes else _LARGEST_PAGE
    return max(1, min(2 * size, room, _LARGEST_PAGE))
