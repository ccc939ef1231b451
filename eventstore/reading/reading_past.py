"""PastDamage: pages of the log without the events that cannot be read, each of which is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from eventstore.backend import EventFilter, LogPage
from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent, stream_kind

OnDamage = Callable[[JournalCorrupt], None]
"""Called with the error for each damaged event that is passed over."""

_EVERYTHING = EventFilter()
_FACTOR = 4


class ReadPage(Protocol):
    async def __call__(self, *, after: int, limit: int, where: EventFilter) -> LogPage: ...


class PastDamage:
    """Reads pages as the store does, and goes on behind an event that is damaged.

    A page that holds one is asked for again in smaller parts, down to that very event, and without the filter: what is
    damaged may be what the filter looks at, and only an event that stands alone tells its position for sure.
    """

    def __init__(self, read_page: ReadPage, on_damage: OnDamage) -> None:
        self._read_page = read_page
        self._on_damage = on_damage
        # How many events are asked for at a time while damaged ones are near.
        self._size: int | None = None

    async def __call__(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        """The next page, which may hold no event. Raises `JournalCorrupt` where nobody knows what the damage covers."""
        while True:
            is_near = self._size is not None
            size = min(self._size or limit, limit)
            try:
                page = await self._read_page(after=after, limit=size, where=_EVERYTHING if is_near else where)
            except JournalCorrupt as error:
                if not is_near or size > 1:
                    self._size = max(1, size // _FACTOR)
                elif error.position is None or error.position <= after:
                    raise
                else:
                    self._on_damage(error)
                    after = error.position
                continue
            if not is_near:
                return page
            self._size = None if size == limit else size * _FACTOR
            return page._replace(events=[event for event in page.events if passes(event, where)])


def passes(recorded: RecordedEvent, where: EventFilter) -> bool:
    """Whether an event matches a filter."""
    tags = () if recorded.metadata is None else recorded.metadata.tags
    return (
        (not where.kinds or stream_kind(recorded.stream_id) in where.kinds)
        and (not where.types or recorded.type in where.types)
        and (not where.tags or not set(where.tags).isdisjoint(tags))
        and (not where.stream_ids or recorded.stream_id in where.stream_ids)
        and (not where.tenants or recorded.tenant in where.tenants)
    )
