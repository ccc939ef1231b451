"""Bisection: the event after which something that held of an actor's state does not hold any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from actors.actor import PersistentActor
from actors.time_travel.folding import Fold, snapshot_places
from eventstore.errors import ActorError, RecoveryError
from eventstore.store import EventStore

Predicate = Callable[[Any, int], object]
"""Says whether something holds of a state at a version. It may raise, and it may change the state it is given."""


class BisectionRefused(ActorError):
    """There is no such event to be looked for: it holds at the end too, or it does not at the beginning."""


class PredicateRaised(ActorError):
    """The predicate raised for the state at a version, so it neither holds nor fails there. The cause is chained."""

    def __init__(self, stream_id: str, version: int, state: bytes, error: Exception) -> None:
        super().__init__(f"{stream_id!r} at version {version}: it raises {type(error).__name__}: {error}")
        self.stream_id = stream_id
        self.version = version
        self.state = state


class Bisected(NamedTuple):
    """What was found: at `version` it does not hold, at the version before it does. `tried` are the versions that were
    looked at, in that order, `folded` counts the events that were folded for that."""

    version: int
    tried: Sequence[int]
    folded: int


async def bisect(
    store: EventStore,
    cls: type[PersistentActor[Any]],
    key: str,
    predicate: Predicate,
    *,
    after: int | None = None,
    through: int | None = None,
    use_snapshots: bool = True,
) -> Bisected:
    """Find an event after which a predicate fails that held before it, between two versions: the first known one and
    the newest, if they are not given.

    It looks at so many states as the number of events has binary digits, each built from the nearest snapshot, or the
    nearest state it has seen, before it. Where the predicate fails and holds again in between, it is one of these
    events, not always the first.

    Raises `BisectionRefused`, `PredicateRaised` and `RecoveryError`.
    """
    search = _Search(store, cls, key, predicate)
    await search.begin(after, through, use_snapshots=use_snapshots)
    low, high = search.low, search.high
    name = f"{search.folding.stream_id!r}"
    if low >= high:
        raise BisectionRefused(f"{name} has no events behind version {low} and up to {high}: there is nothing to find")
    if not await search.holds(low):
        raise BisectionRefused(
            f"{name}: it does not hold at version {low} already, where the search begins: choose a later beginning"
        )
    if await search.holds(high):
        raise BisectionRefused(f"{name}: it holds at version {high} too, where the search ends: choose another end")
    while high - low > 1:
        middle = (low + high) // 2
        if await search.holds(middle):
            low = middle
        else:
            high = middle
    return Bisected(high, search.tried, search.folded)


class _Search:
    """The states on the way. The one in hand is that of the highest version at which the predicate holds."""

    def __init__(self, store: EventStore, cls: type[PersistentActor[Any]], key: str, predicate: Predicate) -> None:
        self._store = store
        self._cls = cls
        self._key = key
        self._predicate = predicate
        self._snapshots: Sequence[int] = ()
        self._kept: tuple[int, bytes] = (0, b"")
        self.low = self.high = self.folded = 0
        self.tried: list[int] = []

    async def begin(self, after: int | None, through: int | None, *, use_snapshots: bool) -> None:
        self.folding = await Fold.earliest(self._store, self._cls, self._key)
        self.low = self.folding.version if after is None else max(after, self.folding.version)
        end = self.folding.stream_version
        self.high = end if through is None else min(through, end)
        self._kept = self.folding.version, self.folding.dump()
        if use_snapshots and not self.folding.is_replicated:
            places = await snapshot_places(self._store, self.folding.stream_id)
            self._snapshots = [place.version for place in places if self.folding.is_usable(place)]

    async def holds(self, version: int) -> bool:
        await self._fold(version)
        state = self.folding.dump()
        self.tried.append(version)
        try:
            holds = bool(self._predicate(self.folding.state, version))
        except Exception as error:
            raise PredicateRaised(self.folding.stream_id, version, state, error) from error
        # From a state that is read as another one it would go on wrongly: then from the one before.
        if holds and version < self.high and self.folding.comes_back(state):
            self._kept = version, state
        return holds

    async def _fold(self, version: int) -> None:
        if self.folding.is_replicated:
            # Events of other replicas may belong before those that were folded: each state is built on its own.
            self.folding = await Fold.newest(self._store, self._cls, self._key, through=version)
        else:
            await self._go_near(version)
        before = self.folding.version
        await self.folding.through(version)
        self.folded += self.folding.version - before

    async def _go_near(self, version: int) -> None:
        """Go to the nearest snapshot, or the nearest state that was seen, at or before a version."""
        while (nearest := next((each for each in self._snapshots if each <= version), 0)) > self._kept[0]:
            try:
                await self.folding.start_from(nearest)
            except RecoveryError:
                # The state does not take it, or it is gone meanwhile: an older one serves, as in recovery.
                self._snapshots = [each for each in self._snapshots if each != nearest]
            else:
                return
        self.folding.go_back(*self._kept)
