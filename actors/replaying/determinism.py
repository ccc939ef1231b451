"""Determinism: event handlers that use more than the event and the state are caught while they do it.

Whatever a handler calls, by whatever name it was imported, comes past the interpreter's profile function. It belongs to
one thread, nothing is patched, and what was there before is put back.
"""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import date
from io import BytesIO, StringIO
from types import BuiltinMethodType, CodeType, FrameType, MethodType
from typing import Any, NamedTuple, TypeGuard, cast

from actors.actor import PersistentActor
from eventstore.errors import ActorError
from eventstore.events import Event

_CLOCK = frozenset(
    {
        *("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time"),
        *("process_time_ns", "thread_time", "thread_time_ns", "clock_gettime", "clock_gettime_ns", "localtime"),
        *("sleep", "mktime"),
    }
)
_CLOCK_METHODS = frozenset({"now", "utcnow", "today"})
_UUIDS = frozenset({"uuid1", "uuid4", "uuid6", "uuid7", "uuid8"})
_RANDOM_METHODS = frozenset({"random", "getrandbits", "seed"})

# Modules whose functions all ask the machine, and of the operating system's those that do not.
_OUTSIDE = frozenset({"_socket", "_ssl", "_sqlite3", "_posixsubprocess", "_winapi", "select", "posix", "nt", "_uuid"})
_PURE = frozenset({"fspath", "WIFEXITED", "WEXITSTATUS", "WIFSIGNALED", "WTERMSIG"})
_FILE_METHODS = frozenset({"read", "readline", "readlines", "readinto", "read1", "write", "writelines", "flush"})

# What these do with the clock and with files is not the handler's: an import, a line of a log, a warning.
_EXCUSED = frozenset({"logging", "warnings", "linecache"})

_SEEDED = random.Random.__init__.__code__
_SOCKET = socket.socket.__init__.__code__
_SHARED_RANDOM: object = cast("MethodType", random.random).__self__


class Breach(NamedTuple):
    """What an event handler called, at which event. `call` has how it came there: `uuid.uuid4 -> posix.urandom`."""

    handler: str
    event_type: str
    version: int
    call: str

    def __str__(self) -> str:
        return f"{self.handler}, for {self.event_type!r} at version {self.version}, calls {self.call}"


class NotDeterministic(ActorError):
    """An event handler used the clock, random numbers, an id made of these, or something outside of the process.

    It is run again at every recovery, and would lead to another state each time: decide in the command handler, and put
    what was decided into the event. `breach` names handler, event, version and call.
    """

    def __init__(self, breach: Breach) -> None:
        super().__init__(
            f"{breach}: an event handler uses the event and the state alone; let the command handler call it, and put "
            "what it gives into the event"
        )
        self.breach = breach


@contextmanager
def deterministic(*actors: type[PersistentActor[Any]]) -> Generator[None]:
    """Let the event handlers of these classes, in this thread and while in the block, raise `NotDeterministic` at the
    call that breaks the rule, before it is done. One that the handler swallowed is raised at the end of the block.

        with deterministic(Account):
            await system.ref(Account, "alice").ask(Deposit(amount=5))

    What C code calls without Python's knowledge is not seen, such as a builtin function that is a field's
    `default_factory`; `eventstore replay --check` compares what comes of it.
    """
    breaches: list[Breach] = []

    def trip(breach: Breach) -> None:
        breaches.append(breach)
        raise NotDeterministic(breach)

    with _watching(actors, trip):
        yield
    if breaches:
        raise NotDeterministic(breaches[0])


@contextmanager
def breaches_noted(*actors: type[PersistentActor[Any]]) -> Generator[list[Breach]]:
    """Let the event handlers of these classes run on, and note what they call: of each handler and each call the first
    time."""
    found: dict[tuple[str, str], Breach] = {}
    breaches: list[Breach] = []

    def note(breach: Breach) -> None:
        if found.setdefault((breach.handler, breach.call), breach) is breach:
            breaches.append(breach)

    with _watching(actors, note):
        yield breaches


@contextmanager
def _watching(actors: tuple[type[PersistentActor[Any]], ...], on_breach: Callable[[Breach], None]) -> Generator[None]:
    watch = _Watch(dict(pair for actor in actors for pair in _handlers_of(actor)), on_breach)
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield
    finally:
        sys.setprofile(before)


