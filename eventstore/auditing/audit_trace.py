"""Trace: what came of one request, as a tree of causes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from eventstore.auditing.audit_find import find
from eventstore.contract.audit_query import AuditQuery
from eventstore.events import Metadata, RecordedEvent
from eventstore.store import EventStore

MOST_EVENTS = 10_000

_NOTHING = Metadata()


class TraceNode(NamedTuple):
    """An event, or without one a command or another cause, of which only the id is known. `parent` is what caused it,
    by its id; `depth` counts from 0."""

    id: str
    parent: str | None
    depth: int
    recorded: RecordedEvent | None


class Trace:
    """A tree of causes: its nodes, each behind what caused it, and those of one cause in the order of the log.

    `is_complete` says that the request had no more events than were read.
    """

    def __init__(self, events: Sequence[RecordedEvent], *, is_complete: bool) -> None:
        self.events = events
        self.is_complete = is_complete
        self._by_id = {str(recorded.event_id): recorded for recorded in events}
        self._parents = self._causes()
        self._children: dict[str | None, list[str]] = {}
        for node, parent in self._parents.items():
            self._children.setdefault(parent, []).append(node)

    def __iter__(self) -> Iterator[TraceNode]:
        seen: set[str] = set()
        # What causes itself, by way of others, hangs on no root: each such circle is entered at its first event.
        for start in (*self._children.get(None, ()), *self._parents):
            waiting: list[tuple[str, str | None, int]] = [] if start in seen else [(start, None, 0)]
            while waiting:
                node, parent, depth = waiting.pop()
                if node in seen:
                    continue
                seen.add(node)
                yield TraceNode(node, parent, depth, self._by_id.get(node))
                waiting += [(child, node, depth + 1) for child in reversed(self._children.get(node, ()))]

    def _causes(self) -> Mapping[str, str | None]:
        """What caused each node, by id, in the order of the log. An event is caused by its command, and a command by
        what its events name as their cause."""
        parents: dict[str, str | None] = {}
        for recorded in self.events:
            metadata = recorded.metadata or _NOTHING
            node, command, cause = str(recorded.event_id), metadata.command_id, metadata.causation_id
            if command in (cause, node):
                command = None
            if cause == node:
                cause = None
            if cause is not None and cause not in self._by_id:
                parents.setdefault(cause, None)
            if command is not None and command not in self._by_id:
                if parents.get(command) is None:
                    parents[command] = cause
                parents[node] = command
            else:
                parents[node] = cause
        return parents


async def trace(store: EventStore, correlation_id: str, *, limit: int = MOST_EVENTS) -> Trace:
    """What came of the request with a correlation id: its events in all streams, by cause.

    An actor's first command with an id is what its followers are correlated by, and its own events need not say so:
    where followers name it and it is not among them, they are looked for by their command id, which no index helps.
    """
    query = AuditQuery(correlation_ids=(correlation_id,))
    events = [recorded async for recorded in find(store, query, limit=limit + 1)]
    notes = [recorded.metadata or _NOTHING for recorded in events]
    if not any(note.command_id == correlation_id for note in notes):
        own = AuditQuery(command_ids=(correlation_id,))
        known = {recorded.position for recorded in events}
        found = [recorded async for recorded in find(store, own, limit=limit + 1)]
        events = sorted([*events, *(each for each in found if each.position not in known)])
    return Trace(events[:limit], is_complete=len(events) <= limit)
