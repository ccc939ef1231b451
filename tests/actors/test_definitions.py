"""Definition errors: what is wrong with a class is said when it is defined, with the class and the method."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel

from actors import (
    ActorSystem,
    Command,
    CommandRetention,
    DefinitionError,
    Match,
    PersistentActor,
    Restart,
    SnapshotPolicy,
    Stop,
    command_handler,
    event_handler,
)
from eventstore import Event, Projection
from tests.actors.notebook import Notebook, Page, Read, Wait, Write, Written

S = TypeVar("S")


class Do(Command[Any]):
    """Answered with whatever a handler returns."""


def _passed_through(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them for all kinds of functions."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


def _defined(**body: Any) -> type:
    return types.new_class("Bad", (PersistentActor[Page],), exec_body=lambda namespace: namespace.update(body))


def test_a_handler_without_an_annotation():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: annotate `command`.*`command: Deposit`"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command) -> int: ...


def test_an_event_handler_without_an_annotation():
    with pytest.raises(DefinitionError, match=r"\bBad\.added: annotate `event`.*`event: Deposited`"):

        class Bad(PersistentActor[Page]):
            @event_handler
            def added(self, event): ...


@pytest.mark.parametrize("count", [0, 2])
def test_a_handler_with_another_number_of_arguments(count: int):
    def none(self: Any) -> int: ...

    def two(self: Any, command: Wait, more: int) -> int: ...

    with pytest.raises(DefinitionError, match=r"\bBad\.add: a command_handler takes self and one argument"):

        class Bad(PersistentActor[Page]):
            add = command_handler(two if count else none)


def test_a_handler_whose_argument_is_keyword_only():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: a command_handler takes self and one argument"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, *, command: Wait) -> int: ...


def test_a_command_handler_for_what_is_no_command():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: .*a subclass of Command, not with int"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: int) -> int: ...


def test_a_command_handler_for_an_event():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: .*a subclass of Command, not with Written"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Written) -> int: ...


def test_an_event_handler_for_a_command():
    with pytest.raises(DefinitionError, match=r"\bBad\.added: .*a subclass of Event, not with Wait"):

        class Bad(PersistentActor[Page]):
            @event_handler
            def added(self, event: Wait) -> None: ...


def test_a_handler_for_every_command_there_is():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: .*a subclass of Command, not with Command"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Command[int]) -> int: ...


def test_a_union_with_something_that_is_no_command():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: .*not with str"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Wait | str) -> int: ...


def test_an_annotation_that_names_nothing():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: the annotation names 'Missing'"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Missing) -> int: ...  # noqa: F821


def test_two_handlers_for_one_command():
    with pytest.raises(DefinitionError, match=r"\bBad\.second: Wait already has a command_handler: .*\bBad\.first"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def first(self, command: Wait) -> int: ...

            @command_handler
            def second(self, command: Wait) -> int: ...


def test_two_handlers_for_one_event():
    with pytest.raises(DefinitionError, match=r"\bBad\.second: Written already has a event_handler: .*\bBad\.first"):

        class Bad(PersistentActor[Page]):
            @event_handler
            def first(self, event: Written) -> None: ...

            @event_handler
            def second(self, event: Written) -> None: ...


def test_a_second_handler_beside_an_inherited_one():
    with pytest.raises(DefinitionError, match=r"\bBad\.mine: Write already has a command_handler: .*\bBad\.write"):

        class Bad(Notebook):
            @command_handler
            def mine(self, command: Write) -> int: ...


def test_an_async_event_handler():
    with pytest.raises(DefinitionError, match=r"\bBad\.added: an event handler cannot be async"):

        class Bad(PersistentActor[Page]):
            @event_handler
            async def added(self, event: Written) -> None: ...


def test_a_handler_with_a_yield():
    # To call it makes a generator, and runs nothing: an event would be stored, and never be in the state.
    with pytest.raises(DefinitionError, match=r"\bBad\.added: it has a `yield`, so that to call it runs nothing"):

        class Bad(PersistentActor[Page]):
            @event_handler
            def added(self, event: Written) -> None:
                yield


@pytest.mark.parametrize("is_async", [False, True])
def test_a_command_handler_with_a_yield(is_async: bool):
    def plain(self: Any, command: Do) -> Any:
        yield

    async def asynchronous(self: Any, command: Do) -> Any:
        yield

    with pytest.raises(DefinitionError, match=r"\bBad\.do: it has a `yield`"):

        class Bad(PersistentActor[Page]):
            do = command_handler(asynchronous if is_async else plain)


def test_an_async_event_handler_that_a_decorator_has_made_plain():
    with pytest.raises(DefinitionError, match=r"\bBad\.added: an event handler cannot be async"):

        class Bad(PersistentActor[Page]):
            @event_handler
            @_passed_through
            async def added(self, event: Written) -> None: ...


@pytest.mark.parametrize("decorator", [staticmethod, classmethod, property])
@pytest.mark.parametrize("role", [command_handler, event_handler])
def test_a_handler_that_is_no_plain_method(decorator: Callable[..., Any], role: Callable[..., Any]):
    def handle(self: Any, given: Any) -> None: ...

    # Nothing would find it, and whoever is asked would have no handler.
    with pytest.raises(DefinitionError, match=rf"\bBad\.handle: it is a plain method that @{role.__name__} marks"):
        _defined(handle=decorator(role(handle)))


@pytest.mark.parametrize("name", ["persist", "recovered", "version", "key", "state", "kind", "handlers"])
def test_a_handler_by_the_name_of_what_every_actor_has(name: str):
    def handle(self: Any, command: Wait) -> int: ...

    with pytest.raises(DefinitionError, match=rf"\bBad\.{name}: every actor has something of that name"):
        _defined(**{name: command_handler(handle)})


def test_an_event_handler_that_returns_something():
    with pytest.raises(DefinitionError, match=r"\bBad\.added: it returns .*Page.* let it change self\.state"):

        class Bad(PersistentActor[Page]):
            @event_handler
            def added(self, event: Written) -> Page: ...


def test_a_reply_that_is_not_annotated():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: annotate what it returns: -> int"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Wait): ...


@pytest.mark.parametrize("name", ["write", "written"])
def test_an_override_without_the_decorator(name: str):
    role = "command_handler" if name == "write" else "event_handler"
    with pytest.raises(DefinitionError, match=rf"Bad\.{name} overrides a {role}: decorate it with @{role} too"):
        type("Bad", (Notebook,), {name: lambda self, it: None})


def test_an_override_without_the_decorator_between_two_decorated_ones():
    with pytest.raises(DefinitionError, match=r"\bMiddle\.write overrides a command_handler"):

        class Middle(Notebook):
            def write(self, command: Write) -> int: ...


def test_an_override_with_the_decorator_replaces_the_handler():
    class Loud(Notebook):
        @command_handler
        def write(self, command: Write) -> int: ...

    assert Loud.handlers.commands[Write].handle is Loud.write
    assert Notebook.handlers.commands[Write].handle is Notebook.write


def test_no_type_of_the_state():
    with pytest.raises(DefinitionError, match=r"\bBad: name the state's type: class Bad\(PersistentActor\[State\]\)"):

        class Bad(PersistentActor): ...


def test_a_state_that_cannot_be_made_without_arguments():
    class Strict(BaseModel):
        amount: int

    with pytest.raises(DefinitionError, match=r"\bBad: the state .*Strict.*defaults or define initial_state"):

        class Bad(PersistentActor[Strict]): ...


def test_such_a_state_with_an_initial_state_of_its_own_is_fine():
    class Strict(BaseModel):
        amount: int

    class Good(PersistentActor[Strict]):
        def initial_state(self) -> Strict:
            return Strict(amount=7)

    assert Good.kind == "Good"


def test_a_state_that_pydantic_cannot_handle():
    class Opaque: ...

    with pytest.raises(DefinitionError, match=r"\bBad: pydantic cannot validate the state"):

        class Bad(PersistentActor[Opaque]): ...


def test_a_constructor():
    with pytest.raises(DefinitionError, match=r"\bBad\.__init__: .*initial_state.*recovered"):

        class Bad(PersistentActor[Page]):
            def __init__(self) -> None: ...


@pytest.mark.parametrize("kind", ["a-b", "-", "", 5, b"a"])
def test_a_kind_with_a_dash_or_without_a_name(kind: Any):
    with pytest.raises(DefinitionError, match=r"\bBad: a kind is a name without a dash"):

        class Bad(PersistentActor[Page], kind=kind): ...


async def test_two_classes_of_one_kind_in_one_system():
    class Other(Notebook, kind="Notebook"): ...

    async with ActorSystem("memory://") as system:
        system.ref(Notebook, "a")
        with pytest.raises(DefinitionError, match=r"\bOther and tests\.actors\.notebook\.Notebook are both of kind"):
            system.ref(Other, "b")


async def test_two_classes_of_one_kind_in_two_systems_are_fine():
    class Other(Notebook, kind="Notebook"): ...

    async with ActorSystem("memory://") as one, ActorSystem("memory://") as another:
        one.ref(Notebook, "a")
        another.ref(Other, "a")


@pytest.mark.parametrize("version", [0, 2**31])
def test_a_schema_version_that_no_database_holds(version: int):
    with pytest.raises(DefinitionError, match=r"\bBad: an event's schema version is 1 to 2147483647"):

        class Bad(Event, version=version): ...


def test_two_events_of_one_name():
    class First(Event, name="tests.first"): ...

    with pytest.raises(DefinitionError, match=r"\bSecond: the stored name 'tests.first' already belongs to .*First"):

        class Second(Event, name="tests.first"): ...

    assert First.__event_type__ == "tests.first"


def test_a_reply_that_the_command_does_not_promise():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: it returns str, but Wait is a Command\[int\]"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Wait) -> str: ...


def test_a_reply_of_nothing_where_one_is_promised():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: it returns NoneType, but Wait is a Command\[int\]"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Wait) -> None: ...


def test_a_reply_that_an_async_handler_does_not_keep():
    with pytest.raises(DefinitionError, match=r"\bBad\.add: it returns str, but Wait is a Command\[int\]"):

        class Bad(PersistentActor[Page]):
            @command_handler
            async def add(self, command: Wait) -> str: ...


def test_a_reply_that_a_command_of_a_command_promises():
    class Later(Wait): ...

    with pytest.raises(DefinitionError, match=r"\bBad\.add: it returns str, but \S+\.Later is a Command\[int\]"):

        class Bad(PersistentActor[Page]):
            @command_handler
            def add(self, command: Later) -> str: ...


class Measure(Command[float]): ...


class Ask(Command[Any]): ...


@pytest.mark.parametrize(
    ("command", "returned"), [(Wait, bool), (Ask, str), (Read, list[str]), (Measure, float), (Measure, int)]
)
def test_a_reply_that_type_checkers_accept(command: type[Command[Any]], returned: Any):
    def add(self: Any, command: Any) -> Any: ...

    # PEP 484: where a float is expected, an int is acceptable.
    add.__annotations__ = {"command": command, "return": returned}
    types.new_class("Good", (PersistentActor[Page],), exec_body=lambda body: body.update(add=command_handler(add)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SnapshotPolicy(every=0),
        lambda: SnapshotPolicy(keep=0),
        lambda: Restart(first_pause_seconds=-1),
        lambda: Restart(first_pause_seconds=2, longest_pause_seconds=1),
        lambda: Restart(window_seconds=0),
    ],
)
def test_a_policy_that_makes_no_sense(make: Callable[[], object]):
    with pytest.raises(DefinitionError):
        make()


@pytest.mark.parametrize(
    ("base", "option", "known"),
    [(PersistentActor[Page], "name", "kind"), (Event, "kind", "name, version"), (Projection, "kind", "name, kinds")],
)
def test_an_option_that_no_class_has_is_named_with_those_that_there_are(base: Any, option: str, known: str):
    with pytest.raises(DefinitionError, match=rf"Bad: {option}=… is no option of such a class; there are: {known}"):
        types.new_class("Bad", (base,), {option: "x"})


def test_a_mixin_gets_the_options_that_it_takes():
    class Mixin:
        def __init_subclass__(cls, *, colour: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            cls.colour = colour

    class Red(Notebook, Mixin, colour="red"): ...

    assert (Red.colour, Red.kind) == ("red", "Red")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"snapshot_policy": 100}, r"Bad\.snapshot_policy is a SnapshotPolicy\(every=…\), not 100"),
        ({"snapshots": SnapshotPolicy(every=4)}, r"Bad\.snapshots has no effect: .* is set as snapshot_policy"),
        ({"retention": CommandRetention(count=4)}, r"Bad\.retention has no effect: .* is set as command_retention"),
        ({"policy": Stop()}, r"Bad\.policy has no effect: a Stop is set as supervision"),
        ({"snapshot_policy": SnapshotPolicy}, r"not <class .*SnapshotPolicy"),
        (
            {"command_retention": 5},
            r"Bad\.command_retention is a CommandRetention\(count=…, seconds=…\) or None, not 5",
        ),
    ],
)
def test_a_policy_of_another_type(body: dict[str, Any], message: str):
    with pytest.raises(DefinitionError, match=message):
        types.new_class("Bad", (PersistentActor[Page],), exec_body=lambda given: given.update(body))


def test_a_policy_that_another_one_is_made_of_may_have_a_name():
    class Named(PersistentActor[Page]):
        seldom = Restart(max_restarts=3)
        else_ = Stop()
        supervision = Match({TimeoutError: seldom}, otherwise=else_)

    assert Named.supervision.policies == {TimeoutError: Named.seldom}


@pytest.mark.parametrize("name", ["ask_timeout", "max_live", "recovery_timeout", "shutdown_timeout"])
@pytest.mark.parametrize("value", ["5", float("nan")])
def test_a_setting_that_is_no_number(name: str, value: Any):
    options: dict[str, Any] = {name: value}
    with pytest.raises(DefinitionError, match=f"ActorSystem: {name} is a number, not {value!r}"):
        ActorSystem("memory://", **options)


# What must work


def test_local_classes_are_found_by_annotations_that_are_strings():
    class Local(Command[int]): ...

    class Happened(Event, name="tests.local"): ...

    class Inner(PersistentActor[Page]):
        @command_handler
        def handle(self, command: Local) -> int: ...

        @event_handler
        def happened(self, event: Happened) -> None: ...

    assert list(Inner.handlers.commands) == [Local]
    assert list(Inner.handlers.events) == [Happened]


def test_a_generic_base_of_actors_is_no_actor_yet():
    class Base(PersistentActor[S], Generic[S]):
        @command_handler
        def read(self, command: Read) -> list[str]: ...

    class Actual(Base[Page]): ...

    assert list(Actual.handlers.commands) == [Read]
    assert Actual.kind == "Actual"


def test_a_mixin_brings_its_handlers():
    class Mixin:
        @command_handler
        def wait(self, command: Wait) -> int: ...

    class Mixed(Mixin, Notebook): ...

    assert Mixed.handlers.commands[Wait].name == "wait"


def test_the_kind_is_the_name_of_the_class_unless_it_is_given():
    class Given(Notebook, kind="another"): ...

    class Inheriting(Given): ...

    assert (Given.kind, Inheriting.kind) == ("another", "Inheriting")


@pytest.mark.parametrize("state", [dict[str, int], list[int], int, str, None, Page], ids=str)
def test_any_type_that_can_be_made_without_arguments_is_a_state(state: Any):
    actor = types.new_class("Good", (PersistentActor[state],))
    assert actor.state_type.initial() == (None if state is None else state())
