"""VectorClock: which events of each replica are known, and so which of two came first, or neither."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping
from enum import Enum
from typing import Any, Final

import orjson

from eventstore.errors import InvalidReplica

MAX_COUNT = 2**63 - 1
MAX_REPLICA_BYTES = 64


class Order(Enum):
    """How one clock stands to another."""

    BEFORE = "before"
    AFTER = "after"
    EQUAL = "equal"
    CONCURRENT = "concurrent"


_BEFORE, _AFTER, _EQUAL, _CONCURRENT = Order.BEFORE, Order.AFTER, Order.EQUAL, Order.CONCURRENT


class VectorClock:
    """How many events of each replica are known. It never changes; a replica that is not named counts as 0.

        VectorClock({"eu": 2, "us": 1}).compare(VectorClock({"eu": 2}))  # Order.AFTER

    Equal clocks have equal bytes (`bytes(clock)`, JSON with its keys in order and without zeros) and equal hashes.
    """

    __slots__ = ("_counts",)

    _counts: dict[str, int]

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        """Raises `ValueError` for a count below 0 or from 2**63 on, and for a replica that cannot be named so."""
        checked: dict[str, int] = {}
        for replica in sorted(counts or ()):
            count = (counts or {})[replica]
            if type(count) is not int or not 0 <= count <= MAX_COUNT:
                raise ValueError(f"a replica's count is a whole number from 0 to 2**63 - 1, not {count!r}")
            if count:
                checked[checked_replica(replica)] = count
        self._counts = checked

    @classmethod
    def parse(cls, data: bytes | str) -> VectorClock:
        """The clock that `bytes(clock)` wrote. Raises `ValueError` for anything else."""
        counts: Any = orjson.loads(data)
        if counts.__class__ is not dict:
            raise ValueError("a vector clock is a JSON object")
        return cls(counts)

    def __bytes__(self) -> bytes:
        return orjson.dumps(self._counts)

    def compare(self, other: VectorClock) -> Order:
        """Before: everything known here is known there, and something more. Concurrent: each knows what the other does
        not."""
        mine, theirs = self._counts, other._counts
        if mine == theirs:
            return _EQUAL
        is_more = False
        is_less = False
        shared = 0
        for replica, count in mine.items():
            known = theirs.get(replica)
            if known is None:
                is_more = True
                continue
            shared += 1
            if count > known:
                is_more = True
            elif count < known:
                is_less = True
        if is_less or shared < len(theirs):
            return _CONCURRENT if is_more else _BEFORE
        return _AFTER

    def covers(self, other: VectorClock) -> bool:
        """Whether everything known there is known here: `other` is before this clock, or equal."""
        mine = self._counts
        return all(mine.get(replica, 0) >= count for replica, count in other._counts.items())

    def merge(self, other: VectorClock) -> VectorClock:
        """What is known here or there: the least clock that is not before either."""
        merged = dict(self._counts)
        for replica, count in other._counts.items():
            if count > merged.get(replica, 0):
                merged[replica] = count
        return _sorted(merged)

    def meet(self, other: VectorClock) -> VectorClock:
        """What is known both here and there: the greatest clock that is not after either."""
        theirs = other._counts
        return _known({replica: min(n, theirs[replica]) for replica, n in self._counts.items() if replica in theirs})

    def incremented(self, replica: str, by: int = 1) -> VectorClock:
        """The clock once the replica has written so many more events."""
        count = self._counts.get(replica)
        if count is None:
            return _sorted({**self._counts, checked_replica(replica): by})
        return _known({**self._counts, replica: count + by})

    def __getitem__(self, replica: str) -> int:
        return self._counts.get(replica, 0)

    def items(self) -> ItemsView[str, int]:
        """The replicas with a count above 0, in the order of their names, with their counts."""
        return self._counts.items()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VectorClock) and self._counts == other._counts

    def __hash__(self) -> int:
        return hash(tuple(self._counts.items()))

    def __repr__(self) -> str:
        return f"VectorClock({self._counts!r})"

    def __str__(self) -> str:
        return "{" + ", ".join(f"{replica}:{count}" for replica, count in self._counts.items()) + "}"


def checked_replica(name: str) -> str:
    """Return a replica's name, or raise `InvalidReplica`. Names are compared byte for byte, like stream ids."""
    try:
        size = len(name.encode())
    except (UnicodeEncodeError, AttributeError) as error:
        raise InvalidReplica(f"a replica's name is text that UTF-8 can encode, not {name!r}") from error
    if not 0 < size <= MAX_REPLICA_BYTES or not name.isprintable():
        raise InvalidReplica(
            f"a replica's name has 1 to {MAX_REPLICA_BYTES} bytes of UTF-8, all printable, not {name[:80]!r}"
        )
    return name


def _known(counts: dict[str, int]) -> VectorClock:
    """A clock of counts that are known to be in order, and above 0."""
    clock = VectorClock.__new__(VectorClock)
    clock._counts = counts  # pyright: ignore[reportPrivateUsage]
    return clock


def _sorted(counts: dict[str, int]) -> VectorClock:
    return _known(dict(sorted(counts.items())))


EMPTY: Final = VectorClock()
