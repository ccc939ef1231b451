"""States, replies and rejections come back as what they were, or are not kept at all."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from pydantic import BaseModel, Field, SecretStr, computed_field

from actors import (
    ActorSystem,
    Command,
    CommandRejected,
    DefinitionError,
    DuplicateCommandMismatch,
    PersistentActor,
    ReplicatedActor,
    SnapshotPolicy,
    command_handler,
    event_handler,
    fold,
)
from eventstore import Event, EventStore, ReplyEncodeError, Snapshot
from tests.actors.notebook import until


class Put(Event, name="tests.round-put"):
    name: str
    value: float


class Set(Command[None]):
    name: str
    value: float = 0.0


class Get(Command[Any]):
    pass


class Shape(BaseModel):
    size: float | None = None


class Circle(Shape):
    radius: float = 0.0


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Contents(BaseModel):
    amount: float = Field(0, alias="theAmount")
    limit: float | None = None
    shape: Shape = Shape()
    notes: dict[str, float] = {}
    colour: Colour = Colour.BLUE

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> float:
        return 2 * self.amount


class Box(PersistentActor[Contents]):
    snapshot_policy = SnapshotPolicy(every=1, keep=10)

    @command_handler
    def put(self, command: Set) -> None:
        self.persist(Put(name=command.name, value=command.value))

    @event_handler
    def has_put(self, event: Put) -> None:
        state = self.state
        match event.name:
            case "amount":
                state.amount += event.value
            case "limit":
                state.limit = event.value
            case "size":
                state.shape = Shape(size=event.value)
            case "radius":
                state.shape = Circle(radius=event.value)
            case _:
                state.notes[event.name] = event.value


@pytest_asyncio.fixture
async def system() -> AsyncIterator[ActorSystem]:
    async with ActorSystem("memory://") as system:
        yield system


async def snapshots(system: ActorSystem, actor: type[PersistentActor[Any]]) -> list[int]:
    """The versions of those that were taken, once the last is stored."""
    await until(lambda: not system._runtime._upkeep.saves)
    found = await system.store.snapshots(f"{actor.kind}-a")
    assert all(isinstance(each, Snapshot) for each in found)
    return sorted(each.version for each in found)


@pytest.mark.parametrize(
    ("name", "value"), [("amount", 3.0), ("limit", math.inf), ("size", -math.inf), ("a note", math.inf)]
)
async def test_a_state_from_a_snapshot_is_that_from_all_events(system: ActorSystem, name: str, value: float):
    box = system.ref(Box, "a")
    for _ in range(3):
        await box.ask(Set(name=name, value=value))
    assert (await snapshots(system, Box))[-1] == 3
    by_snapshot, by_events = [await fold(system.store, Box, "a", use_snapshots=is_used) for is_used in (True, False)]
    assert by_snapshot.snapshot_version == 3
    assert by_snapshot.state == by_events.state


async def test_a_state_that_would_be_read_as_another_is_not_kept_and_that_is_said_once(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class Shaped(Box):
        pass

    box = system.ref(Shaped, "a")
    with caplog.at_level(logging.ERROR):
        await box.ask(Set(name="size", value=1))
        await snapshots(system, Shaped)
        for value in (2.0, 3.0):
            await box.ask(Set(name="radius", value=value))
        await box.ask(Set(name="size", value=4))
        assert await snapshots(system, Shaped) == [1, 4]
    [said] = [record for record in caplog.records if "no snapshot was taken" in record.message]
    assert "shape, a Circle, would be read as a Shape" in said.message
    assert system.stats().failures == {}


async def test_nor_when_the_actor_leaves_memory(caplog: pytest.LogCaptureFixture):
    class Leaving(Box):
        snapshot_policy = SnapshotPolicy(on_passivation=True)

    async with EventStore.open("memory://") as store:
        for name, taken in (("radius", 0), ("size", 1)):
            async with ActorSystem(store) as system:
                await system.ref(Leaving, "a").ask(Set(name=name, value=1))
            assert len(await store.snapshots("Leaving-a")) == taken
    assert "would be read as a Shape" in caplog.text


@pytest.mark.parametrize(
    ("field", "annotation", "found"),
    [(Field(default=0, exclude=True), int, "excluded"), (Field(default=None), SecretStr | None, "asterisks")],
)
def test_a_state_that_cannot_come_back_is_refused_when_the_class_is_defined(field: Any, annotation: Any, found: str):
    inner = type("Inner", (BaseModel,), {"__annotations__": {"hidden": annotation}, "hidden": field})
    outer = type("Outer", (BaseModel,), {"__annotations__": {"parts": list[inner]}, "parts": []})  # type: ignore[valid-type]
    with pytest.raises(
        DefinitionError, match=rf"Hiding: its state's Outer\.parts\.hidden would not come back.*{found}"
    ):

        class Hiding(PersistentActor[outer]):  # type: ignore[valid-type]
            pass


class Total(BaseModel):
    total: int = Field(0, alias="runningTotal")
    shape: Shape = Shape()


class Added(Event, name="tests.round-added"):
    number: int


class Add(Command[int]):
    number: int


class Sum(ReplicatedActor[Total]):
    @command_handler
    def add(self, command: Add) -> int:
        if command.number:
            self.persist(Added(number=command.number))
        return self.state.total

    @event_handler
    def added(self, event: Added) -> None:
        self.state.total += event.number


class RoundSum(Sum):
    @event_handler
    def added(self, event: Added) -> None:
        # No checkpoint of it can be used.
        shape = self.state.shape
        self.state.shape = Circle(radius=(shape.radius if isinstance(shape, Circle) else 0.0) + 1)
        self.state.total = round(self.state.shape.radius)


@pytest.mark.parametrize(("actor", "expected"), [(Sum, 1140), (RoundSum, 141)])
async def test_replicas_converge_over_checkpoints_of_such_a_state(actor: type[Sum], expected: int):
    async with (
        EventStore.open("memory://") as one,
        EventStore.open("memory://") as two,
        ActorSystem(one, replica="a", peers={"b": two}, replication_seconds=None) as a,
        ActorSystem(two, replica="b", peers={"a": one}, replication_seconds=None) as b,
    ):
        for _ in range(70):
            await a.ref(actor, "x").ask(Add(number=1))
        await b.ref(actor, "x").ask(Add(number=1000))
        for _ in range(70):
            await a.ref(actor, "x").ask(Add(number=1))
        for here, other in ((a, "b"), (b, "a")):
            while await here.replication.pull_from(other):
                pass
        assert [await each.ref(actor, "x").ask(Add(number=0)) for each in (a, b)] == [expected, expected]


class Report(BaseModel):
    total: int = Field(alias="Total")
    limit: float | None = None


class AskFloat(Command[float | None]):
    kind: float | None


class AskReport(Command[Report]):
    pass


class AskShape(Command[Shape]):
    pass


class AskNumber(Command[int]):
    pass


class Refuse(Command[None]):
    what: int


class Over(CommandRejected):
    def __init__(self, limit: Any) -> None:
        super().__init__("over the limit", limit)
        self.limit = limit


LIMITS: list[Any] = [
    math.inf,
    10**30,
    Decimal("3.50"),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    date(2026, 1, 2),
    timedelta(days=-1, microseconds=1),
    UUID(int=5),
    b"\xff",
    (1, (Decimal(1), None)),
    [{"a": math.inf, "$type": "float"}, "x", 1.5, True],
    {"$type": "dict", "value": {"b": (1,)}},
]


class Oracle(PersistentActor[list[int]]):
    @command_handler
    def number(self, command: AskFloat) -> float | None:
        return command.kind

    @command_handler
    def report(self, command: AskReport) -> Report:
        return Report(Total=3, limit=math.inf)  # type: ignore[call-arg]

    @command_handler
    def shape(self, command: AskShape) -> Shape:
        return Circle(radius=4111)

    @command_handler
    def wrong(self, command: AskNumber) -> int:
        return "4111-1111"  # type: ignore[return-value]

    @command_handler
    def refuse(self, command: Refuse) -> None:
        raise Over(LIMITS[command.what])


@pytest.mark.parametrize("command", [AskFloat(kind=math.inf), AskFloat(kind=None), AskFloat(kind=1.5), AskReport()])
async def test_a_reply_is_the_same_when_it_is_asked_for_again(system: ActorSystem, command: Command[Any]):
    oracle = system.ref(Oracle, "a")
    first = await oracle.ask(command, command_id="1")
    assert await oracle.ask(command, command_id="1") == first


@pytest.mark.parametrize(
    ("command", "found"),
    [(AskShape(), "it, a Circle, would be read as a Shape"), (AskNumber(), "it is a str")],
)
async def test_a_reply_that_would_not_be_the_same_is_refused_and_not_told(
    system: ActorSystem, command: Command[Any], found: str
):
    with pytest.raises(ReplyEncodeError, match=found) as raised:
        await system.ref(Oracle, "a").ask(command, command_id="1")
    assert "4111" not in f"{raised.value}{raised.value.__cause__}"
    assert await system.store.version("Oracle-a") == 0


@pytest.mark.parametrize("what", range(len(LIMITS)), ids=lambda what: repr(LIMITS[what]))
async def test_what_a_rejection_carries_is_the_same_when_it_is_asked_for_again(system: ActorSystem, what: int):
    limits: list[Any] = []
    for _ in range(2):
        with pytest.raises(Over, match="over the limit") as raised:
            await system.ref(Oracle, "a").ask(Refuse(what=what), command_id="1")
        assert raised.value.args == ("over the limit", raised.value.limit)
        limits.append(raised.value.limit)
    assert limits == [LIMITS[what]] * 2
    assert type(limits[0]) is type(limits[1])


async def test_a_command_with_infinity_is_another_than_one_with_none(system: ActorSystem):
    oracle = system.ref(Oracle, "a")
    await oracle.ask(AskFloat(kind=math.inf), command_id="1")
    with pytest.raises(DuplicateCommandMismatch):
        await oracle.ask(AskFloat(kind=None), command_id="1")
