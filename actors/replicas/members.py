"""Members: whose journal this is, which replicas take part, and how far each of their logs has been read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import orjson

from actors.replicas.peer import MEMBERS, Mark, Peer, ReplicaJoined, ReplicaLeft, ReplicaNamed
from eventstore.errors import ConcurrencyError, ReplicaRefused, ReplicationError
from eventstore.events import Event, RecordedEvent, Snapshot
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore
from eventstore.vector_clock import checked_replica

CURSOR = "replication.cursor"
"""The kind of the streams in which it is kept how far logs were read."""


class CursorBegun(Event, name="replication.cursor_begun"):
    """From here on another replica's log is read. How far is in the stream's snapshot, which is replaced each time."""

    replica: str
    kind: str


class Cursor:
    """How far one kind of events was read in another replica's log, and the last event that was there.

    All of it is stored here but for the events of the streams that are `held_back`, each from a position of its own on.
    """

    __slots__ = ("held_back", "kind", "mark", "position", "replica")

    def __init__(self, replica: str, kind: str, position: int = 0, mark: Mark | None = None) -> None:
        self.replica = replica
        self.kind = kind
        self.position = position
        self.mark = mark
        self.held_back: dict[str, int] = {}

    @property
    def stream_id(self) -> str:
        """Where it is kept."""
        return f"{CURSOR}-{self.replica}-{self.kind}"


class Members:
    """Kept in the replica's own journal, in the stream `MEMBERS`, which every process of the replica reads."""

    def __init__(self, store: EventStore, replica: str, expected: Iterable[str]) -> None:
        """The `expected` count from the start, whether they could be reached or not."""
        self.replica = checked_replica(replica)
        self._expected = [checked_replica(name) for name in expected]
        self._store = store
        self._journal: UUID | None = None
        self._joined: dict[str, UUID] = {}
        self._left: set[str] = set()
        self._version = 0

    @property
    def others(self) -> Sequence[str]:
        """The other replicas that take part, by name."""
        return [name for name in sorted({*self._joined, *self._expected}) if name not in self._left]

    @property
    def left(self) -> Sequence[str]:
        """Those that took part, and never will again."""
        return sorted(self._left)

    @property
    def is_first(self) -> bool:
        """Whether no other replica that takes part stands before this one by name."""
        return all(self.replica < name for name in self.others)

    async def open(self) -> None:
        """Read who takes part, and name the journal if it is new. Raises `ReplicaRefused` if it is another's."""
        await self.read()
        if self._journal is None:
            await self._append(ReplicaNamed(replica=self.replica, journal=uuid4()), lambda: self._journal is not None)

    async def join(self, name: str, peer: Peer) -> None:
        """Let another replica take part, or see that it is the one that does.

        Raises `ReplicaRefused` if it is not, and `ReplicationError` if it is no replica yet.
        """
        if name == self.replica:
            raise ReplicaRefused(name, "two replicas cannot have one name")
        if name in self._left:
            raise ReplicaRefused(name, "the replica of that name has left for good")
        named = await peer.journal()
        if named is None:
            raise ReplicationError(f"the database of {name!r} is no replica's yet: start it there once")
        if named.replica != name:
            raise ReplicaRefused(name, f"what is there is the journal of {named.replica!r}")
        if name not in self._joined:
            if named.journal == self._journal:
                raise ReplicaRefused(name, "its journal is a copy of this one")
            await self._append(ReplicaJoined(replica=name, journal=named.journal), lambda: name in self._joined)
        if self._joined[name] != named.journal:
            raise ReplicaRefused(name, "the name was that of another journal")

    async def remove(self, name: str) -> None:
        """Let a replica take no part any more, for good."""
        if name == self.replica:
            raise ReplicationError(f"{name!r} is this replica: the others let it go, each for itself")
        if name not in self._left:
            await self._append(ReplicaLeft(replica=name), lambda: name in self._left)

    async def _append(self, event: Event, is_known: Callable[[], bool]) -> None:
        # Others may be faster, with the same or with something else: two replicas are often met at once.
        while not is_known():
            with suppress(ConcurrencyError):
                await self._store.append(MEMBERS, [event], expected_version=self._version)
            await self.read()

    async def read(self) -> None:
        """Learn what is new in the journal. Raises `ReplicaRefused` if it is another replica's."""
        async for recorded in self._store.read(MEMBERS, after=self._version):
            self._version = recorded.version
            match self._store.decode(recorded):
                case ReplicaNamed(replica=replica, journal=journal):
                    if replica != self.replica:
                        raise ReplicaRefused(self.replica, f"this is the journal of {replica!r}")
                    self._journal = journal
                case ReplicaJoined(replica=replica, journal=journal):
                    self._joined[replica] = journal
                case ReplicaLeft(replica=replica):
                    self._left.add(replica)
                case _:
                    pass

    # Cursors

    async def cursor(self, replica: str, kind: str) -> Cursor:
        """How far a log was read; from its start, if it never was."""
        kept = await self.kept_cursor(replica, kind)
        if kept is not None:
            return kept
        cursor = Cursor(replica, kind)
        with suppress(ConcurrencyError):
            begun = CursorBegun(replica=replica, kind=kind)
            await self._store.append(cursor.stream_id, [begun], expected_version=0)
        return cursor

    async def kept_cursor(self, replica: str, kind: str) -> Cursor | None:
        """The same, if it was ever kept; nothing is written."""
        cursor = Cursor(replica, kind)
        for snapshot in await self._store.snapshots(cursor.stream_id, limit=1):
            # One that cannot be read is none: what was read before is read again, and known.
            if isinstance(snapshot, Snapshot):
                with suppress(ValueError, LookupError, TypeError):
                    data: dict[str, Any] = orjson.loads(snapshot.data)
                    mark = data["mark"]
                    cursor.mark = None if mark is None else Mark(mark[0], bytes.fromhex(mark[1]))
                    cursor.position = data["position"]
                    cursor.held_back = data.get("held_back", {})
                    return cursor
        return None

    async def advance(self, cursor: Cursor, position: int, events: Sequence[RecordedEvent]) -> None:
        """Keep that a log was read up to a position, once all of it is stored here that is not held back."""
        if events:
            cursor.mark = Mark(events[-1].position, events[-1].event_id.bytes)
        cursor.position = position
        await self.keep(cursor)

    async def keep(self, cursor: Cursor) -> None:
        """Keep a cursor as it is."""
        mark = None if cursor.mark is None else (cursor.mark.position, cursor.mark.event_id.hex())
        data = orjson.dumps({"position": cursor.position, "mark": mark, "held_back": cursor.held_back})
        await self._store.save_snapshot(new_snapshot(cursor.stream_id, 1, CURSOR, data), keep=1)
