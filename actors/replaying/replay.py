"""Replay: stored events through an actor's event handlers, page after page."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import repeat
from typing import Any
from zlib import crc32

from pydantic import ValidationError

from actors.actor import PersistentActor, Stage
from actors.handlers import EventRoute
from actors.replaying.stored_events import apply_one, handler_raised
from actors.replaying.unfoldable import EventsRemoved
from actors.told_error import ENDS_THE_PROGRAM
from eventstore.backend import NO_EVENTS, EventPage, Load, Loaded
from eventstore.codec import PAYLOAD_BITS, checksum_seed, damaged
from eventstore.collector import collector_paused
from eventstore.errors import ActorError, BackendUnavailable, JournalCorrupt, ReplicationChanged
from eventstore.events import Event
from eventstore.store import EventStore

# The first page is small, because the size of the events is not known yet; then so many as fit the target. A trip takes
# as long as applying a hundred events or more.
_FIRST_PAGE = 200
_LARGEST_PAGE = 2000
_PAGE_BYTES = 4 * 1024 * 1024

# So many are applied without giving the event loop a turn.
_EVENTS_AT_ONCE = 200


class Replay:
    """Brings an actor's state forward through the journal, as far as is asked, from wherever it stands.

    `page_timeout` bounds the wait for each page of events, not the whole: a long replay that makes progress goes on.
    """

    def __init__(
        self, store: EventStore, actor: PersistentActor[Any], stage: Stage, *, page_timeout: float = 30.0
    ) -> None:
        self._store = store
        self._actor = actor
        self._stage = stage
        self._page_timeout = page_timeout
        self._page: EventPage = NO_EVENTS

    async def look(self, *, use_snapshot: bool = False) -> Loaded:
        """What the journal says of the stream behind the actor's version, with the first page of events.

        With `use_snapshot` that is behind the newest snapshot, which the caller adopts.
        """
        loaded = await self._within_time(self._ask(self._stage.version, _FIRST_PAGE, use_snapshot=use_snapshot))
        self._page = loaded.events
        return loaded

    async def through(
        self,
        version: int,
        *,
        on_events: Callable[[int], None] | None = None,
        after_each: Callable[[], None] | None = None,
    ) -> None:
        """Apply every event up to a version that the stream has reached. `on_events` is told how many, page by page;
        `after_each` is called whenever one more version was reached.

        Raises `JournalCorrupt` for a hole, `EventsRemoved` for one that a truncation has just made, the codec's errors
        for an event that cannot be read, `RecoveryError` for a handler that raises, and `BackendUnavailable` for a page
        that does not come in time.
        """
        stage = self._stage
        # A page that was left in the middle is taken up again.
        page = self._page[bisect_right(self._page.versions, stage.version) :]
        while (before := stage.version) < version:
            if not page:
                page = await self._next_page(self._ask(before, _next_limit(self._page)))
            if not page or page.versions[0] > version:
                raise JournalCorrupt(
                    f"the event at version {before + 1} is missing: the stream is at version {version}",
                    stream_id=stage.stream_id,
                    version=before + 1,
                )
            self._page = page
            async with self._page_behind(page, version) as page_behind:
                await self._apply(page, version, after_each)
                if on_events is not None:
                    on_events(stage.version - before)
                page = NO_EVENTS if page_behind is None else await self._next_page(page_behind)

    async def _apply(self, page: EventPage, version: int, after_each: Callable[[], None] | None) -> None:
        """Apply a page part by part. Between two parts the event loop sends for the next page, and serves others."""
        actor, stage = self._actor, self._stage
        page = _through(page, version)
        route = _route_of_all(actor, page) if page and after_each is None else None
        for start in range(0, len(page), _EVENTS_AT_ONCE):
            if start:
                await asyncio.sleep(0)
            part = slice(start, start + _EVENTS_AT_ONCE)
            if after_each is not None:
                self._apply_each(page[part], version, after_each)
                continue
            with collector_paused():
                # What all of them have in common was looked at once: a part needs no columns of it.
                if route is None or not _apply_alike(
                    actor, stage, route, page.versions[part], page.payloads[part], page.checksums[part]
                ):
                    apply_stored(actor, stage, page[part], through=version)

    def _apply_each(self, page: EventPage, version: int, after_each: Callable[[], None]) -> None:
        for index in range(len(page)):
            before = self._stage.version
            apply_stored(self._actor, self._stage, page[index : index + 1], through=version)
            if self._stage.version != before:
                after_each()

    @asynccontextmanager
    async def _page_behind(self, page: EventPage, version: int) -> AsyncGenerator[asyncio.Task[Loaded] | None, None]:
        """The page that follows one, on its way while that is applied. None if no more is needed."""
        last = page.versions[-1]
        if last >= version:
            yield None
            return
        task = asyncio.create_task(self._ask(last, _next_limit(page)), name="eventstore-next-page")
        try:
            yield task
        finally:
            # Where the page before it could not be applied, nobody wants this one, nor what went wrong with it.
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def _next_page(self, page: Awaitable[Loaded]) -> EventPage:
        loaded = await self._within_time(page)
        if loaded.truncated > self._stage.version:
            raise EventsRemoved(self._stage.stream_id, loaded.truncated)
        return loaded.events

    async def _ask(self, after: int, limit: int, *, use_snapshot: bool = False) -> Loaded:
        loaded = await self._store.load(Load(self._stage.stream_id, after, use_snapshot, limit))
        if loaded.is_stamped:
            # The handlers would take it, and what is decided then would stand behind it without a stamp.
            raise ReplicationChanged(self._stage.stream_id, loaded.events.versions[0], is_replicated=False)
        return loaded

    async def _within_time(self, page: Awaitable[Loaded]) -> Loaded:
        try:
            async with asyncio.timeout(self._page_timeout):
                return await page
        except TimeoutError as error:
            raise late_page(self._stage.stream_id, self._page_timeout) from error


def late_page(stream_id: str, seconds: float) -> BackendUnavailable:
    """The database is slow, which says nothing about the actor."""
    return BackendUnavailable(f"{stream_id!r}: no events came for {seconds:g} s: try again")


class ReadOnlyStage:
    """The stage of an actor that is only looked at."""

    __slots__ = ("stream_id", "version")

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.version = 0

    def stage(self, events: tuple[Event, ...]) -> Awaitable[None]:
        raise ActorError(f"{self.stream_id!r} is only being looked at: it cannot persist {len(events)} events")


def apply_stored(actor: PersistentActor[Any], stage: Stage, page: EventPage, *, through: int) -> None:
    """Apply events that follow the actor's version. A hole, a damaged, unknown or unreadable event is an error."""
    page = _through(page, through)
    if page and not _apply_sound(actor, stage, page):
        _apply_one_by_one(actor, stage, page)


