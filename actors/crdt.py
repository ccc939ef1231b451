"""Replicated data types: states, or fields of them, whose concurrent changes need no rule.

Each change takes the stamp of the event it belongs to, `self.stamp` in an event handler. Changes that did not know each
other lead to the same whatever their order; pydantic writes and reads all of these types.

    class Cart(BaseModel):
        items: ORSet[str] = ORSet[str]()

    class CartActor(ReplicatedActor[Cart]):
        @event_handler
        def removed(self, event: Removed) -> None:
            self.state.items.remove(event.item, self.stamp)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from eventstore.stamp import Key, Stamp
from eventstore.vector_clock import EMPTY, VectorClock

T = TypeVar("T")
E = TypeVar("E", bound=Hashable)
K = TypeVar("K", bound=Hashable)

Dot = tuple[str, int]
"""One event: the replica that wrote it, and its number there."""


class _Replicated(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GCounter(_Replicated):
    """A number that only grows. Each replica's part is kept by itself, so `value` also tells who added what."""

    parts: dict[str, int] = {}

    def add(self, amount: int, stamp: Stamp) -> None:
        """Count on. Raises `ValueError` for less than 0."""
        if amount < 0:
            raise ValueError(f"this counter only grows: {amount} cannot be added")
        self.parts = _added(self.parts, stamp.origin, amount)

    @property
    def value(self) -> int:
        """What all replicas have counted together."""
        return sum(self.parts.values())


class PNCounter(_Replicated):
    """A number that grows and shrinks."""

    up: dict[str, int] = {}
    down: dict[str, int] = {}

    def add(self, amount: int, stamp: Stamp) -> None:
        """Count up; with less than 0, down."""
        if amount >= 0:
            self.up = _added(self.up, stamp.origin, amount)
        else:
            self.down = _added(self.down, stamp.origin, -amount)

    @property
    def value(self) -> int:
        """What all replicas have counted together."""
        return sum(self.up.values()) - sum(self.down.values())


class LWWRegister(_Replicated, Generic[T]):
    """One value: that of the last writer. Of two at one time that of the lower replica is the last."""

    value: T | None = None
    time: int = 0
    origin: str = ""
    sequence: int = 0

    def set(self, value: T, stamp: Stamp) -> None:
        """Write a value. One that is older than what is there changes nothing."""
        if not self.time or stamp.key >= Stamp(self.origin, self.sequence, EMPTY, self.time).key:
            self.value, self.time, self.origin, self.sequence = value, stamp.time, stamp.origin, stamp.sequence


class _Written(_Replicated, Generic[T]):
    """A value, and the event that wrote it."""

    value: T
    origin: str
    sequence: int
    time: int

    def is_known(self, clock: VectorClock) -> bool:
        """Whether it was known where something was written."""
        return clock[self.origin] >= self.sequence

    @property
    def key(self) -> Key:
        """Its place in the canonical order."""
        return Stamp(self.origin, self.sequence, EMPTY, self.time).key


class MVRegister(_Replicated, Generic[T]):
    """All values that were written without knowing each other; the next one that knows them replaces them."""

    written: list[_Written[T]] = []

    def set(self, value: T, stamp: Stamp) -> None:
        """Write a value, in place of those that were known there."""
        self.written = _with(self.written, value, stamp)

    @property
    def values(self) -> list[T]:
        """What stands beside each other, the last writer's last. One value: nobody disagrees."""
        return [each.value for each in self.written]


class ORSet(_Replicated, Generic[E]):
    """A set. To remove an element removes what was known of it: an addition that was not known there stays."""

    dots: dict[E, list[Dot]] = {}
    """For each element the additions that are in force."""

    def add(self, element: E, stamp: Stamp) -> None:
        """Add an element: anew, if it is there."""
        known = [dot for dot in self.dots.get(element, ()) if not _knows(stamp.clock, dot)]
        self.dots[element] = sorted([*known, (stamp.origin, stamp.sequence)])

    def remove(self, element: E, stamp: Stamp) -> None:
        """Remove an element, as far as it was known there."""
        left = [dot for dot in self.dots.get(element, ()) if not _knows(stamp.clock, dot)]
        if left:
            self.dots[element] = left
        else:
            self.dots.pop(element, None)

    def clear(self, stamp: Stamp) -> None:
        """Remove all that was known there."""
        for element in list(self.dots):
            self.remove(element, stamp)

    @property
    def elements(self) -> set[E]:
        """What is in it."""
        return set(self.dots)

    def __contains__(self, element: object) -> bool:
        return element in self.dots

    def __iter__(self) -> Iterator[E]:  # type: ignore[override]
        return iter(self.dots)

    def __len__(self) -> int:
        return len(self.dots)


class ORMap(_Replicated, Generic[K, T]):
    """A dict. A key that is set where its removal was not known stays, with that value; of values that were set without
    knowing each other the last writer's counts."""

    written: dict[K, list[_Written[T]]] = {}
    """For each key the values that are in force, the last writer's last."""

    def set(self, key: K, value: T, stamp: Stamp) -> None:
        """Give a key a value."""
        self.written[key] = _with(self.written.get(key, ()), value, stamp)

    def remove(self, key: K, stamp: Stamp) -> None:
        """Remove a key, as far as it was known there."""
        left = [each for each in self.written.get(key, ()) if not each.is_known(stamp.clock)]
        if left:
            self.written[key] = left
        else:
            self.written.pop(key, None)

    def get(self, key: K, default: T | None = None) -> T | None:
        """The value of a key."""
        written = self.written.get(key)
        return written[-1].value if written else default

    def items(self) -> dict[K, T]:
        """All of it as a plain dict."""
        return {key: written[-1].value for key, written in self.written.items()}


def _with(written: Iterable[_Written[T]], value: T, stamp: Stamp) -> list[_Written[T]]:
    """Values in their order, with one more, and without those that it replaces."""
    left = [each for each in written if not each.is_known(stamp.clock)]
    new = _Written[T](value=value, origin=stamp.origin, sequence=stamp.sequence, time=stamp.time)
    return sorted([*left, new], key=lambda each: each.key)


def _added(parts: dict[str, int], origin: str, amount: int) -> dict[str, int]:
    # In an order that does not depend on who came first.
    return dict(sorted({**parts, origin: parts.get(origin, 0) + amount}.items()))


def _knows(clock: VectorClock, dot: Dot) -> bool:
    return clock[dot[0]] >= dot[1]
