"""Folding one actor's whole history once, and comparing its stored snapshots on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actors.actor import PersistentActor, stream_id_of
from actors.time_travel.folding import Fold, snapshot_places
from actors.time_travel.state_changes import state_changes
from eventstore.cli.changes import difference_in_words
from eventstore.cli.exits import STORE_TROUBLE
from eventstore.errors import RecoveryError, SnapshotUnusable
from eventstore.store import EventStore


class Problem(NamedTuple):
    """What is wrong with one actor; `version` is that of the snapshot or event concerned, if it is known."""

    stream_id: str
    version: int | None
    problem: str


@dataclass
class Replayed:
    """What folding one actor again found. `base` is the snapshot it had to start from, 0 for the first event."""

    stream_id: str
    events: int = 0
    base: int = 0
    truncated: int = 0
    compared: int = 0
    other_schema: int = 0
    problems: list[Problem] = field(default_factory=list[Problem])

    def complain(self, version: int | None, text: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(self.stream_id, version, text))


async def replay_actor(
    store: EventStore, cls: type[PersistentActor[Any]], key: str, *, on_events: Callable[[int], None]
) -> Replayed:
    """Fold one actor from its first event, and compare every snapshot of the class's schema at its version.

    Where the first events were removed, the oldest snapshot behind them is where it starts, unchecked. Never raises for
    what is wrong with the actor; `on_events` is told how many events were folded after each page.
    """
    found = Replayed(stream_id_of(cls, key))
    try:
        await _replay(store, cls, key, found, on_events)
    except STORE_TROUBLE:
        raise
    except RecoveryError as error:
        found.complain(error.version, f"cannot be folded: {error.reason}")
    except Exception as error:
        # Whatever the user's code or the data does, the other actors are still to be looked at.
        found.complain(getattr(error, "version", None), f"cannot be folded: {error or type(error).__name__}")
    return found


async def _replay(
    store: EventStore,
    cls: type[PersistentActor[Any]],
    key: str,
    found: Replayed,
    on_events: Callable[[int], None],
) -> None:
    # Snapshots before the head: one that is taken meanwhile is not ahead of what is folded here.
    places = await snapshot_places(store, found.stream_id)
    folding = await Fold.earliest(store, cls, key)
    end, found.truncated = folding.stream_version, folding.truncated
    if end == 0 and not places:
        found.complain(None, "has no events")
        return
    found.base = begin = folding.version
    for place in reversed(places):
        if place.damage is not None:
            found.complain(place.version, str(place.damage))
        elif place.version > end:
            found.complain(place.version, f"snapshot is ahead of the journal, which ends at version {end}")
        elif not folding.is_usable(place):
            found.other_schema += not folding.is_replicated
        elif place.version > begin:
            await folding.through(place.version, on_events=on_events)
            await _compare(store, cls, folding, found)
    await folding.through(end, on_events=on_events)
    found.events = folding.version - begin
    if folding.is_replicated:
        await _compare_replicated(store, cls, key, folding, found)


async def _compare(store: EventStore, cls: type[PersistentActor[Any]], folding: Fold, found: Replayed) -> None:
    version = folding.version
    stored = await store.snapshots(found.stream_id, through=version, limit=1)
    for snapshot in stored:
        if isinstance(snapshot, SnapshotUnusable) or snapshot.version != version:
            # It was removed meanwhile.
            continue
        found.compared += 1
        try:
            state = cls.state_type.load(snapshot.data)
        except SnapshotUnusable as error:
            found.complain(version, f"snapshot cannot be used: {error}")
            continue
        _complain_of_difference(found, version, cls.state_type.canonical(state), folding)


async def _compare_replicated(
    store: EventStore, cls: type[PersistentActor[Any]], key: str, folding: Fold, found: Replayed
) -> None:
    """A snapshot of a replicated actor holds the events that its clock knows, not those up to a version: what it and
    the rest lead to must be what all events lead to."""
    by_snapshot = await Fold.newest(store, cls, key)
    if by_snapshot.snapshot_version and by_snapshot.version == folding.version:
        found.compared += 1
        _complain_of_difference(found, by_snapshot.snapshot_version, by_snapshot.canonical(), folding)


def _complain_of_difference(found: Replayed, version: int, stored: Any, folding: Fold) -> None:
    difference = next(state_changes(stored, folding.canonical()), None)
    if difference is not None:
        found.complain(version, f"snapshot differs: {difference_in_words(difference)}")
