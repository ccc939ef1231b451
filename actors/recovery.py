"""Recovery: an actor's state out of the journal: snapshot, then the events after it, through the event handlers."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any, NamedTuple

from actors.actor import PersistentActor, Stage
from actors.replaying.replay import Replay
from actors.replaying.unfoldable import UNFOLDABLE, EventsRemoved, removed, unfoldable
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_recovery import read_history
from eventstore.errors import JournalCorrupt, RecoveryError, SnapshotUnusable
from eventstore.events import Snapshot
from eventstore.snapshots import unpack
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# So many are asked for at once.
_SNAPSHOTS = 10


class Begun(NamedTuple):
    """Where a fold begins: the version of the snapshot that was adopted (0: none), and the stream's own."""

    snapshot_version: int
    stream_version: int


async def recover(
    store: EventStore,
    actor: PersistentActor[Any],
    stage: Stage,
    *,
    through: int | None = None,
    use_snapshots: bool = True,
    page_timeout: float,
) -> int:
    """Bring an actor, wherever it stands, to what the journal says. Returns the version of the snapshot used (0: none).

    `page_timeout` bounds the wait for each page of events, not the whole: a long replay that makes progress goes on.
    """
    stream_id = stage.stream_id
    if isinstance(actor, ReplicatedActor):
        found = await read_history(
            store, actor, stage, through=through, use_snapshots=use_snapshots, page_timeout=page_timeout
        )
        return found.snapshot_version
    replay = Replay(store, actor, stage, page_timeout=page_timeout)
    # It begins anew only where events were removed since it has looked, which the next look knows of.
    while True:
        try:
            with suppress(EventsRemoved):
                begun = await begin(store, actor, stage, replay, through=through, use_snapshots=use_snapshots)
                await replay.through(begun.stream_version if through is None else min(through, begun.stream_version))
                return begun.snapshot_version
        except UNFOLDABLE as error:
            raise unfoldable(stream_id, error) from error


async def catch_up(store: EventStore, actor: PersistentActor[Any], stage: Stage, *, page_timeout: float) -> None:
    """Bring an actor from where it stands to what the journal says. Raises `RecoveryError`."""
    replay = Replay(store, actor, stage, page_timeout=page_timeout)
    try:
        loaded = await replay.look()
        if loaded.version < stage.version:
            raise JournalCorrupt(
                f"it is at version {loaded.version}, its actor has seen version {stage.version}: events are missing",
                stream_id=stage.stream_id,
                version=loaded.version,
            )
        if stage.version >= loaded.truncated:
            with suppress(EventsRemoved):
                await replay.through(loaded.version)
                return
    except UNFOLDABLE as error:
        raise unfoldable(stage.stream_id, error) from error
    # What others have stored was removed before it was seen here. Only a snapshot tells of it now.
    await recover(store, actor, stage, page_timeout=page_timeout)


async def begin(
    store: EventStore,
    actor: PersistentActor[Any],
    stage: Stage,
    replay: Replay,
    *,
    through: int | None,
    use_snapshots: bool,
) -> Begun:
    """Adopt the newest snapshot that serves, of at most version `through`. Raises `RecoveryError`, as `EventsRemoved`
    where another one may serve by now, and what is `UNFOLDABLE`."""
    stream_id = stage.stream_id
    newest_will_do = use_snapshots and through is None
    loaded = await replay.look(use_snapshot=newest_will_do)
    may_have_older = use_snapshots
    if newest_will_do and loaded.snapshot is None:
        may_have_older = False
    elif loaded.snapshot is not None:
        try:
            adopt(actor, stage, unpack(loaded.snapshot, limit=store.max_snapshot_bytes), loaded.version)
            if stage.version < loaded.truncated:
                raise removed(stream_id, loaded.truncated)
            return Begun(stage.version, loaded.version)
        except SnapshotUnusable as error:
            logger.warning("%s: going to an older snapshot or to the first event: %s", stream_id, error)
            through = loaded.snapshot.version - 1
    if may_have_older:
        await _adopt_older(store, actor, stage, through, loaded.version)
    if stage.version < loaded.truncated:
        raise removed(stream_id, loaded.truncated, use_snapshots=use_snapshots)
    if stage.version or loaded.snapshot is not None:
        loaded = await replay.look()
        if stage.version < loaded.truncated:
            raise EventsRemoved(stream_id, loaded.truncated)
    return Begun(stage.version, loaded.version)


async def _adopt_older(
    store: EventStore, actor: PersistentActor[Any], stage: Stage, through: int | None, stream_version: int
) -> None:
    while True:
        page = await store.snapshots(stage.stream_id, through=through, limit=_SNAPSHOTS)
        for candidate in page:
            try:
                if isinstance(candidate, SnapshotUnusable):
                    raise candidate
                adopt(actor, stage, candidate, stream_version)
                return
            except SnapshotUnusable as error:
                logger.warning("%s: going to an older snapshot or to the first event: %s", stage.stream_id, error)
        if len(page) < _SNAPSHOTS:
            return
        through = page[-1].version - 1


def adopt(actor: PersistentActor[Any], stage: Stage, snapshot: Snapshot, stream_version: int) -> None:
    """Let an actor begin with a snapshot. Raises `SnapshotUnusable`, and `RecoveryError` for one that is ahead of the
    journal."""
    if snapshot.version > stream_version:
        raise RecoveryError(
            stage.stream_id,
            f"its snapshot is of version {snapshot.version}, ahead of the journal at {stream_version}: "
            "events are missing; restore the journal, or delete that snapshot if the journal is right",
        )
    if snapshot.fingerprint != actor.state_type.fingerprint:
        raise SnapshotUnusable(
            "it is of another schema of the state", stream_id=stage.stream_id, version=snapshot.version
        )
    try:
        actor.state = actor.state_type.load(snapshot.data)
    except SnapshotUnusable as error:
        raise SnapshotUnusable(str(error), stream_id=stage.stream_id, version=snapshot.version) from error
    stage.version = snapshot.version
