"""Decoding the real journal with the code at hand, to find out what of it can no longer be read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from eventstore.backend import EventFilter
from eventstore.cli.described import Modules
from eventstore.codec import decode_parts
from eventstore.errors import CodecError, JournalCorrupt
from eventstore.events import Event, RecordedEvent, stream_kind
from eventstore.store import EventStore
from eventstore.upcasters import stored_names

# Events of a sample that are read in one go, and those of each known type at its beginning and its end.
_WINDOW = 50
_OF_EACH_TYPE = 20


class Broken(NamedTuple):
    """One way in which events cannot be read, with the first of them, and how many events that are."""

    type: str
    schema_version: int
    stream_id: str
    version: int
    problem: str
    events: int


@dataclass
class JournalCheck:
    """Decodes events, and hands them to nobody: only whether their handlers exist is looked at."""

    modules: Modules
    on_events: Callable[[int], None]
    events: int = 0
    _found: dict[tuple[str, int, str], Broken] = field(default_factory=dict[tuple[str, int, str], Broken])

    def __post_init__(self) -> None:
        # Several classes may read the streams of one kind.
        self._handled: dict[str, set[type[Event]]] = {}
        for actor in self.modules.actors:
            self._handled.setdefault(actor.kind, set()).update(actor.handlers.events)

    async def all(self, store: EventStore) -> None:
        """Look at the whole journal."""
        async for recorded in store.read_all(on_damage=self._damaged):
            self._look(recorded)

    async def sample(self, store: EventStore, size: int) -> None:
        """Look at the oldest and the newest events of each type that the modules know, and at stretches of the log that
        lie as far apart as `size` events allow; at all of it where it has no more. The same journal gives the same
        sample."""
        if size >= await store.end():
            await self.all(store)
            return
        seen: set[int] = set()
        async for recorded in self._sampled(store, size):
            if recorded.position not in seen:
                seen.add(recorded.position)
                self._look(recorded)

    async def _sampled(self, store: EventStore, size: int) -> AsyncIterator[RecordedEvent]:
        for name in stored_names(*self.modules.events):
            where = EventFilter(types=(name,))
            async for recorded in store.read_all(where=where, limit=_OF_EACH_TYPE, on_damage=self._damaged):
                yield recorded
            async for recorded in store.read_all(where=where, last=_OF_EACH_TYPE, on_damage=self._damaged):
                yield recorded
        end = await store.end()
        windows = max(1, size // _WINDOW)
        for number in range(windows):
            after = max(0, (end - _WINDOW) * number // max(1, windows - 1))
            async for recorded in store.read_all(after=after, limit=min(_WINDOW, size), on_damage=self._damaged):
                yield recorded

    @property
    def broken(self) -> list[Broken]:
        """What was found, in the order of the types."""
        return sorted(self._found.values())

    def _look(self, recorded: RecordedEvent) -> None:
        self.events += 1
        self.on_events(1)
        try:
            events = decode_parts(recorded)
        except CodecError as error:
            self._add(recorded, str(error), of=type(error).__name__)
            return
        kind = stream_kind(recorded.stream_id)
        handled = self._handled.get(kind)
        for event in events if handled is not None else ():
            if handled is not None and event.__class__ not in handled:
                problem = f"no actor of kind {kind!r} has an @event_handler for {event.__class__.__qualname__}"
                self._add(recorded, problem, of=problem)

    def _add(self, recorded: RecordedEvent, problem: str, *, of: str) -> None:
        key = (recorded.type, recorded.schema_version, of)
        known = self._found.get(key)
        if known is not None:
            self._found[key] = known._replace(events=known.events + 1)
        else:
            self._found[key] = Broken(*key[:2], recorded.stream_id, recorded.version, problem, 1)

    def _damaged(self, error: JournalCorrupt) -> None:
        self._found.setdefault(
            ("", 0, f"{error.stream_id} {error.version}"),
            Broken("", 0, error.stream_id or "", error.version or 0, str(error), 1),
        )
