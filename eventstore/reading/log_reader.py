"""LogReader: the events of the whole log, one after the other, made of the pages that a backend gives."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable

from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, wait_random_exponential

from eventstore.contract.event_filter import EventFilter
from eventstore.contract.pages import LogPage, checked_limit, checked_page_size
from eventstore.errors import BackendUnavailable
from eventstore.events import RecordedEvent
from eventstore.reading.reading_past import OnDamage, PastDamage, ReadPage

logger = logging.getLogger(__name__)


class LogReader:
    """Reads with what a store can do: a page, where the last so many events begin, and waiting for new ones.

    With `on_damage`, damaged events are reported to it and passed over; else they end the reading.
    """

    def __init__(
        self,
        read_page: ReadPage,
        start_of_last: Callable[[int, EventFilter], Awaitable[int]],
        wait: Callable[[int, float], Awaitable[None]],
        on_damage: OnDamage | None,
    ) -> None:
        self._read_page = read_page
        self._start_of_last = start_of_last
        self._wait = wait
        self._on_damage = on_damage

    async def up_to_now(
        self, *, after: int, last: int | None, limit: int | None, where: EventFilter, page_size: int
    ) -> AsyncGenerator[RecordedEvent, None]:
        """The events up to where the log ends when the first page is read."""
        checked_page_size(page_size)
        checked_limit(last, "last")
        read_page = self._past_damage(self._read_page)
        position = after if last is None else await self._start_of_last(last, where)
        remaining = checked_limit(limit)
        end: int | None = None
        while remaining is None or remaining > 0:
            size = page_size if remaining is None else min(page_size, remaining)
            page = await read_page(after=position, limit=size, where=where)
            end = page.end if end is None else end
            for recorded in page.events:
                if recorded.position > end:
                    return
                yield recorded
            if page.is_end or page.position >= end:
                return
            remaining = None if remaining is None else remaining - len(page.events)
            position = page.position

    async def follow(
        self, *, after: int, last: int | None, where: EventFilter, page_size: int, poll_seconds: float
    ) -> AsyncGenerator[RecordedEvent, None]:
        """The events there are, and every new one as it comes. While the database is away it tries again."""
        checked_page_size(page_size)
        checked_limit(last, "last")
        again = AsyncRetrying(
            retry=retry_if_exception_type(BackendUnavailable),
            wait=wait_random_exponential(multiplier=0.05, max=5.0),
            before_sleep=before_sleep_log(logger, logging.WARNING),
        )

        async def read_again(*, after: int, limit: int, where: EventFilter) -> LogPage:
            page: LogPage = await again(self._read_page, after=after, limit=limit, where=where)
            return page

        read_page = self._past_damage(read_again)
        position: int = after if last is None else await again(self._start_of_last, last, where)
        while True:
            page = await read_page(after=position, limit=page_size, where=where)
            for recorded in page.events:
                yield recorded
            position = page.position
            if page.is_end:
                await again(self._wait, position, poll_seconds)

    def _past_damage(self, read_page: ReadPage) -> ReadPage:
        return read_page if self._on_damage is None else PastDamage(read_page, self._on_damage)
