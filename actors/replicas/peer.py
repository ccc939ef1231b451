"""Peer: another replica as this one sees it: a name, and a log that can be read on from where one has been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol
from uuid import UUID

from eventstore.backend import EventFilter
from eventstore.errors import ReplicaRefused, ReplicationError
from eventstore.events import Event, RecordedEvent
from eventstore.store import EventStore

MEMBERS = "replication-members"
"""The stream in which a journal keeps whose it is, and which replicas take part."""


class ReplicaNamed(Event, name="replication.named"):
    """This journal is that of a replica. `journal` tells it from others that may be given the name."""

    replica: str
    journal: UUID


class ReplicaJoined(Event, name="replication.joined"):
    """Another replica takes part from here on."""

    replica: str
    journal: UUID


class ReplicaLeft(Event, name="replication.left"):
    """Another replica takes no part any more, and will never come back under that name."""

    replica: str


class Mark(NamedTuple):
    """One event of a peer's log, by which it is found out whether that is still the same log."""

    position: int
    event_id: bytes


class Pull(NamedTuple):
    """A wish for the events of one kind behind a position; `mark` is the last that was had before.

    With `stream_ids`, only those of these streams are wanted; whoever gives all of the kind does no harm.
    """

    kind: str
    after: int
    mark: Mark | None
    limit: int
    stream_ids: tuple[str, ...] = ()


class Pulled(NamedTuple):
    """The part of a peer's log that a wish was for: all events of the kind with after < position <= through, `size` of
    them, with whole batches. `end` is where the log ended then."""

    wish: Pull
    through: int
    end: int
    size: int
    events: Sequence[RecordedEvent]


class Peer(Protocol):
    """How another replica is reached. It may answer late, twice, or not at all: then it raises."""

    async def journal(self) -> ReplicaNamed | None:
        """Whose journal it is, None if it is no replica's yet."""
        ...

    async def pull(self, wish: Pull) -> Pulled:
        """Read on. Raises `ReplicaRefused` if the mark is not where it was: then the log is another."""
        ...

    async def wait(self, after: int, timeout: float) -> None:
        """Return when there may be something behind a position, at the latest after `timeout` seconds."""
        ...


class StorePeer:
    """A replica whose database can be read from here."""

    def __init__(self, name: str, store: EventStore) -> None:
        self.name = name
        self._store = store

    async def journal(self) -> ReplicaNamed | None:
        async for recorded in self._store.read(MEMBERS, limit=1):
            named = self._store.decode(recorded)
            return named if isinstance(named, ReplicaNamed) else None
        return None

    async def pull(self, wish: Pull) -> Pulled:
        kind, after, mark, limit, stream_ids = wish
        # A store without a tenant shows those of all.
        where = EventFilter(kinds=(kind,), stream_ids=stream_ids, tenants=(self._store.tenant,))
        start = after
        if mark is not None:
            # One trip for both: the marked event, and what is behind.
            start = mark.position - 1
            limit += 1
        events: list[RecordedEvent] = []
        is_marked = mark is not None
        while True:
            page = await self._store.read_page(after=start, limit=limit, where=where)
            events += page.events
            if is_marked and mark is not None:
                self._check(mark, events)
                events = [event for event in events if event.position > after]
                is_marked = False
            if page.is_end or not events:
                return Pulled(wish, max(page.position, after), page.end, len(events), events)
            whole = _whole_batches(events)
            if whole:
                return Pulled(wish, whole[-1].position, page.end, len(whole), whole)
            start = page.position

    def _check(self, mark: Mark, events: Sequence[RecordedEvent]) -> None:
        first = events[0] if events else None
        if first is None or (first.position, first.event_id.bytes) != mark:
            raise ReplicaRefused(
                self.name, f"the event at position {mark.position}, which was read before, is not there any more"
            )

    async def wait(self, after: int, timeout: float) -> None:
        await self._store.wait(after, timeout)


def in_order(wish: Pull, pulled: Pulled) -> Sequence[RecordedEvent]:
    """What came for a wish, each event once and in the log's order.

    Raises `ReplicationError` if it is not all of it, or for another wish.
    """
    if pulled.wish != wish:
        # One that is empty would else pass for any: that there is nothing, of this kind, behind that position.
        raise ReplicationError(f"the answer to {pulled.wish} came for {wish}: it is asked again")
    found = {event.position: event for event in pulled.events if wish.after < event.position <= pulled.through}
    if len(found) != pulled.size:
        raise ReplicationError(f"{len(found)} events of {pulled.size} came: they are asked for again")
    return [found[position] for position in sorted(found)]


def _whole_batches(events: Sequence[RecordedEvent]) -> list[RecordedEvent]:
    """Without the last batch, which may go on where the page ends."""
    last = events[-1].batch_id if events else None
    whole = [*events]
    while whole and whole[-1].batch_id == last:
        whole.pop()
    return whole
