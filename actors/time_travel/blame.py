"""Blame: which event last set a value in the state of an actor, and every change there was."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import JsonValue

from actors.actor import PersistentActor
from actors.replaying.unfoldable import EventsRemoved
from actors.time_travel.folding import Fold
from actors.time_travel.state_changes import Nothing, StateChange, leaves, names_of, state_changes, value_at
from eventstore.errors import ActorError, JournalCorrupt
from eventstore.events import RecordedEvent
from eventstore.store import EventStore

_STRIDE = 500


class NeverSet(ActorError):
    """There is nothing at the pointer, and there never was."""


class Setting(NamedTuple):
    """What an event did to one value."""

    version: int
    change: StateChange
    event: RecordedEvent


class Blamed(NamedTuple):
    """A value as it is, and the version that set it last; `is_gone`: it was removed then.

    `event` is None for what was there before the first event that is known: in the initial state, or in the snapshot
    that stands for events that were removed.
    """

    pointer: str
    value: JsonValue
    is_gone: bool
    version: int
    event: RecordedEvent | None


async def history(
    store: EventStore,
    cls: type[PersistentActor[Any]],
    key: str,
    *,
    pointer: str = "",
    through: int | None = None,
    on_events: Callable[[int], None] | None = None,
) -> AsyncGenerator[Setting, None]:
    """Every change of the state at a JSON pointer and below it, event after event. To set a value to what it is already
    is no change.

    Of a replicated actor a change belongs to the event with which it came into this journal, even if that stands
    before others. Raises `InvalidPointer` and `RecoveryError`.
    """
    names = names_of(pointer)
    folding = await Fold.earliest(store, cls, key)
    reader = _Reader(store, folding.stream_id)
    async for version, change in _changes(folding, pointer, names, through, on_events):
        yield Setting(version, change, await reader.at(version))


async def blame(
    store: EventStore,
    cls: type[PersistentActor[Any]],
    key: str,
    *,
    pointer: str | None = None,
    through: int | None = None,
    on_events: Callable[[int], None] | None = None,
) -> Sequence[Blamed]:
    """What last set the value at a JSON pointer; without one, what last set each value of the state that holds no
    others. A value that holds others is set when one of them is.

    Raises `InvalidPointer`, `NeverSet` and `RecoveryError`.
    """
    names = names_of(pointer or "")
    folding = await Fold.earliest(store, cls, key)
    begin = folding.version
    was_there = not isinstance(value_at(folding.canonical(), names), Nothing)
    setters = _Setters()
    last = begin
    async for version, change in _changes(folding, pointer or "", names, through, on_events):
        last = version
        if pointer is None:
            setters.note(version, change)
    state = folding.canonical()
    reader = _Reader(store, folding.stream_id)
    if pointer is None:
        found = [(setters.version_of(place, begin), place, value) for place, value in leaves(state)]
        # The events are read in their order, and told in that of the state.
        events = {version: await reader.at(version) for version in sorted({each[0] for each in found} - {begin})}
        return [Blamed(place, value, False, version, events.get(version)) for version, place, value in found]
    value = value_at(state, names)
    if last == begin and not was_there:
        raise NeverSet(f"{folding.stream_id!r} has nothing at {pointer!r}, and never had")
    event = None if last == begin else await reader.at(last)
    if isinstance(value, Nothing):
        return [Blamed(pointer, None, True, last, event)]
    return [Blamed(pointer, value, False, last, event)]


async def _changes(
    folding: Fold,
    pointer: str,
    names: tuple[str, ...],
    through: int | None,
    on_events: Callable[[int], None] | None,
) -> AsyncGenerator[tuple[int, StateChange], None]:
    end = folding.stream_version if through is None else min(through, folding.stream_version)
    dumped, state = folding.dump(), folding.canonical()
    found: list[tuple[int, StateChange]] = []

    def look() -> None:
        nonlocal dumped, state
        again = folding.dump()
        if again == dumped:
            return
        before, dumped, state = state, again, folding.canonical()
        version = folding.version
        found.extend((version, change) for change in _between(before, state, pointer, names))

    while folding.version < end:
        await folding.through(min(folding.version + _STRIDE, end), on_events=on_events, after_each=look)
        for each in found:
            yield each
        found.clear()


def _between(before: JsonValue, after: JsonValue, pointer: str, names: tuple[str, ...]) -> Iterator[StateChange]:
    old, new = value_at(before, names), value_at(after, names)
    if not isinstance(old, Nothing) and not isinstance(new, Nothing):
        yield from state_changes(old, new, pointer)
    elif not isinstance(new, Nothing):
        yield StateChange(pointer, "added", None, new)
    elif not isinstance(old, Nothing):
        yield StateChange(pointer, "removed", old, None)


class _Setters:
    """For each value of a state the version that set it last."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}

    def note(self, version: int, change: StateChange) -> None:
        if change.kind != "added":
            for pointer, _ in leaves(change.before, change.pointer):
                # What holds it goes as well: where things come and go, nothing must be left of each.
                while len(pointer) >= len(change.pointer):
                    self._versions.pop(pointer, None)
                    pointer, slash, _ = pointer.rpartition("/")
                    if not slash:
                        break
        if change.kind != "removed":
            for pointer, _ in leaves(change.after, change.pointer):
                self._versions[pointer] = version
        # An object or an array that became empty was set by what took the last of it away.
        self._versions[change.pointer.rpartition("/")[0]] = version

    def version_of(self, pointer: str, begin: int) -> int:
        return self._versions.get(pointer, begin)


class _Reader:
    """Events of a stream that are asked for in rising order."""

    def __init__(self, store: EventStore, stream_id: str) -> None:
        self._store = store
        self._stream_id = stream_id
        self._page: list[RecordedEvent] = []

    async def at(self, version: int) -> RecordedEvent:
        if not self._page or not self._page[0].version <= version <= self._page[-1].version:
            reading = self._store.read(self._stream_id, after=version - 1, limit=_STRIDE)
            self._page = [recorded async for recorded in reading]
        index = version - self._page[0].version if self._page else 0
        if 0 <= index < len(self._page) and self._page[index].version == version:
            return self._page[index]
        head = await self._store.head(self._stream_id)
        if head.truncated >= version:
            raise EventsRemoved(self._stream_id, head.truncated)
        raise JournalCorrupt(f"the event at version {version} is missing", stream_id=self._stream_id, version=version)
