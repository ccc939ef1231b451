"""`@event_handler`: marks the methods that events go to, in actors and in projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

ROLE = "__eventstore_role__"
EVENT = "event_handler"

_H = TypeVar("_H", bound=Callable[..., Any])


def event_handler(function: _H) -> _H:
    """Mark the method for one type of event: that of its annotated argument.

    In an actor it changes the state. It is run when the event is persisted and again at every recovery, so it uses the
    event and the state alone: no I/O, no clock, no random numbers. It must not fail for an event that a command handler
    persists. In a projection it changes a read model (`Projection`).
    """
    setattr(function, ROLE, EVENT)
    return function
