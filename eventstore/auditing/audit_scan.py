"""Answering an audit by looking through the log, for backends that have no SQL."""

from __future__ import annotations

from typing import Protocol

from eventstore.backend import EventFilter, LogPage
from eventstore.contract.audit_query import AuditPage, AuditQuery
from eventstore.contract.pages import MAX_POSITION
from eventstore.events import RecordedEvent


class ReadAll(Protocol):
    """`Backend.read_all`."""

    async def __call__(self, *, after: int, limit: int, where: EventFilter) -> LogPage: ...


async def scanned_page(
    read_all: ReadAll, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool
) -> AuditPage:
    """A page of the answer (`Backend.audit_page`) out of one page of the log, so that a call reads so much and no
    more."""
    if backwards:
        return await _backwards(read_all, query, cursor, limit)
    after = max(query.after, cursor or 0)
    page = await read_all(after=after, limit=limit, where=query.where)
    last = MAX_POSITION if query.through is None else query.through
    found = list(query.matching(event for event in page.events if event.position <= last))
    is_end = page.is_end or page.position >= last
    return AuditPage(found, min(page.position, last), is_end, page.end, query)


async def _backwards(read_all: ReadAll, query: AuditQuery, cursor: int | None, limit: int) -> AuditPage:
    # Nothing comes, but the end of the log is told.
    end = (await read_all(after=MAX_POSITION, limit=0, where=query.where)).end
    top = min(
        end, MAX_POSITION if query.through is None else query.through, MAX_POSITION if cursor is None else cursor - 1
    )
    bottom = max(query.after, top - limit)
    found: list[RecordedEvent] = []
    position = bottom
    while position < top:
        page = await read_all(after=position, limit=top - position, where=query.where)
        found += query.matching(event for event in page.events if event.position <= top)
        position = page.position
    found.reverse()
    if len(found) > limit:
        return AuditPage(found[:limit], found[limit - 1].position, is_end=False, end=end, rest=query)
    return AuditPage(found, bottom + 1, bottom <= query.after, end, query)