def _through(page: EventPage, version: int) -> EventPage:
    """The events of a page up to a version."""
    return page[: bisect_right(page.versions, version)] if page and page.versions[-1] > version else page


def _apply_sound(actor: PersistentActor[Any], stage: Stage, page: EventPage) -> bool:
    """Look at each column as a whole, and apply the events if nothing is wrong with any. False, and nothing was done,
    if something is."""
    route = _route_of_all(actor, page)
    if route is not None:
        return _apply_alike(actor, stage, route, page.versions, page.payloads, page.checksums)
    if not _follow(stage, page.versions):
        return False
    found = _of_several(actor, page)
    if found is None:
        return False
    events, handlers = found
    _run(actor, stage, page.versions, events, handlers)
    return True


def _route_of_all(actor: PersistentActor[Any], page: EventPage) -> EventRoute | None:
    """Where all events of a page go. None: they are of several types, or one was stored by other code."""
    types = page.types
    route = actor.handlers.stored.get(types[0])
    if route is None or types.count(types[0]) != len(types):
        return None
    return route if page.schema_versions.count(route.schema_version) == len(types) else None


def _apply_alike(
    actor: PersistentActor[Any],
    stage: Stage,
    route: EventRoute,
    versions: Sequence[int],
    payloads: list[bytes],
    checksums: list[int],
) -> bool:
    """Apply events that go one way, if nothing is wrong with any. False, and nothing was done, if something is."""
    if not _follow(stage, versions):
        return False
    if not _match(list(map(crc32, payloads, repeat(route.seed))), checksums):
        return False
    events = route.array.read(payloads)
    if events is None:
        return False
    _run(actor, stage, versions, events, repeat(route.apply))
    return True


def _follow(stage: Stage, versions: Sequence[int]) -> bool:
    """Whether versions have no hole, and follow the actor's."""
    expected = range(stage.version + 1, stage.version + 1 + len(versions))
    return versions == expected or list(versions) == list(expected)


def _run(
    actor: PersistentActor[Any],
    stage: Stage,
    versions: Sequence[int],
    events: Sequence[Event],
    handlers: Iterable[Callable[[Any, Any], None]],
) -> None:
    for version, event, apply in zip(versions, events, handlers, strict=False):
        stage.version = version
        try:
            apply(actor, event)
        except ENDS_THE_PROGRAM:
            raise
        except BaseException as error:
            # Nothing is awaited here: a CancelledError is the handler's own, too.
            raise handler_raised(error, stage, event) from error


def _of_several(
    actor: PersistentActor[Any], page: EventPage
) -> tuple[Sequence[Event], Sequence[Callable[[Any, Any], None]]] | None:
    """The events of a page, and the handler of each. None: something is wrong with one of them."""
    stored = actor.handlers.stored
    try:
        routes = [stored[type_] for type_ in page.types]
    except KeyError:
        return None
    if page.schema_versions != [route.schema_version for route in routes]:
        return None
    if not _match(list(map(crc32, page.payloads, [route.seed for route in routes])), page.checksums):
        return None
    try:
        events = [route.validate(payload, extra="allow") for route, payload in zip(routes, page.payloads, strict=True)]
    except ValidationError:
        return None
    return events, [route.apply for route in routes]


def _match(found: list[int], checksums: list[int]) -> bool:
    """Whether events are what was stored. Above the payload's bits are those of the metadata, for events that have
    some."""
    return found == checksums or found == [checksum & PAYLOAD_BITS for checksum in checksums]


def _apply_one_by_one(actor: PersistentActor[Any], stage: Stage, page: EventPage) -> None:
    """Apply the events before the one that something is wrong with, and say what that is."""
    for version, type_, schema_version, payload, checksum in page:
        if version != stage.version + 1:
            raise JournalCorrupt(
                f"the versions have a hole or a repeat: {version} follows {stage.version}",
                stream_id=stage.stream_id,
                version=version,
            )
        # First of all, so that no damage is taken for an unknown type or for another schema.
        if crc32(payload, checksum_seed(type_, schema_version)) != checksum & PAYLOAD_BITS:
            raise damaged(
                "its type, schema version or payload do not match its checksum",
                stream_id=stage.stream_id,
                version=version,
            )
        apply_one(actor, stage, type_, schema_version, payload, version)


def _next_limit(page: EventPage) -> int:
    """As many events as fit the target if they are like those of the last page."""
    size = page.size
    return max(1, min(_LARGEST_PAGE, _PAGE_BYTES * len(page) // size)) if size else _FIRST_PAGE
