"""`@event_handler`: marks the methods that events go to, in actors and in projections."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from eventstore.errors import DefinitionError

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


def is_awaited(function: Callable[..., Any], place: str) -> bool:
    """Whether what a handler returns is to be awaited, also where a decorator has made a plain function of an `async
    def` one. Raises `DefinitionError` for one of which a call runs nothing."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise DefinitionError(
            f"{place}: it has a `yield`, so that to call it runs nothing of it: a handler is a function that returns"
        )
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inspect.unwrap(function))


def made_of(value: object) -> object:
    """The function that a property, a class method or a static one was made of; anything else as it is."""
    return value.fget if isinstance(value, property) else getattr(value, "__func__", value)


def check_plain(value: object, place: str) -> None:
    """Raises `DefinitionError` where a handler was made something else afterwards, as which nobody would find it."""
    made = made_of(value)
    role = None if made is value else getattr(made, ROLE, None)
    if role is not None:
        raise DefinitionError(f"{place}: it is a plain method that @{role} marks, not a {type(value).__name__}")
