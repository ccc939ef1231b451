"""Handlers: the decorators that mark them, and the tables they are dispatched by, built once per class."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from actors.command import Command, reply_type
from eventstore.codec import checksum_seed
from eventstore.errors import DefinitionError
from eventstore.event_array import EventArray
from eventstore.event_handlers import ROLE, check_plain, is_awaited
from eventstore.events import Event
from eventstore.json_form import reader

_H = TypeVar("_H", bound=Callable[..., Any])
_COMMAND = "command_handler"


def command_handler(function: _H) -> _H:
    """Mark the method that decides about one type of command: that of its annotated argument.

    A plain `def` is a pure decision: it may be run again after a version conflict, and takes the fast path. An
    `async def` may do I/O; it is never run twice by the runtime, and starts only when all earlier events are durable.

    What it returns may be part of the state: of lists, tuples, dictionaries, sets, dataclasses and pydantic models the
    asker gets a copy. Return what was asked for, not a large state as a whole. What has to be awaited is no reply.
    """
    setattr(function, ROLE, _COMMAND)
    return function


class CommandRoute(NamedTuple):
    """Where a type of command goes."""

    name: str
    handle: Callable[[Any, Any], Any]
    is_async: bool


class EventRoute:
    """Where events of one stored name go, and how they are read. `seed` is what their checksums go on from."""

    __slots__ = ("_array", "apply", "cls", "schema_version", "seed", "validate")

    def __init__(self, cls: type[Event], apply: Callable[[Any, Any], None], name: str) -> None:
        self.cls = cls
        self.schema_version = cls.__schema_version__
        self.seed = checksum_seed(name, cls.__schema_version__)
        self.validate: Callable[..., Event] = reader(cls, cls.__pydantic_validator__.validate_json)
        self.apply = apply
        self._array: EventArray | None = None

    @property
    def array(self) -> EventArray:
        """What reads many. Made when it is needed, because not every class that has handlers is ever replayed."""
        if self._array is None:
            self._array = EventArray(self.cls)
        return self._array


class Handlers(NamedTuple):
    """One class's tables. `decisions` holds the sync command handlers alone; `stored` is keyed by stored event name,
    former ones too."""

    commands: Mapping[type[Command[Any]], CommandRoute]
    decisions: Mapping[type[Command[Any]], Callable[[Any, Any], Any]]
    events: Mapping[type[Event], Callable[[Any, Any], None]]
    stored: Mapping[str, EventRoute]


def collect_handlers(cls: type) -> Handlers:
    """Find and check a class's handlers. Raises `DefinitionError` that names class and method."""
    local_names = _names_where_defined()
    commands: dict[type[Command[Any]], CommandRoute] = {}
    events: dict[type[Event], Callable[[Any, Any], None]] = {}
    owners: dict[type, str] = {}
    for name, function, role in _marked(cls):
        place = f"{cls.__qualname__}.{name}"
        for handled in _handled_types(function, place, role, local_names):
            if handled in owners:
                raise DefinitionError(
                    f"{place}: {handled.__qualname__} already has a {role}: {owners[handled]}; keep one of them"
                )
            owners[handled] = place
            is_async = is_awaited(function, place)
            if role == _COMMAND:
                commands[handled] = CommandRoute(name, function, is_async)
            elif is_async:
                raise DefinitionError(f"{place}: an event handler cannot be async: it is run at every recovery")
            elif (returned := function.__annotations__.get("return")) not in (None, "None"):
                raise DefinitionError(
                    f"{place}: it returns {getattr(returned, '__qualname__', returned)}, and what an event handler "
                    "returns is not used: let it change self.state, and annotate it with -> None"
                )
            else:
                events[handled] = function
    return Handlers(
        commands,
        {command: route.handle for command, route in commands.items() if not route.is_async},
        events,
        {
            name: EventRoute(event, apply, name)
            for event, apply in events.items()
            for name in (event.__event_type__, *event.__aliases__)
        },
    )


