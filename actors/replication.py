"""Replication: reads the logs of other replicas, and has their events merged into this one's actors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from actors.merging import Merging
from actors.replicas.incoming import Gap
from actors.replicas.lazy_peer import LazyPeer
from actors.replicas.members import Cursor, Members
from actors.replicas.peer import Peer, Pull, StorePeer, in_order
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_cell import ReplicatedCell
from actors.replicas.source import Source, pause_after
from actors.runtime import Runtime
from eventstore.errors import (
    DefinitionError,
    ReplicaRefused,
    ReplicationError,
    StoreClosed,
)
from eventstore.stamp import WallClock, wall_clock
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

_PAGE = 500

# Where nothing is read in the background this only says how long an actor that was held back is said to wait.
_MANUAL_SECONDS = 1.0

_LEFT = "it has left for good"

# Of more than so many actors of a kind that cannot be merged, it is not the actors that are at fault.
_MOST_HELD_BACK = 100


class PeerStatus(NamedTuple):
    """What is known of another replica. `behind` is how many positions of its log are still to be read, None if that is
    not known; `trouble` why it cannot be read now, or is refused. `held_back` are the actors, by their streams, whose
    events could not be merged, and why: each is tried again by itself, while the others go on."""

    replica: str
    is_refused: bool
    trouble: str | None
    behind: int | None
    merged: int
    held_back: Mapping[str, str]


class Replication:
    """What makes a system one of several replicas. `ActorSystem.replication` is it.

    Each log of another replica is read to its end, then again when there may be more, at the latest after `seconds`;
    without `seconds`, only when `pull_from` is called.
    What was read is stored here before it is noted how far that was: after a crash some comes twice, and is known. An
    actor that cannot have its events merged is noted with it, with where they begin, and holds up nobody else.
    """

    def __init__(
        self,
        runtime: Runtime,
        store: EventStore,
        *,
        replica: str,
        peers: Mapping[str, str | EventStore | Peer],
        seconds: float | None,
        page_timeout: float,
    ) -> None:
        self.replica = replica
        self.wall: WallClock = wall_clock
        self.page_timeout = page_timeout
        self.refusal: ReplicationError | None = None
        self._runtime = runtime
        self._store = store
        self._peers = peers
        self._seconds = seconds
        self._members = Members(store, replica, peers)
        self._merging = Merging(runtime, store)
        self._kinds: dict[str, type[ReplicatedActor[Any]]] = {}
        self._sources: dict[str, Source] = {}
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._has_kinds = asyncio.Event()

    # Life cycle

    async def open(self) -> None:
        """Find out whose journal it is, and open what the peers are reached by. Raises `ReplicaRefused`."""
        await self._members.open()
        for name, given in self._peers.items():
            self._sources[name] = Source(name, await self._reached(name, given))

    async def _reached(self, name: str, given: str | EventStore | Peer) -> Peer:
        if isinstance(given, str):
            # What another replica has is never made here.
            return LazyPeer(name, given, self._store.tenant, self._stack)
        if not isinstance(given, EventStore):
            return given
        if given.tenant != self._store.tenant:
            raise DefinitionError(
                f"the store of replica {name!r} was opened for {given.tenant or 'no tenant'}, this one for "
                f"{self._store.tenant or 'no tenant'}: a replica takes the events of its own tenant alone"
            )
        return StorePeer(name, given)

    def start(self) -> None:
        """Begin to read what others have, in the background."""
        if self._seconds is not None:
            follow = [self._follow(source, self._seconds) for source in self._sources.values()]
            follow.append(self._keep_learning(self._seconds))
            self._tasks = [asyncio.create_task(each, name="eventstore-replication") for each in follow]

    async def close(self) -> None:
        """Read nothing more. What is being stored is stored or not, and is read again in the latter case."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._stack.aclose()

    def replicate(self, actor: type[ReplicatedActor[Any]]) -> None:
        """Read the events of a class of actors too."""
        self._kinds.setdefault(actor.kind, actor)
        self._has_kinds.set()

    # Who takes part

    @property
    def others(self) -> Sequence[str]:
        """The other replicas that take part, by name."""
        return self._members.others

    @property
    def is_first(self) -> bool:
        """Whether this replica is the first by name: it is the one whose actors run `after_merge`."""
        return self._members.is_first

    async def remove(self, replica: str) -> None:
        """Let a replica take no part any more, for good. What it wrote and others have is still taken from them.

        Nobody waits for it any more: `replicated="all"` does without it, and snapshots move on. Its name cannot come
        back. Each replica that stays is told so by itself.
        """
        await self._members.remove(replica)
        self._membership_changed()

    async def _learn(self) -> None:
        """Find out what other processes of this replica have noted of who takes part."""
        before = self.others
        await self._members.read()
        if self.others != before:
            self._membership_changed()

    def _membership_changed(self) -> None:
        for replica in self._members.left:
            source = self._sources.get(replica)
            if source is not None:
                source.refuse(_LEFT)
        for cell in self._runtime.live_cells():
            if isinstance(cell, ReplicatedCell):
                cell.heard_more()

    async def _keep_learning(self, seconds: float) -> None:
        is_said = False
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._learn()
                is_said = False
            except Exception as error:
                if isinstance(error, StoreClosed) and not self._runtime.is_open:
                    return
                if not is_said:
                    logger.warning("replica %r: it cannot be read who takes part: %s", self.replica, error)
                is_said = True

    def status(self) -> list[PeerStatus]:
        """How it is going with each peer."""
        return [
            PeerStatus(
                source.name,
                source.is_refused,
                source.trouble,
                sum(max(0, source.ends[kind] - source.cursors[kind].position) for kind in source.ends)
                if source.ends
                else None,
                source.merged,
                {stream_id: held.trouble for stream_id, held in sorted(source.held_back.items())},
            )
            for source in self._sources.values()
        ]

    # Reading

    async def _follow(self, source: Source, seconds: float) -> None:
        failures = 0
        while not source.is_refused:
            await self._has_kinds.wait()
            try:
                is_more, _ = await self._pull_or_refuse(source, _PAGE, is_told=False)
                if not is_more:
                    position = min(cursor.position for cursor in source.cursors.values())
                    await source.peer.wait(max(position, *source.ends.values()), seconds)
                failures = 0
            except StoreClosed:
                if not self._runtime.is_open:
                    return
                await asyncio.sleep(seconds)
            except ReplicaRefused:
                pass  # It was said, and nothing is read from it any more.
            except Exception as error:
                # Whatever it was, the others' events must come here in the end.
                failures += 1
                if source.trouble is None or failures == 1:
                    logger.warning("replica %r: nothing could be merged from %r: %s", self.replica, source.name, error)
                source.trouble = str(error)
                await asyncio.sleep(pause_after(failures, seconds))

    def _refuse(self, source: Source, error: ReplicaRefused) -> None:
        logger.error("replica %r: %s", self.replica, error)
        source.refuse(str(error))
        if error.replica == self.replica:
            self.refusal = error

    async def pull_from(self, name: str, *, limit: int = _PAGE) -> bool:
        """Read one part of another replica's log for each kind. Returns whether there may be more at once.

        An actor whose events cannot be merged is held back, and tried again each time. When all else is done, this
        raises why it could not.
        """
        source = self._sources[name]
        await self._learn()
        if source.is_refused:
            raise ReplicaRefused(name, source.trouble or "it was refused before")
        is_more, failures = await self._pull_or_refuse(source, limit, is_told=True)
        for failure in failures:
            raise failure
        return is_more

    async def _pull_or_refuse(self, source: Source, limit: int, *, is_told: bool) -> tuple[bool, Sequence[Exception]]:
        try:
            return await self._pull(source, limit, is_told=is_told)
        except ReplicaRefused as error:
            self._refuse(source, error)
            raise

    async def _pull(self, source: Source, limit: int, *, is_told: bool) -> tuple[bool, Sequence[Exception]]:
        """Whether there may be more, and why actors were held back. Who `is_told` to do it does not wait for a try."""
        name = source.name
        if not source.has_joined:
            await self._members.join(name, source.peer)
            source.has_joined = True
        is_more = False
        failures: list[Exception] = []
        stuck: Exception | None = None
        for kind, actor in list(self._kinds.items()):
            cursor = source.cursors.get(kind)
            if cursor is None:
                cursor = source.cursors[kind] = await self._members.cursor(name, kind)
            waiting = list(cursor.held_back)
            wish = Pull(kind, cursor.position, cursor.mark, limit)
            pulled = await source.peer.pull(wish)
            events = in_order(wish, pulled)
            source.ends[kind] = pulled.end
            # Those of one that is held back come after what it has missed.
            failed = await self._merging.merge(
                source, actor, [one for one in events if one.stream_id not in cursor.held_back]
            )
            if (too_many := self._too_many(cursor, failed)) is not None:
                # That kind is read again from here; the others need not wait for it, nor those that are held back.
                stuck = stuck or too_many
            else:
                self._hold_back(source, cursor, failed, after=cursor.position)
                failures += failed.values()
                if pulled.through > cursor.position:
                    await self._members.advance(cursor, pulled.through, events)
                    is_more = is_more or pulled.through < pulled.end
            for stream_id in waiting:
                if is_told or source.is_due(stream_id, self._runtime.loop.time()):
                    failures += await self._try_again(source, actor, cursor, stream_id)
        if stuck is None:
            source.trouble = None
        elif is_more:
            # Of another kind, which would have to wait for the next try.
            source.trouble = str(stuck)
            failures.insert(0, stuck)
        else:
            raise stuck
        return is_more, failures

    def _too_many(self, cursor: Cursor, failed: Mapping[str, Exception]) -> Exception | None:
        """Why a kind cannot be read on, if more of its actors failed than may be held back."""
        if failed and len({*failed, *cursor.held_back}) > _MOST_HELD_BACK:
            return next(iter(failed.values()))
        return None

    def _hold_back(self, source: Source, cursor: Cursor, failed: Mapping[str, Exception], *, after: int) -> None:
        """Note which actors' events are to be read again, and behind which position."""
        for stream_id, error in failed.items():
            cursor.held_back.setdefault(stream_id, after)
            is_new = source.hold_back(
                stream_id, error, now=self._runtime.loop.time(), seconds=self._seconds or _MANUAL_SECONDS
            )
            # Often one replica is read before another that has what it rests on.
            level = logging.WARNING if is_new and not isinstance(error, Gap) else logging.DEBUG
            logger.log(
                level,
                "replica %r: %r is held back, whose events of %r could not be merged: %s",
                self.replica, stream_id, source.name, error,
            )  # fmt: skip

    async def _try_again(
        self, source: Source, actor: type[ReplicatedActor[Any]], cursor: Cursor, stream_id: str
    ) -> Sequence[Exception]:
        """Read what an actor that was held back has missed, up to where all others are. Returns why it could not be
        merged this time either."""
        while (after := cursor.held_back[stream_id]) < cursor.position:
            wish = Pull(cursor.kind, after, None, _PAGE, (stream_id,))
            pulled = await source.peer.pull(wish)
            # What is behind where all are comes again with what others get, and is known then.
            missed = [one for one in in_order(wish, pulled) if one.stream_id == stream_id]
            failed = await self._merging.merge(source, actor, missed)
            if failed:
                self._hold_back(source, cursor, failed, after=after)
                return list(failed.values())
            if pulled.through <= after:
                # It has not come there yet, such as a copy that is behind.
                return []
            cursor.held_back[stream_id] = pulled.through
            await self._members.keep(cursor)
        del cursor.held_back[stream_id]
        source.held_back.pop(stream_id, None)
        await self._members.keep(cursor)
        logger.info("replica %r: %r is held back no more", self.replica, stream_id)
        return []