def _handlers_of(actor: type[PersistentActor[Any]]) -> Iterator[tuple[CodeType, str]]:
    for handler in actor.handlers.events.values():
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            yield code, getattr(handler, "__name__", code.co_name)


class _Watch:
    """The profile function: it is told of every call and return in its thread."""

    def __init__(self, handlers: dict[CodeType, str], on_breach: Callable[[Breach], None]) -> None:
        self._handlers = handlers
        self._on_breach = on_breach
        self._handler: FrameType | None = None

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if self._handler is None:
            if event == "call" and frame.f_code in self._handlers:
                self._handler = frame
        elif event == "c_call":
            if (name := _forbidden(argument)) is not None:
                self._look(frame, name)
        elif event == "call":
            if (name := _forbidden_function(frame)) is not None:
                self._look(frame.f_back, name)
        elif event == "return" and frame is self._handler:
            self._handler = None

    def _look(self, frame: FrameType | None, name: str) -> None:
        handler = self._handler
        way = [name]
        while frame is not None and frame is not handler:
            module = str(frame.f_globals.get("__name__", "?"))
            if module.partition(".")[0] in _EXCUSED or frame.f_code.co_filename.startswith("<frozen importlib"):
                return
            way.append(f"{module}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        if handler is None or frame is None:
            return
        actor, event = _arguments_of(handler)
        if actor is not None and event is not None:
            name = f"{type(actor).__qualname__}.{self._handlers[handler.f_code]}"
            self._on_breach(Breach(name, event.__event_type__, actor.version, " -> ".join(reversed(way))))


def _arguments_of(handler: FrameType) -> tuple[PersistentActor[Any] | None, Event | None]:
    """The actor and the event that a handler was called with; one that wraps another may take them as `*arguments`."""
    actor: PersistentActor[Any] | None = None
    event: Event | None = None
    for name in handler.f_code.co_varnames[:2]:
        argument: object = handler.f_locals.get(name)
        for each in argument if _is_tuple(argument) else (argument,):
            if _is_actor(each):
                actor = each
            elif isinstance(each, Event):
                event = each
    return actor, event


def _is_tuple(value: object) -> TypeGuard[tuple[object, ...]]:
    return isinstance(value, tuple)


def _is_actor(value: object) -> TypeGuard[PersistentActor[Any]]:
    return isinstance(value, PersistentActor)


def _forbidden(function: Any) -> str | None:
    """The name of a builtin function that asks for more than it is given; None for one that does not."""
    name: str = function.__name__
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{name}" if _is_clock_method(owner, name) else None
    module: str = getattr(function, "__module__", None) or ""
    if not isinstance(function, BuiltinMethodType) or module == "":
        return _forbidden_method(owner, name)
    is_forbidden = (
        (module == "time" and name in _CLOCK)
        or (module in _OUTSIDE and name not in _PURE)
        or (module in ("_io", "io") and name in ("open", "open_code"))
        or (module == "builtins" and name in ("print", "input", "open"))
        or (module.startswith("uuid_utils") and name in _UUIDS)
    )
    return f"{'io' if module == '_io' else module}.{name}" if is_forbidden else None


def _is_clock_method(owner: type, name: str) -> bool:
    return name in _CLOCK_METHODS and issubclass(owner, date)


def _forbidden_method(owner: Any, name: str) -> str | None:
    if owner is _SHARED_RANDOM and name in _RANDOM_METHODS:
        return f"random.{name}"
    kind: type[Any] = owner.__class__
    modules = {base.__module__ for base in kind.__mro__}
    if "_io" in modules and name in _FILE_METHODS and not isinstance(owner, BytesIO | StringIO):
        return f"io.{kind.__qualname__}.{name}"
    if not modules.isdisjoint(("_socket", "_ssl", "_sqlite3", "sqlite3")):
        return f"{kind.__qualname__}.{name}"
    return None


def _forbidden_function(frame: FrameType) -> str | None:
    """The same for the few functions of Python's own that ask in a way that cannot be seen."""
    code = frame.f_code
    if code is _SEEDED and frame.f_locals.get("x") is None:
        return "random.Random"
    return "socket.socket" if code is _SOCKET else None
