"""Retention: which events of which streams may go, what stands against it, and letting them go.

Nothing is removed that a state could not be rebuilt without: a stream is cut at a snapshot that can be used, at most.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from eventstore.backend import StreamInfo
from eventstore.contract.passed_events import check_passed
from eventstore.errors import EventStoreError, ProjectionBehind, RetentionRefused, SnapshotUnusable, TruncationRefused
from eventstore.events import Snapshot, stream_kind
from eventstore.store import EventStore

# So many are removed in one transaction: others wait for it, and where it ended the next one goes on.
_REMOVED_AT_ONCE = 5000
_SNAPSHOTS = 4

# What replicas keep about each other is read from its beginning.
_KEPT = "replication."


@dataclass(frozen=True, slots=True)
class Policy:
    """Which events are old enough. An event goes if each condition that is given holds: it was recorded before
    `before` (aware), and so many versions of its stream are newer (`keep_versions`).

    `kinds` are the streams that are looked at, all if there are none. `fingerprints` are, by kind, the schemas of the
    states that are folded from them (`StateType.fingerprint`): a snapshot of that schema must be there. With
    `needs_snapshots` off nobody folds these streams, and any event may go.
    """

    before: datetime | None = None
    keep_versions: int | None = None
    kinds: tuple[str, ...] = ()
    fingerprints: Mapping[str, str] | None = None
    needs_snapshots: bool = True


class Cut(NamedTuple):
    """What is to become of one stream: events up to version `through` are removed, `events` of them, with `size_bytes`
    of payload and metadata. A recovery replays `replay` events afterwards.

    `refusal` says why nothing is removed although events are old enough. Then the numbers say what would have been.
    """

    stream_id: str
    version: int
    through: int
    events: int
    size_bytes: int
    replay: int
    refusal: EventStoreError | None = None


class Retention:
    """Plans and applies a policy. `on_events` is told how many events were looked at."""

    def __init__(self, store: EventStore, policy: Policy, *, on_events: Callable[[int], None] | None = None) -> None:
        if policy.before is None and policy.keep_versions is None:
            raise ValueError("a policy says how old events must be, or how many stay")
        self._store = store
        self._policy = policy
        self._on_events = on_events

    async def plan(self) -> AsyncGenerator[Cut, None]:
        """The cut of every stream that has events which are old enough, by the bytes of the ids. It writes nothing."""
        for kind in self._policy.kinds or (None,):
            async for info in self._store.streams(kind=kind):
                cut = await self._cut(info)
                if cut is not None:
                    yield cut

    async def apply(self, *, reason: str) -> AsyncGenerator[Cut, None]:
        """Remove what may go, stream by stream, and tell of each what became of it. Ended early, it goes on where it
        was when it is run again.

        Raises `FencedError`, `BackendUnavailable` or `OutcomeUnknown`; what concerns one stream alone is in its cut.
        """
        async for cut in self.plan():
            yield cut if cut.refusal is not None else await self._applied(cut, reason)

    async def _applied(self, cut: Cut, reason: str) -> Cut:
        first = cut.through - cut.events
        schema = (self._policy.fingerprints or {})[stream_kind(cut.stream_id)] if self._policy.needs_snapshots else None
        try:
            while first < cut.through:
                first = min(first + _REMOVED_AT_ONCE, cut.through)
                # Until the first removal other code may take the snapshot away; from then on it stays.
                await self._store.truncate(cut.stream_id, first, reason=reason, fingerprint=schema)
        except (ProjectionBehind, TruncationRefused, RetentionRefused) as error:
            # It has come about since the stream was looked at.
            return cut._replace(refusal=error)
        return cut

    async def _cut(self, info: StreamInfo) -> Cut | None:
        stream_id, version, truncated, _ = info
        most = version if self._policy.keep_versions is None else version - self._policy.keep_versions
        if most <= truncated:
            return None
        old = await self._measured(stream_id, truncated, most)
        if not old.through:
            return None
        refusal = await self._refusal(stream_id)
        if refusal is not None:
            return Cut(stream_id, version, *old, version - truncated, refusal)
        if not self._policy.needs_snapshots:
            return await self._with_projections(Cut(stream_id, version, *old, version - old.through))
        snapshot, refusal = await self._snapshot(stream_id, version)
        if snapshot is None or snapshot.version <= truncated:
            behind = f"above version {truncated}, up to which its events were removed before" if truncated else "yet"
            refusal = refusal or RetentionRefused(
                stream_id,
                f"it has no snapshot {behind}, from which its state could be rebuilt: take one with "
                "`eventstore rebuild snapshots`",
            )
            return Cut(stream_id, version, *old, version - truncated, refusal)
        if snapshot.version < old.through:
            old = await self._measured(stream_id, truncated, snapshot.version)
        return await self._with_projections(Cut(stream_id, version, *old, version - snapshot.version))

    async def _measured(self, stream_id: str, truncated: int, most: int) -> _Old:
        """The events up to a version that are old enough: where they end, how many, how large."""
        through = events = size = 0
        async for recorded in self._store.read(stream_id, after=truncated, through=most):
            if self._policy.before is not None and recorded.recorded_at >= self._policy.before:
                break
            through, events = recorded.version, events + 1
            size += len(recorded.payload)
            if recorded.metadata is not None:
                size += len(recorded.metadata.model_dump_json(exclude_defaults=True).encode())
            if self._on_events is not None:
                self._on_events(1)
        return _Old(through, events, size)

    async def _refusal(self, stream_id: str) -> EventStoreError | None:
        """Why nothing of the stream may go, whatever is known of its snapshots."""
        if stream_id.startswith(_KEPT):
            return RetentionRefused(stream_id, "replicas keep in it what they know of each other")
        async for newest in self._store.read(stream_id, limit=1, backwards=True):
            if newest.origin is not None:
                return TruncationRefused(stream_id)
        kind = stream_kind(stream_id)
        if self._policy.needs_snapshots and kind not in (self._policy.fingerprints or {}):
            return RetentionRefused(
                stream_id,
                f"whether its snapshots can be used is not known without the class of {kind!r}: name it (--actor), or "
                "say that nobody folds these streams (--no-snapshots)",
            )
        return None

    async def _snapshot(self, stream_id: str, version: int) -> tuple[Snapshot | None, EventStoreError | None]:
        """The newest snapshot that recovery would use; without one, why the newest that is there is none.

        A damaged one that is newer counts as none, too: once events are removed it is what stays of its schema when
        other code saves, and the sound one below it goes.
        """
        wanted = (self._policy.fingerprints or {})[stream_kind(stream_id)]
        first: EventStoreError | None = None
        through: int | None = version
        while through is not None and through >= 0:
            page = await self._store.snapshots(stream_id, through=through, limit=_SNAPSHOTS)
            for snapshot in page:
                if isinstance(snapshot, SnapshotUnusable):
                    return None, RetentionRefused(
                        stream_id,
                        f"its snapshot at version {snapshot.version} cannot be used: {snapshot}; take a new one with "
                        "`eventstore rebuild snapshots`",
                    )
                if snapshot.fingerprint != wanted:
                    first = first or RetentionRefused(
                        stream_id,
                        f"its snapshot at version {snapshot.version} is of another schema than its class has now: take "
                        "a new one with `eventstore rebuild snapshots`",
                    )
                else:
                    return snapshot, None
            through = page[-1].version - 1 if len(page) == _SNAPSHOTS else None
        return None, first

    async def _with_projections(self, cut: Cut) -> Cut:
        """The cut, refused if a projection still has to come to an event that goes."""
        checkpoints = list(await self._store.checkpoints())
        if self._store.tenant:
            checkpoints += await self._store.checkpoints(shared=True)
        stored = [one.stored() for one in checkpoints]
        async for last in self._store.read(cut.stream_id, through=cut.through, limit=1, backwards=True):
            try:
                check_passed(stored, self._store.tenant, cut.stream_id, last.position)
            except ProjectionBehind as error:
                return cut._replace(refusal=error)
        return cut


class _Old(NamedTuple):
    through: int
    events: int
    size_bytes: int
