"""Find: the events of the whole journal that match a query."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

from eventstore.contract.audit_query import AuditQuery
from eventstore.contract.pages import checked_limit
from eventstore.events import RecordedEvent
from eventstore.store import EventStore

_PAGE = 1000
_PAGE_BYTES = 1024 * 1024


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
    whatever is written meanwhile, unless it is removed. What is appended after the first page was read does not come.

    Raises `JournalCorrupt` for an event that is damaged, at the latest when its turn comes, and what reading the log
    raises.
    """
    remaining, most = checked_limit(limit), _PAGE
    while remaining is None or remaining > 0:
        wanted = most if remaining is None else min(most, remaining)
        page = await store.audit_page(query, cursor=cursor, limit=wanted, backwards=backwards)
        if page.is_end:
            for recorded in page.events:
                yield recorded
            return
        count = size = 0
        for recorded in page.events:
            count += 1
            size += len(recorded.payload) + len(recorded.metadata_bytes or b"")
            yield recorded
        remaining = None if remaining is None else remaining - count
        if remaining == 0:
            return
        # A backend gives fewer where they are large, but has to read them all to know.
        most = max(1, min(_PAGE, 2 * most, _PAGE_BYTES * count // size)) if size else _PAGE
        cursor, query = page.position, page.rest
        query = query if query.through is not None else replace(query, through=page.end)
