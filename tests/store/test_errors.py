"""Errors: what they say survives pickling, and a wrong call is told what to do."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from actors import ActorSystem, Command, DefinitionError, InvalidCommandId, PersistentActor, command_handler
from actors.state import ReadAsAnother
from eventstore import Event, EventStore, Expected, InvalidArgument, NewEvent, errors
from eventstore.audit import find
from eventstore.contract.audit_query import AuditQuery
from eventstore.errors import CommandRejected, EventStoreError, NotReplicated
from eventstore.vector_clock import VectorClock


class Placed(Event, name="tests.errors-placed"):
    item: str


class Do(Command[int]):
    pass


class Doing(PersistentActor[list[int]]):
    @command_handler
    def do(self, command: Do) -> int:
        return 1


class OverLimit(CommandRejected):
    def __init__(self, limit: int, *, unit: str) -> None:
        super().__init__(f"no more than {limit} {unit}")
        self.limit = limit
        self.unit = unit


CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, EventStoreError)]


def made(cls: type[EventStoreError]) -> EventStoreError:
    """One of them, made as its own `__init__` wants it."""
    if not inspect.isfunction(cls.__init__):
        return cls("what happened")
    arguments: dict[str, Any] = {}
    for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
        kind = str(parameter.annotation).partition(" |")[0]
        samples = {"str": "text", "int": 7, "float": 1.5, "BaseException": KeyError("k"), "object": {"a": 1}}
        arguments[parameter.name] = samples.get(kind, ["a", "b"])
    positional = [
        arguments.pop(parameter.name)
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return cls(*positional, **arguments)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_says_the_same_after_it_was_pickled(cls: type[EventStoreError]):
    error = made(cls)
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


def test_so_does_a_rejection_of_the_users_own_and_one_with_a_clock():
    again = pickle.loads(pickle.dumps(OverLimit(3, unit="books")))
    assert (str(again), again.limit, again.unit) == ("no more than 3 books", 3, "books")
    behind = NotReplicated("s", VectorClock({"a": 1}), known=["a"], missing=["b"], reply=1)
    assert pickle.loads(pickle.dumps(behind)).clock == VectorClock({"a": 1})
    assert str(pickle.loads(pickle.dumps(ReadAsAnother("x")))) == "x"


@pytest_asyncio.fixture
async def store() -> AsyncIterator[EventStore]:
    async with EventStore.open("memory://") as store:
        yield store


@pytest.mark.parametrize("event", [Placed(item="x"), NewEvent(Placed(item="x"))])
async def test_one_event_without_a_list_is_told_to_be_given_in_one(store: EventStore, event: Any):
    with pytest.raises(InvalidArgument, match="give a list"):
        await store.append("o-1", event)
    assert await store.version("o-1") == 0


@pytest.mark.parametrize("events", [["text"], [{"item": "x"}], "text", [Placed], [None], [(Placed(item="x"), None)]])
async def test_what_is_no_event_is_not_appended(store: EventStore, events: Any):
    with pytest.raises(
        InvalidArgument, match="is no event: give instances of Event or of NewEvent; nothing was stored"
    ):
        await store.append("o-1", events)
    assert await store.version("o-1") == 0


async def test_no_version_is_expected_that_cannot_be(store: EventStore):
    wrong: Any
    for wrong in (-7, -1, "0", 1.5, None):
        with pytest.raises(InvalidArgument, match=f"expected_version .*'o-1'.* not {wrong!r}"):
            await store.append("o-1", [Placed(item="x")], expected_version=wrong)
    await store.append("o-1", [Placed(item="x")], expected_version=Expected.ANY)
    await store.append("o-1", [Placed(item="x")], expected_version=Expected.STREAM_EXISTS)


@pytest.mark.parametrize("page_size", [0, -1])
@pytest.mark.parametrize(
    "read",
    [
        lambda store, size: store.read("o-1", page_size=size),
        lambda store, size: store.read_all(page_size=size),
        lambda store, size: store.subscribe(page_size=size),
        lambda store, size: store.streams(page_size=size),
        lambda store, size: store.holdings(page_size=size),
        lambda store, size: store.tenants(page_size=size),
        lambda store, size: store.removals(page_size=size),
    ],
)
async def test_pages_of_nothing_are_refused(store: EventStore, read: Callable[[EventStore, int], Any], page_size: int):
    await store.append("o-1", [Placed(item="x")])
    with pytest.raises(InvalidArgument, match="page_size .* 1 or more"):
        async for _ in read(store, page_size):
            break


@pytest.mark.parametrize("command_id", [uuid4(), 7, b"x"])
async def test_a_command_id_that_is_no_text_is_told_to_be_one(store: EventStore, command_id: Any):
    async with ActorSystem(store) as system:
        with pytest.raises(InvalidCommandId, match="a command id is text, not a"):
            await system.ref(Doing, "a").ask(Do(), command_id=command_id)


@pytest.mark.parametrize("command_id", [None, "x"])
async def test_a_class_is_no_command(store: EventStore, command_id: str | None):
    async with ActorSystem(store) as system:
        doing = system.ref(Doing, "a")
        await doing.ask(Do())
        with pytest.raises(DefinitionError, match="a command is an instance of"):
            await doing.ask(Do, command_id=command_id)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda store: store.read("o-1", limit=-1), "limit"),
        (lambda store: store.read_all(limit=-1), "limit"),
        (lambda store: store.read_all(last=-1), "last"),
        (lambda store: store.subscribe(last=-1), "last"),
        (lambda store: find(store, AuditQuery(), limit=-1), "limit"),
    ],
)
async def test_fewer_than_none_are_refused(store: EventStore, read: Callable[[EventStore], Any], name: str):
    await store.append("o-1", [Placed(item="x")])
    with pytest.raises(InvalidArgument, match=f"{name} .* 0 or more, not -1"):
        async for _ in read(store):
            break


async def test_a_page_and_snapshots_of_fewer_than_none_are_refused(store: EventStore):
    for asked in (store.read_page(limit=-1), store.snapshots("o-1", limit=-1)):
        with pytest.raises(InvalidArgument, match="limit .* 0 or more, not -1"):
            await asked
