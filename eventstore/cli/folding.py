"""Folding one actor's whole history once, and comparing its stored snapshots on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from actors.actor import PersistentActor, new_actor, stream_id_of
from actors.recovery import fold
from actors.replay import ReadOnlyStage, Replay
from actors.replicated_actor import ReplicatedActor
from eventstore.cli.differences import first_difference, without_order
from eventstore.cli.exits import STORE_TROUBLE
from eventstore.errors import JournalCorrupt, SnapshotUnusable
from eventstore.events import Snapshot
from eventstore.store import EventStore

_FIRST_SNAPSHOTS = 10


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
        if issubclass(cls, ReplicatedActor):
            await replay_replicated(store, cls, key, found, on_events)
        else:
            await _Fold(store, cls, found, on_events).run()
    except STORE_TROUBLE:
        raise
    except Exception as error:
        # Whatever the user's code or the data does, the other actors are still to be looked at.
        found.complain(getattr(error, "version", None), f"cannot be folded: {error or type(error).__name__}")
    return found


async def replay_replicated(
    store: EventStore,
    cls: type[ReplicatedActor[Any]],
    key: str,
    found: Replayed,
    on_events: Callable[[int], None],
) -> None:
    """The same for a replicated actor. A snapshot of one holds the events that its clock knows, not those up to a
    version: what it and the rest lead to must be what all events lead to."""
    folded = await fold(store, cls, key, use_snapshots=False)
    if folded.version == 0:
        found.complain(None, "has no events")
        return
    found.events = folded.version
    on_events(folded.version)
    expected = cls.state_type.dump(folded.state)
    by_snapshot = await fold(store, cls, key)
    if by_snapshot.snapshot_version:
        found.compared += 1
        difference = first_difference(json.loads(cls.state_type.dump(by_snapshot.state)), json.loads(expected))
        if difference is not None:
            found.complain(by_snapshot.snapshot_version, f"snapshot differs: {difference}")


class _Fold:
    """The walk through one stream."""

    def __init__(
        self,
        store: EventStore,
        cls: type[PersistentActor[Any]],
        found: Replayed,
        on_events: Callable[[int], None],
    ) -> None:
        self._store = store
        self._state_type = cls.state_type
        self._found = found
        self._on_events = on_events
        self._stage = ReadOnlyStage(found.stream_id)
        self._actor = new_actor(cls, self._stage)
        self._replay = Replay(store, self._actor, self._stage)

    async def run(self) -> None:
        found = self._found
        # Snapshots before the head: one that is taken meanwhile is not ahead of what is folded here.
        snapshots = await self._snapshots()
        head = await self._replay.look()
        if head.version == 0 and not snapshots:
            found.complain(None, "has no events")
            return
        for snapshot in [one for one in snapshots if one.version > head.version]:
            found.complain(snapshot.version, f"snapshot is ahead of the journal, which ends at version {head.version}")
            snapshots.remove(snapshot)
        if head.truncated:
            snapshots = self._start_behind(head.truncated, snapshots)
        for snapshot in snapshots:
            await self._fold_through(snapshot.version)
            self._compare(snapshot)
        await self._fold_through(head.version)

    async def _snapshots(self) -> list[Snapshot]:
        """The stored snapshots of the class's schema, oldest first; damaged ones are problems."""
        limit = _FIRST_SNAPSHOTS
        stored = await self._store.snapshots(self._found.stream_id, limit=limit)
        while len(stored) == limit:
            limit *= 4
            stored = await self._store.snapshots(self._found.stream_id, limit=limit)
        usable: list[Snapshot] = []
        for snapshot in reversed(stored):
            if isinstance(snapshot, SnapshotUnusable):
                self._found.complain(None, str(snapshot))
            elif snapshot.fingerprint != self._state_type.fingerprint:
                self._found.other_schema += 1
            else:
                usable.append(snapshot)
        return usable

    def _start_behind(self, truncated: int, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
        """Adopt the oldest snapshot that the removed events are not needed for. Returns those behind it."""
        self._found.truncated = truncated
        usable = [snapshot for snapshot in snapshots if snapshot.version >= truncated]
        if not usable:
            raise JournalCorrupt(
                f"its events up to version {truncated} were removed, and no snapshot from there on can be used"
            )
        base, *rest = usable
        self._actor.state = self._state_type.load(base.data)
        self._stage.version = self._found.base = base.version
        return rest

    async def _fold_through(self, version: int) -> None:
        before = self._stage.version
        await self._replay.through(version, on_events=self._on_events)
        self._found.events += self._stage.version - before

    def _compare(self, snapshot: Snapshot) -> None:
        self._found.compared += 1
        folded_data = self._state_type.dump(self._actor.state)
        if folded_data == snapshot.data:
            return
        # Not orjson: it would turn integers of more than 64 bits into floats.
        stored, folded = json.loads(snapshot.data), json.loads(folded_data)
        difference = first_difference(stored, folded)
        if difference is None:
            return
        is_reordered = first_difference(without_order(stored), without_order(folded)) is None
        # The same items in another order are two equal sets, or two lists that differ.
        if not is_reordered or self._state_type.load(snapshot.data) != self._actor.state:
            self._found.complain(snapshot.version, f"snapshot differs: {difference}")
