"""Fold: the state of one actor out of the journal, with stops at versions. Nothing is made live, nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self, cast

from actors.actor import PersistentActor, new_actor, stream_id_of
from actors.recovery import adopt, begin
from actors.replaying.replay import ReadOnlyStage, Replay
from actors.replaying.unfoldable import UNFOLDABLE, EventsRemoved, removed, unfoldable
from actors.replicas.convergence import History
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_recovery import extend, newer_entries, read_history
from eventstore.errors import RecoveryError, SnapshotUnusable
from eventstore.events import Snapshot
from eventstore.store import EventStore

_PAGE_TIMEOUT_SECONDS = 30.0
_SNAPSHOTS = 10


class Folded(NamedTuple):
    """A state by replay: its version, and the version of the snapshot it was built on (0: none)."""

    state: Any
    version: int
    snapshot_version: int


async def fold(
    store: EventStore,
    cls: type[PersistentActor[Any]],
    key: str,
    *,
    through: int | None = None,
    use_snapshots: bool = True,
    page_timeout: float = _PAGE_TIMEOUT_SECONDS,
) -> Folded:
    """The state of one actor as of a version, without making it live. It writes nothing.

    Raises `RecoveryError` when the events cannot be folded, or a page of them does not come in time.
    """
    while True:
        with suppress(EventsRemoved):
            folding = await Fold.newest(
                store, cls, key, through=through, use_snapshots=use_snapshots, page_timeout=page_timeout
            )
            await folding.through(folding.stream_version if through is None else min(through, folding.stream_version))
            return Folded(folding.state, folding.version, folding.snapshot_version)


class StoredSnapshotPlace(NamedTuple):
    """A snapshot that is there, without its data. `damage` says why it cannot be read, if it cannot."""

    version: int
    fingerprint: str
    damage: SnapshotUnusable | None


class Fold:
    """One actor's state, brought forward from version to version:

        folding = await Fold.earliest(store, Account, "alice")
        for version in (10, 20):
            await folding.through(version)
            print(folding.state)

    It goes the way of recovery: upcasters, checksums and event handlers are the same, and of a replicated actor the
    events of all replicas that the journal has up to a version are put in order. `snapshot_version` is where it began
    (0: before the first event), `stream_version` the stream's own when that was looked up, `truncated` the version up
    to which events were removed.

    Every method raises `RecoveryError` when the events cannot be folded, or a page of them does not come in time.
    """

    def __init__(
        self,
        store: EventStore,
        cls: type[PersistentActor[Any]],
        key: str,
        *,
        page_timeout: float = _PAGE_TIMEOUT_SECONDS,
    ) -> None:
        """Before the first event. `newest` and `earliest` look at what is stored first."""
        self._store = store
        self._cls = cls
        self._page_timeout = page_timeout
        self.stream_id = stream_id_of(cls, key)
        self.stream_version = self.truncated = self.snapshot_version = 0
        self._renew()

    @classmethod
    async def newest(
        cls,
        store: EventStore,
        actor: type[PersistentActor[Any]],
        key: str,
        *,
        through: int | None = None,
        use_snapshots: bool = True,
        page_timeout: float = _PAGE_TIMEOUT_SECONDS,
    ) -> Self:
        """At the newest snapshot of at most version `through`, or before the first event."""
        self = cls(store, actor, key, page_timeout=page_timeout)
        if isinstance(self._actor, ReplicatedActor):
            await self._look()
            # What such a snapshot holds is told by its clock: of a version further back it may know too much.
            if use_snapshots and through is None:
                found = await read_history(store, self._actor, self._stage, page_timeout=page_timeout)
                self._history = found.history
                self.snapshot_version = found.snapshot_version
            return self
        try:
            begun = await begin(
                store, self._actor, self._stage, self._replay, through=through, use_snapshots=use_snapshots
            )
        except UNFOLDABLE as error:
            raise unfoldable(self.stream_id, error) from error
        self.snapshot_version, self.stream_version = begun
        return self

    @classmethod
    async def earliest(
        cls,
        store: EventStore,
        actor: type[PersistentActor[Any]],
        key: str,
        *,
        page_timeout: float = _PAGE_TIMEOUT_SECONDS,
    ) -> Self:
        """Before the first event; where the first events were removed, at the oldest snapshot that they are not needed
        for."""
        self = cls(store, actor, key, page_timeout=page_timeout)
        await self._look()
        if not self.truncated:
            return self
        for place in reversed(await snapshot_places(store, self.stream_id)):
            if self.truncated <= place.version <= self.stream_version and self.is_usable(place):
                try:
                    await self.start_from(place.version)
                except RecoveryError:
                    # The state does not take it, or it is gone meanwhile: the next one may serve, as in recovery.
                    continue
                return self
        raise removed(self.stream_id, self.truncated)

    def is_usable(self, place: StoredSnapshotPlace) -> bool:
        """Whether a snapshot can be read, and is of the schema that the state has now."""
        return place.damage is None and place.fingerprint == self._cls.state_type.fingerprint

    async def start_from(self, version: int) -> None:
        """Go to the stored snapshot of a version. Raises `RecoveryError` if there is none that can be used."""
        found = await self._store.snapshots(self.stream_id, through=version, limit=1)
        try:
            for candidate in found:
                if isinstance(candidate, SnapshotUnusable):
                    raise candidate
                if candidate.version == version:
                    self._begin_with(candidate)
                    return
        except SnapshotUnusable as error:
            raise unfoldable(self.stream_id, error) from error
        raise RecoveryError(self.stream_id, f"there is no snapshot of version {version} any more", version=version)

    async def through(
        self,
        version: int,
        *,
        on_events: Callable[[int], None] | None = None,
        after_each: Callable[[], None] | None = None,
    ) -> None:
        """Go forward to a version that the stream has; from one that lies further back there is nothing to do.

        `on_events` is told how many events were folded, now and then; `after_each` is called at every version on the
        way, when the state is the one of that version.
        """
        try:
            if self._history is not None:
                await self._merge(version, on_events, after_each)
            else:
                await self._replay.through(version, on_events=on_events, after_each=after_each)
        except UNFOLDABLE as error:
            raise unfoldable(self.stream_id, error) from error

    def go_back(self, version: int, data: bytes) -> None:
        """Go to a version whose state was kept, as `dump` gave it. Raises `RecoveryError` for a replicated actor: its
        state alone does not tell where events of other replicas belong."""
        if self._history is not None:
            raise RecoveryError(self.stream_id, "it is replicated: it is folded anew instead of from a state")
        self._renew()
        self._actor.state = self._cls.state_type.load(data)
        self._stage.version = version

    @property
    def is_replicated(self) -> bool:
        """Whether events of several replicas are put in order."""
        return self._history is not None

    @property
    def state(self) -> Any:
        """The state at `version`. The next step changes it: take `dump` or `canonical` to keep it."""
        return self._actor.state

    @property
    def version(self) -> int:
        """The version of the state."""
        return self._stage.version

    def dump(self) -> bytes:
        """The state as a snapshot has it."""
        return self._cls.state_type.dump(self._actor.state)

    def comes_back(self, dumped: bytes) -> bool:
        """Whether `go_back` with what `dump` gave leads to this state, and to no other."""
        return self._cls.state_type.difference(self._actor.state, dumped) is None

    def canonical(self) -> Any:
        """The state as plain JSON values, members of sets in order (`StateType.canonical`)."""
        return self._cls.state_type.canonical(self._actor.state)

    def _renew(self) -> None:
        self._stage = ReadOnlyStage(self.stream_id)
        self._actor = new_actor(self._cls, self._stage)
        self._replay = Replay(self._store, self._actor, self._stage, page_timeout=self._page_timeout)
        self._history = History(self._actor) if isinstance(self._actor, ReplicatedActor) else None

    async def _look(self) -> None:
        loaded = await self._store.head(self.stream_id)
        self.stream_version, self.truncated = loaded.version, loaded.truncated

    def _begin_with(self, snapshot: Snapshot) -> None:
        self._renew()
        adopt(self._actor, self._stage, snapshot, self.stream_version)
        self.snapshot_version = snapshot.version

    async def _merge(
        self,
        version: int,
        on_events: Callable[[int], None] | None,
        after_each: Callable[[], None] | None,
    ) -> None:
        """The same for a replicated actor: events go where they belong, not behind those that were there before."""
        if version <= self.version:
            return
        history = cast("History", self._history)
        entries = await newer_entries(
            self._store, history, self._stage, through=version, page_timeout=self._page_timeout
        )
        if not history.reaches(entry.stamp for entry in entries):
            # One belongs before the snapshot that it was begun with.
            self._renew()
            self.snapshot_version = 0
            await self.through(version, on_events=on_events, after_each=after_each)
            return
        for part in [entries] if after_each is None else [[entry] for entry in entries]:
            await extend(history, part)
            self._stage.version = part[-1].version if part else self._stage.version
            if on_events is not None:
                on_events(len(part))
            if after_each is not None:
                after_each()
        if self.version < version:
            raise RecoveryError(
                self.stream_id, f"the event at version {self.version + 1} is missing", version=self.version + 1
            )


async def snapshot_places(store: EventStore, stream_id: str) -> Sequence[StoredSnapshotPlace]:
    """Every snapshot of a stream, newest first, damaged ones too. Their data is not kept."""
    places: list[StoredSnapshotPlace] = []
    through: int | None = None
    while True:
        page = await store.snapshots(stream_id, through=through, limit=_SNAPSHOTS)
        for found in page:
            if isinstance(found, SnapshotUnusable):
                places.append(StoredSnapshotPlace(found.version, "", found))
            else:
                places.append(StoredSnapshotPlace(found.version, found.fingerprint, None))
        if len(page) < _SNAPSHOTS:
            return places
        through = places[-1].version - 1


async def canonical_at(
    store: EventStore, cls: type[PersistentActor[Any]], key: str, versions: Sequence[int], *, use_snapshots: bool = True
) -> list[Any]:
    """The states of one actor at several versions, as plain JSON values (`StateType.canonical`): for `state_changes`.

    Raises `RecoveryError`.
    """
    found: dict[int, Any] = {}
    folding: Fold | None = None
    for version in sorted(set(versions)):
        nearer = await Fold.newest(store, cls, key, through=version, use_snapshots=use_snapshots)
        if folding is None or nearer.version > folding.version:
            folding = nearer
        await folding.through(version)
        found[version] = folding.canonical()
    return [found[version] for version in versions]
