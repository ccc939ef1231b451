"""Recovery: an actor's state out of the journal: snapshot, then the events after it, through the event handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from actors.actor import PersistentActor, Stage, new_actor, stream_id_of
from actors.state import collector_paused
from eventstore.backend import Load, Loaded
from eventstore.codec import decode_payload
from eventstore.errors import (
    ActorError,
    CodecError,
    DefinitionError,
    EventStoreError,
    JournalCorrupt,
    RecoveryError,
    SnapshotUnusable,
    UnknownEventType,
)
from eventstore.events import Event, Snapshot, event_class
from eventstore.snapshots import unpack
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

S = TypeVar("S")

# The first page is small, because the size of the events is not known yet; then so many as fit the target.
_FIRST_PAGE = 200
_LARGEST_PAGE = 1000
_PAGE_BYTES = 4 * 1024 * 1024


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
    page_timeout: float = 30.0,
) -> Folded:
    """The state of one actor as of a version, without making it live. It writes nothing.

    Raises `RecoveryError` when the events cannot be folded, or a page of them does not come in time.
    """
    stage = _ReadOnlyStage(stream_id_of(cls, key))
    actor = new_actor(cls, stage)
    snapshot_version = await recover(
        store, actor, stage, through=through, use_snapshots=use_snapshots, page_timeout=page_timeout
    )
    return Folded(actor.state, stage.version, snapshot_version)


async def recover(
    store: EventStore,
    actor: PersistentActor[Any],
    stage: Stage,
    *,
    through: int | None = None,
    use_snapshots: bool = True,
    page_timeout: float,
) -> int:
    """Bring an actor in its initial state to what the journal says. Returns the version of the snapshot used.

    `page_timeout` bounds the wait for each page of events, not the whole: a long replay that makes progress goes on.
    """
    stream_id = stage.stream_id
    try:
        snapshot_version, loaded = await _start(store, actor, stage, through, use_snapshots, page_timeout)
        last = loaded.version if through is None else min(through, loaded.version)
        while True:
            with collector_paused():
                replay(actor, stage, loaded.events, through=last)
            if stage.version >= last:
                return snapshot_version
            if not loaded.events:
                raise JournalCorrupt(
                    f"the event at version {stage.version + 1} is missing: the stream is at version {last}",
                    stream_id=stream_id,
                    version=stage.version + 1,
                )
            wanted = Load(stream_id, stage.version, use_snapshot=False, limit=_page_size(loaded.events))
            loaded = await _load(store, wanted, page_timeout)
    except (CodecError, JournalCorrupt, DefinitionError) as error:
        raise RecoveryError(stream_id, str(error)) from error


def replay(
    actor: PersistentActor[Any],
    stage: Stage,
    page: Sequence[tuple[int, str, int, str | bytes]],
    *,
    through: int,
) -> None:
    """Apply stored events that follow the actor's version. A hole, an unknown or an unreadable event is an error."""
    routes = actor.handlers.stored
    for version, type_, schema_version, payload in page:
        if version > through:
            return
        if version != stage.version + 1:
            raise JournalCorrupt(
                f"the versions have a hole or a repeat: {version} follows {stage.version}",
                stream_id=stage.stream_id,
                version=version,
            )
        route = routes.get(type_)
        if route is None:
            raise _no_route(actor, type_, stage.stream_id, version)
        cls, known_version, validate, apply = route
        try:
            if schema_version != known_version:
                event = decode_payload(cls, schema_version, payload, stream_id=stage.stream_id, version=version)
            else:
                event = validate(payload, extra="allow")
        except ValidationError:
            event = decode_payload(cls, schema_version, payload, stream_id=stage.stream_id, version=version)
        stage.version = version
        try:
            apply(actor, event)
        except Exception as error:
            raise RecoveryError(
                stage.stream_id,
                f"its handler for {type_!r} raised {type(error).__name__} at version {version}: {error}",
            ) from error


async def _start(
    store: EventStore,
    actor: PersistentActor[Any],
    stage: Stage,
    through: int | None,
    use_snapshots: bool,
    page_timeout: float,
) -> tuple[int, Loaded]:
    """Adopt the newest snapshot that serves, and load the first page after it."""
    stream_id = stage.stream_id
    newest_will_do = use_snapshots and through is None
    loaded = await _load(store, Load(stream_id, use_snapshot=newest_will_do, limit=_FIRST_PAGE), page_timeout)
    if newest_will_do and loaded.snapshot is None:
        use_snapshots = False
    elif loaded.snapshot is not None:
        try:
            _adopt(actor, stage, unpack(loaded.snapshot, limit=store.max_snapshot_bytes), loaded.version)
            return stage.version, loaded
        except SnapshotUnusable as error:
            logger.warning("%s: going to an older snapshot or to the first event: %s", stream_id, error)
            through = loaded.snapshot.version - 1
    if use_snapshots:
        await _adopt_older(store, actor, stage, through, loaded.version)
    if stage.version < loaded.truncated:
        raise RecoveryError(
            stream_id,
            f"its events up to version {loaded.truncated} were removed, and no snapshot from there on can be used",
        )
    if stage.version or loaded.snapshot is not None:
        rest = Load(stream_id, stage.version, use_snapshot=False, limit=_FIRST_PAGE)
        loaded = await _load(store, rest, page_timeout)
    return stage.version, loaded


async def _load(store: EventStore, load: Load, page_timeout: float) -> Loaded:
    try:
        async with asyncio.timeout(page_timeout):
            return await store.load(load)
    except TimeoutError as error:
        raise RecoveryError(load.stream_id, f"no events came for {page_timeout:g} s") from error


async def _adopt_older(
    store: EventStore, actor: PersistentActor[Any], stage: Stage, through: int | None, stream_version: int
) -> None:
    for candidate in await store.snapshots(stage.stream_id, through=through):
        try:
            if isinstance(candidate, SnapshotUnusable):
                raise candidate
            _adopt(actor, stage, candidate, stream_version)
            return
        except SnapshotUnusable as error:
            logger.warning("%s: going to an older snapshot or to the first event: %s", stage.stream_id, error)


def _adopt(actor: PersistentActor[Any], stage: Stage, snapshot: Snapshot, stream_version: int) -> None:
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


def _page_size(events: Sequence[tuple[int, str, int, str | bytes]]) -> int:
    size = sum(len(event[3]) for event in events)
    return max(1, min(_LARGEST_PAGE, _PAGE_BYTES * len(events) // max(1, size)))


def _no_route(actor: PersistentActor[Any], type_: str, stream_id: str, version: int) -> EventStoreError:
    known = event_class(type_)
    if known is None:
        return UnknownEventType(type_, stream_id=stream_id, version=version)
    return DefinitionError(
        f"{type(actor).__qualname__} has no @event_handler for {known.__qualname__} "
        f"(stored as {type_!r}, version {version})"
    )


class _ReadOnlyStage:
    """The stage of an actor that is only looked at."""

    __slots__ = ("stream_id", "version")

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.version = 0

    def stage(self, events: tuple[Event, ...]) -> Awaitable[None]:
        raise ActorError(f"{self.stream_id!r} is only being looked at: it cannot persist {len(events)} events")
