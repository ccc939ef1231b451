"""The replicated data types: what each promises, and that the order of concurrent changes makes no difference."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from actors import ReplicatedActor, event_handler
from actors.crdt import GCounter, LWWRegister, MVRegister, ORMap, ORSet, PNCounter
from actors.replicas.convergence_check import converges
from backends.conformance.cases import case
from eventstore import Event
from eventstore.stamp import Stamp
from eventstore.vector_clock import VectorClock

Change = tuple[Stamp, Callable[[Any], None]]


class Writer:
    """One replica that writes changes, and sees others'."""

    def __init__(self, name: str, times: random.Random) -> None:
        self.name = name
        self.clock = VectorClock()
        self.latest = 0
        self.known: list[Change] = []
        self._times = times

    def write(self, change: Callable[[Any, Stamp], None]) -> Change:
        self.clock = self.clock.incremented(self.name)
        self.latest += self._times.randrange(1, 4)
        stamp = Stamp(self.name, self.clock[self.name], self.clock, self.latest)
        made = stamp, lambda state: change(state, stamp)
        self.known.append(made)
        return made

    def see(self, other: Writer) -> None:
        for stamp, change in other.known:
            if self.clock[stamp.origin] < stamp.sequence:
                self.known.append((stamp, change))
                self.clock = self.clock.merge(stamp.clock)
                self.latest = max(self.latest, stamp.time)


def changes_of(kind: str, chance: random.Random) -> Callable[[Any, Stamp], None]:
    amount, element = chance.randrange(1, 5), chance.choice("xyz")
    is_addition = chance.random() < 0.6
    match kind:
        case "GCounter":
            return lambda state, stamp: state.add(amount, stamp)
        case "PNCounter":
            return lambda state, stamp: state.add(amount if is_addition else -amount, stamp)
        case "LWWRegister" | "MVRegister":
            return lambda state, stamp: state.set(f"{element}{amount}", stamp)
        case "ORSet" if chance.random() < 0.1:
            return lambda state, stamp: state.clear(stamp)
        case "ORSet":
            return lambda state, stamp: (state.add if is_addition else state.remove)(element, stamp)
        case _:
            if is_addition:
                return lambda state, stamp: state.set(element, amount, stamp)
            return lambda state, stamp: state.remove(element, stamp)


EMPTY: dict[str, Callable[[], BaseModel]] = {
    "GCounter": GCounter,
    "PNCounter": PNCounter,
    "LWWRegister": LWWRegister[str],
    "MVRegister": MVRegister[str],
    "ORSet": ORSet[str],
    "ORMap": ORMap[str, int],
}


@pytest.mark.parametrize("kind", list(EMPTY))
def test_every_order_that_keeps_causes_before_effects_leads_to_one_state(kind: str) -> None:
    chance = random.Random(kind)
    differing = 0
    for _ in range(300):
        writers = [Writer(name, chance) for name in "abc"]
        for _ in range(9):
            one, other = chance.sample(writers, 2)
            one.write(changes_of(kind, chance))
            if chance.random() < 0.4:
                other.see(one)
        for writer in writers:
            for other in writers:
                writer.see(other)
        orders = [writer.known for writer in writers]
        differing += orders[0] != orders[1]
        states = [state_of(kind, order) for order in orders]
        canonical = state_of(kind, sorted(orders[0], key=lambda change: change[0].key))
        assert states[0] == states[1] == states[2] == canonical
        model = type(canonical)
        assert model.model_validate_json(canonical.model_dump_json()) == canonical
    assert differing > 200


def state_of(kind: str, changes: list[Change]) -> BaseModel:
    state = EMPTY[kind]()
    for _, change in changes:
        change(state)
    return state


def stamps(*names: str) -> list[Stamp]:
    """Events that do not know each other, at one time."""
    return [Stamp(name, 1, VectorClock({name: 1}), 5) for name in names]


@case("C256")
def test_a_counter_counts_every_replica() -> None:
    a, b = stamps("a", "b")
    counter, both = GCounter(), PNCounter()
    counter.add(2, a)
    counter.add(3, b)
    assert counter.value == 5
    assert counter.parts == {"a": 2, "b": 3}
    both.add(2, a)
    both.add(-5, b)
    assert both.value == -3
    with pytest.raises(ValueError, match="only grows"):
        counter.add(-1, a)


@case("C254")
def test_the_lower_replica_wins_at_one_time() -> None:
    a, b = stamps("a", "b")
    for order in ((a, b), (b, a)):
        register = LWWRegister[str]()
        for stamp in order:
            register.set(stamp.origin, stamp)
        assert register.value == "a"


def test_values_that_did_not_know_each_other_stay_both() -> None:
    a, b = stamps("a", "b")
    register = MVRegister[str]()
    register.set("from a", a)
    register.set("from b", b)
    assert sorted(register.values) == ["from a", "from b"]
    register.set("agreed", Stamp("a", 2, VectorClock({"a": 2, "b": 1}), 6))
    assert register.values == ["agreed"]


@case("C257")
def test_an_addition_wins_over_a_removal_that_did_not_know_it() -> None:
    first = Stamp("a", 1, VectorClock({"a": 1}), 1)
    again = Stamp("a", 2, VectorClock({"a": 2}), 2)
    removal = Stamp("b", 1, VectorClock({"a": 1, "b": 1}), 9)
    for is_removed_first in (True, False):
        items = ORSet[str]()
        items.add("x", first)
        if is_removed_first:
            items.remove("x", removal)
            items.add("x", again)
        else:
            items.add("x", again)
            items.remove("x", removal)
        assert "x" in items
        assert items.elements == {"x"}
        items.remove("x", Stamp("b", 2, VectorClock({"a": 2, "b": 2}), 10))
        assert len(items) == 0
        items.add("x", Stamp("a", 3, VectorClock({"a": 3, "b": 2}), 11))
        assert list(items) == ["x"]


def test_a_map_keeps_the_value_that_is_in_force() -> None:
    old = Stamp("b", 1, VectorClock({"b": 1}), 100)
    other = Stamp("a", 1, VectorClock({"a": 1}), 50)
    removal = Stamp("b", 2, VectorClock({"b": 2}), 101)
    for order in ("old other removal", "old removal other", "other old removal"):
        items = ORMap[str, int]()
        for name in order.split():
            match name:
                case "old":
                    items.set("k", 1, old)
                case "other":
                    items.set("k", 2, other)
                case _:
                    items.remove("k", removal)
        assert items.items() == {"k": 2}
        assert (items.get("k"), items.get("none", 7)) == (2, 7)


class Tagged(Event):
    tag: str


class Untagged(Event):
    tag: str


class Tags(BaseModel):
    tags: ORSet[str] = ORSet[str]()
    changes: PNCounter = PNCounter()


class Document(ReplicatedActor[Tags]):
    @event_handler
    def tagged(self, event: Tagged) -> None:
        self.state.tags.add(event.tag, self.stamp)
        self.state.changes.add(1, self.stamp)

    @event_handler
    def untagged(self, event: Untagged) -> None:
        self.state.tags.remove(event.tag, self.stamp)
        self.state.changes.add(-1, self.stamp)


def test_an_actor_with_such_a_state() -> None:
    assert converges(Document, eu=[Tagged(tag="x"), Untagged(tag="x")], us=[Tagged(tag="x")], ap=[Untagged(tag="x")])


def test_default_values_are_not_shared() -> None:
    (stamp,) = stamps("a")
    one, other = Tags(), Tags()
    one.tags.add("x", stamp)
    assert other == Tags()