def unhandled(cls: type, event: object) -> DefinitionError:
    """Why a class of actors cannot persist something."""
    wrong = type(event).__qualname__
    if isinstance(event, (list, tuple, set)):
        why = f"persists a {wrong}: give it the events one by one, as in self.persist(*events)"
    elif isinstance(event, Command):
        why = f"persists {wrong}, which is a command: persist an event that says what has happened"
    elif isinstance(event, type):
        why = f"persists the class {event.__qualname__}: persist an instance, {event.__qualname__}(…)"
    elif not isinstance(event, Event):
        why = f"persists {wrong}, which is no Event"
    else:
        why = f"persists {wrong} but has no @event_handler for it"
    return DefinitionError(f"{cls.__qualname__} {why}; nothing was stored")


def _marked(cls: type) -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Every handler the class has, with those of its bases; an override must be marked as well."""
    found: dict[str, tuple[Callable[..., Any], str]] = {}
    of_every_actor: set[str] = set()
    for klass in reversed(cls.__mro__):
        if klass.__module__.partition(".")[0] == "actors":
            of_every_actor |= {*vars(klass), *inspect.get_annotations(klass)}
        for name, value in vars(klass).items():
            role = getattr(value, ROLE, None)
            check_plain(value, f"{klass.__qualname__}.{name}")
            if role is not None:
                if name in of_every_actor:
                    raise DefinitionError(
                        f"{klass.__qualname__}.{name}: every actor has something of that name, which this would take "
                        f"the place of: give the {role} another"
                    )
                found[name] = (value, role)
            elif name in found:
                raise DefinitionError(
                    f"{klass.__qualname__}.{name} overrides a {found[name][1]}: decorate it with @{found[name][1]} too"
                )
    for name, (function, role) in found.items():
        yield name, function, role


def _handled_types(
    function: Callable[..., Any], place: str, role: str, local_names: Mapping[str, Any]
) -> Iterator[type[Any]]:
    wanted: type[Any] = Command if role == _COMMAND else Event
    parameters = list(inspect.signature(function).parameters.values())
    example = "command: Deposit" if role == _COMMAND else "event: Deposited"
    if len(parameters) != 2 or any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise DefinitionError(f"{place}: a {role} takes self and one argument, such as `{example}`")
    argument = parameters[1].name
    if argument not in function.__annotations__:
        raise DefinitionError(f"{place}: annotate `{argument}` with what it handles, such as `{example}`")
    try:
        hints = get_type_hints(function, localns=dict(local_names))
    except NameError as error:
        raise DefinitionError(
            f"{place}: the annotation names {error.name!r}, which is not defined here: define or import it first"
        ) from error
    handled = hints[argument]
    is_union = get_origin(handled) in (Union, types.UnionType)
    for alternative in get_args(handled) if is_union else (handled,):
        if not (isinstance(alternative, type) and issubclass(alternative, wanted)) or _is_generic(alternative, wanted):
            raise DefinitionError(
                f"{place}: a {role} is annotated with a subclass of {wanted.__name__}, not with "
                f"{getattr(alternative, '__qualname__', alternative)!s}"
            )
        if role == _COMMAND:
            _check_reply(alternative, hints.get("return", inspect.Signature.empty), place)
        yield alternative


def _is_generic(handled: type[Any], wanted: type[Any]) -> bool:
    """Whether it is the base class itself, or `Command[int]`: nothing is sent that is of such a type."""
    return handled is wanted or (
        issubclass(handled, Command) and handled.__pydantic_generic_metadata__["origin"] is wanted
    )


def _check_reply(command: type[Command[Any]], returned: Any, place: str) -> None:
    """The handler's return annotation against the reply the command's class promises, where both are classes."""
    promised = reply_type(command)
    if promised is Any or not (isinstance(promised, type) and isinstance(returned, type)):
        return
    if returned is inspect.Signature.empty:
        raise DefinitionError(f"{place}: annotate what it returns: -> {promised.__qualname__}")
    # PEP 484: where a float is promised, an int will do.
    if not issubclass(returned, (promised, int) if promised is float else promised):
        raise DefinitionError(
            f"{place}: it returns {returned.__qualname__}, but {command.__qualname__} is a "
            f"Command[{promised.__qualname__}]"
        )


def _names_where_defined() -> Mapping[str, Any]:
    """The local names where the class statement stands: its annotations may use them."""
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("actors", "abc"):
        frame = frame.f_back
    return frame.f_locals
