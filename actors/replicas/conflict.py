"""Conflict: an event that meets others it was written without, and what an actor may make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from eventstore.errors import DefinitionError
from eventstore.events import Event
from eventstore.stamp import Stamp


class Stamped(NamedTuple):
    """An event, and where and after what it was written."""

    event: Event
    stamp: Stamp


class Conflict:
    """`event` is the one that is to be applied now. The state holds all that stand before it in the canonical order.

    It is made anew whenever the event is applied, and is the same on every replica that knows the same events.
    """

    __slots__ = ("_against", "_find", "event", "stamp")

    def __init__(self, event: Event, stamp: Stamp, find: Callable[[], Sequence[Stamped]]) -> None:
        self.event = event
        self.stamp = stamp
        self._find = find
        self._against: Sequence[Stamped] | None = None

    @property
    def against(self) -> Sequence[Stamped]:
        """The events that stand before it and were written without it, as it was without them, in canonical order."""
        if self._against is None:
            # Only when it is asked for: after a long partition these are many for each event.
            self._against = tuple(self._find())
        return self._against

    def __repr__(self) -> str:
        return f"Conflict({self.event!r} of {self.stamp.origin!r}, against {len(self.against)} events)"


class Overruling(NamedTuple):
    """Apply an event, then set these fields of the state to what the event says, whatever its handler made of it."""

    event: Event
    fields: tuple[str, ...]


Resolution = Event | Overruling | Iterable[Event | Overruling] | None
"""What is applied instead of an event in conflict."""


def last_writer_wins(*fields: str) -> Callable[[Any, Conflict], Resolution]:
    """A rule for actors: in a conflict, these fields of the state are what the last event says that sets them.

        class Profile(ReplicatedActor[ProfileState]):
            resolve = last_writer_wins("name", "email")

    Events and state must name them alike; an event that has None for a field, or no such field, does not set it. What
    an event does besides stays with its handler. The last is the last in the canonical order: by hybrid time, and of
    two at one time that of the lower replica.
    """
    if not fields:
        raise DefinitionError('last_writer_wins: name the fields of the state: last_writer_wins("name", …)')

    def resolve(actor: object, conflict: Conflict) -> Resolution:
        event = conflict.event
        return Overruling(event, tuple(field for field in fields if getattr(event, field, None) is not None))

    return resolve


def steps_of(resolution: Resolution) -> Iterable[Overruling]:
    """A resolution as what is to be done, one after the other."""
    match resolution:
        case None:
            return ()
        case Event():
            return (Overruling(resolution, ()),)
        case Overruling():
            return (resolution,)
        case _:
            return [each if isinstance(each, Overruling) else Overruling(each, ()) for each in resolution]
