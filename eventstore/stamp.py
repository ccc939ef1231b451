"""Stamp: where and after what a replicated event was written, and the one order that all replicas put events in."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from eventstore.backend import ReplicaFields
from eventstore.vector_clock import MAX_COUNT, VectorClock

Key = tuple[int, tuple[int, ...], int]
"""A place in the canonical order."""


class Stamp(NamedTuple):
    """`sequence` counts the events that the replica `origin` has written in this stream, and `clock` says what it knew
    of the stream then, this event included.

    `time` is a hybrid logical clock in microseconds since 1970: that of the origin's wall clock, or one more than the
    greatest time it knew in the stream, whichever is greater. The events of one command have one time.
    """

    origin: str
    sequence: int
    clock: VectorClock
    time: int

    @property
    def key(self) -> Key:
        """What the canonical order sorts by. An event's time is greater than that of all it was written after, so it
        stands behind these; of two at one time that of the lower replica stands last, and so has the last word."""
        return self.time, _descending(self.origin), self.sequence

    def has_seen(self, other: Stamp) -> bool:
        """Whether this event was written with the other known."""
        return self.clock[other.origin] >= other.sequence

    def is_concurrent_with(self, other: Stamp) -> bool:
        """Whether neither event was known where the other was written."""
        return not (self.has_seen(other) or other.has_seen(self))

    def fields(self, *, concurrent: bool) -> ReplicaFields:
        """The stamp as a row of the journal keeps it, with whether something else was known there already."""
        clock = b'{"clock":%b,"time":%d}' % (bytes(self.clock), self.time)
        return ReplicaFields(self.origin, self.sequence, clock, concurrent)


def parse_stamp(origin: str, sequence: int, clock: bytes) -> Stamp:
    """The stamp of a row. Raises `ValueError` for one that `Stamp.fields` did not write."""
    stored: Any = orjson.loads(clock)
    try:
        counts, at = stored.pop("clock"), stored.pop("time")
        known = VectorClock(counts)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("its clock is not one") from error
    if stored:
        raise ValueError("there is more than a clock and a time")
    if type(at) is not int or not 0 < at <= MAX_COUNT:
        raise ValueError("its time is not one")
    if sequence < 1 or known[origin] != sequence:
        raise ValueError(f"its clock {known} does not end with it, event {sequence} of {origin!r}")
    return Stamp(origin, sequence, known, at)


WallClock = Callable[[], int]
"""Microseconds since 1970, by a clock that may jump."""


def wall_clock() -> int:
    """This machine's."""
    return time.time_ns() // 1000


def time_after(latest: int, wall: WallClock = wall_clock) -> int:
    """The hybrid time of what is written when `latest` is the greatest that is known."""
    return max(wall(), latest + 1)


@lru_cache(maxsize=1024)
def _descending(name: str) -> tuple[int, ...]:
    # The end counts as greater than any character, so that a name stands behind those that begin with it.
    return (*(-ord(character) for character in name), 1)
