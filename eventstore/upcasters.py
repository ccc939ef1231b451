"""Upcasters: what older code has stored, as the classes of today have it. Raw JSON in, raw JSON out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar, cast, overload

from eventstore.errors import EventDecodeError, EventTooNew, UnknownEventType, UpcasterError, UpcasterMissing
from eventstore.events import Event, event_class

Payload = dict[str, Any]
"""A payload as plain JSON values. An upcaster may change the one it is given."""

Change = Callable[[Payload], Payload]
Split = Callable[[Payload], Sequence[tuple[str, Payload]]]

_C = TypeVar("_C", bound=Change)
_S = TypeVar("_S", bound=Split)


class Stored(NamedTuple):
    """A type of event as it is stored: its name, and the schema version."""

    type: str
    version: int

    def __str__(self) -> str:
        return f"{self.type!r} version {self.version}"


class Step(NamedTuple):
    """One upcaster. `into` are the types that come out of it, each with the schema version it has then."""

    source: Stored
    into: Mapping[str, int] | None
    function: Callable[[Payload], Any]

    @property
    def targets(self) -> Iterator[Stored]:
        """What comes out. Without `into` that is the next version of the same type."""
        if self.into is None:
            yield Stored(self.source.type, self.source.version + 1)
        else:
            yield from (Stored(type_, version) for type_, version in self.into.items())

    @property
    def place(self) -> str:
        """The function, for messages."""
        return f"{self.function.__module__}.{self.function.__qualname__}"


class Upcasters:
    """A set of upcasters, each of which leads from one version of a type to what is next.

    `class_of` gives the class that a stored name, or a former one, belongs to now.
    """

    def __init__(self, class_of: Callable[[str], type[Event] | None] = event_class) -> None:
        self._class_of = class_of
        self._steps: dict[Stored, Step] = {}

    def add(self, step: Step) -> None:
        """Raises `UpcasterError` if the version has another upcaster."""
        if not isinstance(cast("object", step.source.version), int) or step.source.version < 1:
            raise UpcasterError(f"{step.place}: schema versions start at 1, not {step.source.version!r}")
        if step.into is not None and not step.into:
            raise UpcasterError(f"{step.place}: an event becomes at least one: name what in `into`")
        known = self._steps.get(step.source)
        # The same place in the source run again is a reload, as it is for event classes.
        if known is not None and known.place != step.place:
            raise UpcasterError(f"{step.place}: {step.source} has an upcaster already: {known.place}; keep one of them")
        self._steps[step.source] = step

    def check(self) -> None:
        """Follow every upcaster to its ends. Raises `UpcasterError` for two that start from one version under two names
        of a class, one that starts where the class is already, a gap, a cycle, and an end that no class has."""
        starts: dict[Stored, Step] = {}
        for step in self._steps.values():
            source = self._current(step.source)
            if source in starts:
                raise UpcasterError(
                    f"{step.place}: {step.source} has an upcaster already under another name of its class: "
                    f"{starts[source].place}; keep one of them"
                )
            starts[source] = step
            cls = self._class_of(source.type)
            if cls is not None and source.version >= cls.__schema_version__:
                raise UpcasterError(
                    f"{step.place}: {step.source} needs no upcaster, for {cls.__qualname__} has version "
                    f"{cls.__schema_version__}: give the class the version after the upcaster's"
                )
        passed: set[Stored] = set()
        for source in starts:
            self._follow(source, starts, (), passed)

    def _follow(
        self, stored: Stored, starts: Mapping[Stored, Step], behind: tuple[Stored, ...], passed: set[Stored]
    ) -> None:
        if stored in behind:
            circle = " -> ".join(map(str, (*behind[behind.index(stored) :], stored)))
            raise UpcasterError(f"{starts[behind[-1]].place}: the upcasters go round in a circle: {circle}")
        if stored in passed:
            return
        cls = self._class_of(stored.type)
        if cls is not None and stored.version == cls.__schema_version__:
            return
        step = starts.get(stored)
        if step is None:
            raise UpcasterError(f"{starts[behind[-1]].place}: it leads to {stored}, {_what_is_there(stored, cls)}")
        for target in step.targets:
            self._follow(self._current(target), starts, (*behind, stored), passed)
        passed.add(stored)

    def leads_on(self, stored: Stored) -> bool:
        """Whether an event that is stored so is read through an upcaster."""
        return self._step(stored) is not None

    def sources_of(self, cls: type[Event]) -> tuple[str, ...]:
        """Every stored name under which events may be found that are, or become, events of a class."""
        found = [cls.__event_type__, *cls.__aliases__]
        steps = [
            (step.source.type, {self._current(target).type for target in step.targets}) for step in self._steps.values()
        ]
        for name in found:
            found.extend({source for source, targets in steps if name in targets} - set(found))
        return tuple(found)

    def steps(self) -> Iterable[Step]:
        """Every upcaster, as it was added."""
        return tuple(self._steps.values())

    def upcast(
        self,
        type: str,
        schema_version: int,
        payload: str | bytes,
        *,
        class_of: Callable[[str], type[Event] | None] | None = None,
        stream_id: str = "",
        version: int = 0,
    ) -> Sequence[tuple[type[Event], bytes]]:
        """What a stored event has become: classes with payloads of their current versions, in order.

        Raises `UnknownEventType`, `EventTooNew`, `UpcasterMissing`, or `EventDecodeError` for an upcaster that
        raises, or returns what it did not promise.
        """
        place = (stream_id, version)
        try:
            # Not orjson: it would turn integers of more than 64 bits into floats.
            data = _object(json.loads(payload))
            parts = list(self._parts(Stored(type, schema_version), data, class_of or self._class_of, place))
            return [(cls, json.dumps(part, ensure_ascii=False, separators=(",", ":")).encode()) for cls, part in parts]
        except (ValueError, TypeError, RecursionError) as error:
            raise EventDecodeError(
                type,
                f"it has schema version {schema_version}, and what is stored, or what its upcasters make of it, is no "
                f"JSON object: {error}",
                stream_id=stream_id,
                version=version,
            ) from error

    def _parts(
        self, stored: Stored, data: Payload, class_of: Callable[[str], type[Event] | None], place: tuple[str, int]
    ) -> Iterator[tuple[type[Event], Payload]]:
        stream_id, version = place
        cls = class_of(stored.type)
        if cls is not None and stored.version == cls.__schema_version__:
            yield cls, data
            return
        step = self._step(stored)
        if step is None and cls is None:
            raise UnknownEventType(stored.type, stream_id=stream_id, version=version)
        if step is None:
            cls = cast("type[Event]", cls)
            error = EventTooNew if stored.version > cls.__schema_version__ else UpcasterMissing
            raise error(stored.type, stored.version, cls.__schema_version__, stream_id=stream_id, version=version)
        try:
            parts = list(_run(step, data))
        except Exception as error:
            raise EventDecodeError(
                stored.type,
                f"its upcaster {step.place} from version {stored.version} failed: {type(error).__name__}: {error}",
                stream_id=stream_id,
                version=version,
            ) from error
        for target, part in parts:
            # Parts may share what is in them, and the next upcaster may change it.
            yield from self._parts(target, part if len(parts) == 1 else deepcopy(part), class_of, place)

    def _step(self, stored: Stored) -> Step | None:
        step = self._steps.get(stored)
        if step is None and (cls := self._class_of(stored.type)) is not None:
            for name in (cls.__event_type__, *cls.__aliases__):
                if (step := self._steps.get(Stored(name, stored.version))) is not None:
                    break
        return step

    def _current(self, stored: Stored) -> Stored:
        """The same under the name that the class has now."""
        cls = self._class_of(stored.type)
        return stored if cls is None else Stored(cls.__event_type__, stored.version)


def _run(step: Step, data: Payload) -> Iterator[tuple[Stored, Payload]]:
    made = step.function(data)
    if step.into is None:
        yield next(step.targets), _object(made)
        return
    if not made:
        raise ValueError(
            "it returned no event: an event that means nothing any more is kept, and its handler does nothing"
        )
    for type_, part in made:
        if type_ not in step.into:
            raise ValueError(f"it returned an event {type_!r}, which is not in `into`")
        yield Stored(type_, step.into[type_]), _object(part)


def _object(made: Any) -> Payload:
    if not isinstance(made, dict):
        raise TypeError(f"a payload is a dict, not {type(made).__name__}")
    return cast("Payload", made)


def _what_is_there(stored: Stored, cls: type[Event] | None) -> str:
    if cls is None:
        return "and neither an upcaster nor a class is there: import the module that defines it, or correct the name"
    if stored.version > cls.__schema_version__:
        return f"but {cls.__qualname__} has version {cls.__schema_version__}: give the class that version"
    return f"and no upcaster goes on from there to version {cls.__schema_version__} of {cls.__qualname__}: add it"


UPCASTERS = Upcasters()
"""Those that `@upcaster` has marked."""


@overload
def upcaster(name: str, *, from_version: int) -> Callable[[_C], _C]: ...


@overload
def upcaster(name: str, *, from_version: int, into: Mapping[str, int]) -> Callable[[_S], _S]: ...


def upcaster(name: str, *, from_version: int, into: Mapping[str, int] | None = None) -> Callable[[Any], Any]:
    """Mark the function that turns a payload of an older version, as plain JSON values, into one of the next.

        @upcaster("deposited", from_version=1)
        def in_cents(data):
            return {"cents": data["euros"] * 100}

    With `into` the event becomes other ones, of these types at these versions, which the function returns in order:

        @upcaster("moved", from_version=1, into={"withdrawn": 1, "deposited": 2})
        def split(data):
            return [("withdrawn", {"cents": data["cents"]}), ("deposited", {"cents": data["cents"]})]

    It is run again at every reading, so it uses the payload alone. Nothing that is stored is changed. Opening a store
    checks that every upcaster leads to a class; raises `UpcasterError` if the version has an upcaster already.
    """

    def mark(function: Any) -> Any:
        UPCASTERS.add(Step(Stored(name, from_version), into, function))
        return function

    return mark


def stored_names(*classes: type[Event]) -> tuple[str, ...]:
    """Every name under which the journal may hold what is read as events of these classes today: for
    `EventFilter.types`, which are names as they are stored."""
    return tuple(dict.fromkeys(name for cls in classes for name in UPCASTERS.sources_of(cls)))
