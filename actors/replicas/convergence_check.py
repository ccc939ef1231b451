"""converges: whether an actor comes to one state, in whatever order its replicas learn of each other's events."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import factorial, prod
from typing import Any, NamedTuple, cast

from actors.actor import new_actor, stream_id_of
from actors.kit_failure import KitFailure
from actors.replaying.replay import ReadOnlyStage
from actors.replicas.convergence import Entry, History
from actors.replicas.replicated_actor import ReplicatedActor
from eventstore.codec import encode_event
from eventstore.events import Event
from eventstore.stamp import Stamp

# Histories with no more orders than this are tried in all of them; of others so many are drawn.
_ALL_ORDERS = 720
_DRAWN_ORDERS = 200

# A rule that throws dice may agree with itself once or twice.
_TRIES = 5


class Site:
    """A replica without a journal: what it has written and received, in that order, and the state of it."""

    def __init__(self, actor: type[ReplicatedActor[Any]], name: str, key: str = "test") -> None:
        self.name = name
        self.log: list[Entry] = []
        self.actor = cast("ReplicatedActor[Any]", new_actor(actor, ReadOnlyStage(stream_id_of(actor, key))))
        self.history = History(self.actor)

    def write(self, event: Event, wall: int) -> Entry:
        """Write an event when the wall clock shows a time."""
        stamp = self.history.next_stamp(self.name, max(wall, self.history.latest + 1))
        entry = entry_of(event, stamp, len(self.log) + 1)
        self.history.append(entry, event)
        self.log.append(entry)
        return entry

    def receive(self, entries: Sequence[Entry]) -> None:
        """Take what is not known yet of another's log, in its order."""
        new: list[Entry] = []
        known = self.history.clock
        for entry in entries:
            if known[entry.stamp.origin] < entry.stamp.sequence:
                known = known.merge(entry.stamp.clock)
                new.append(entry._replace(version=len(self.log) + len(new) + 1))
        if new:
            self.history.extend(new)
            self.log += new

    @property
    def state(self) -> bytes:
        """The state as JSON."""
        return self.actor.state_type.dump(self.actor.state)


class _Step(NamedTuple):
    """A replica writes its next event, or receives what another has."""

    site: str
    source: str | None

    def __str__(self) -> str:
        return f"{self.site} writes" if self.source is None else f"{self.site} receives from {self.source}"


class _Diverged(NamedTuple):
    """How two readers of the same events came to different states."""

    events: Mapping[str, Sequence[Event]]
    story: Sequence[str]
    states: tuple[bytes, bytes]


def converges(
    actor: type[ReplicatedActor[Any]],
    *events: Event,
    seed: int = 0,
    schedules: int = 200,
    **by_replica: Sequence[Event],
) -> int:
    """Check that replicas that know the same events have the same state. Returns how many schedules were tried.

        converges(Cart, Added(item="book"), Removed(item="book"), Added(item="pen"))
        converges(Cart, eu=[Added(item="book"), Removed(item="book")], us=[Added(item="pen")])

    Events given by themselves are each written by a replica of their own; by name, one replica writes several, one
    after the other. First nobody knows of the others: the events are written, and then learnt, in every order there is,
    or in orders drawn by `seed` where there are too many. Then replicas write and learn in turn, in as many drawn
    `schedules`. Raises `KitFailure`, with the shortest schedule that was found to end in two states.
    """
    histories = {f"replica{number}": [event] for number, event in enumerate(events, 1)}
    histories |= {name: list(given) for name, given in by_replica.items()}
    chance = random.Random(seed)  # noqa: S311 - schedules, not secrets
    tried = 0
    for writing in _orders(histories, chance):
        found, orders = _any_order(actor, histories, writing, chance)
        tried += orders
        if found is not None:
            raise _failure(actor, _smaller(found, lambda smaller: _in_any_order(actor, smaller)))
    for _ in range(schedules):
        steps = _drawn(histories, chance)
        tried += 1
        diverged = _run(actor, histories, steps)
        if diverged is not None:
            raise _failure(actor, _shorter(actor, histories, steps, diverged))
    return tried


def entry_of(event: Event, stamp: Stamp, version: int) -> Entry:
    """An event as a history holds it."""
    event_id, type_, schema_version, payload, _, _, checksum, _ = encode_event(event)
    return Entry(stamp.key, stamp, event_id, version, type_, schema_version, payload, checksum)


# Nobody knows of the others


def _orders(histories: Mapping[str, Sequence[Event]], chance: random.Random) -> Iterator[list[str]]:
    """Ways to put the events of all replicas in one order that keeps each replica's own, as names in turn."""
    names = [name for name, events in histories.items() for _ in events]
    count = factorial(len(names)) // prod(factorial(len(events)) for events in histories.values())
    if count <= _ALL_ORDERS:
        yield from _permuted({name: len(events) for name, events in histories.items()})
        return
    for _ in range(_DRAWN_ORDERS):
        chance.shuffle(names)
        yield list(names)


def _permuted(left: dict[str, int]) -> Iterator[list[str]]:
    if not any(left.values()):
        yield []
    for name in [name for name, count in left.items() if count]:
        for rest in _permuted({**left, name: left[name] - 1}):
            yield [name, *rest]


def _any_order(
    actor: type[ReplicatedActor[Any]],
    histories: Mapping[str, Sequence[Event]],
    writing: Sequence[str],
    chance: random.Random,
) -> tuple[_Diverged | None, int]:
    sites = {name: Site(actor, name) for name in histories}
    for wall, name in enumerate(writing, 1):
        sites[name].write(histories[name][len(sites[name].log)], wall)
    first: tuple[list[str], bytes] | None = None
    tried = 0
    # With many ways to write, a few ways to learn for each are as good as all for a few.
    for learning in _orders(histories, chance) if len(writing) <= 4 else [*_some_orders(writing, chance)]:
        tried += 1
        state = _learnt(actor, sites, learning)
        if first is None:
            first = learning, state
        elif state != first[1]:
            story = [
                f"written in the order {', '.join(writing)}",
                f"one learns them in the order {', '.join(first[0])}",
                f"another in the order {', '.join(learning)}",
            ]
            return _Diverged(histories, story, (first[1], state)), tried
    return None, tried


def _some_orders(names: Sequence[str], chance: random.Random) -> Iterator[list[str]]:
    yield list(names)
    yield list(reversed(names))
    for _ in range(6):
        yield chance.sample(names, len(names))


def _learnt(actor: type[ReplicatedActor[Any]], sites: Mapping[str, Site], order: Sequence[str]) -> bytes:
    reader = Site(actor, "reader")
    taken = dict.fromkeys(sites, 0)
    for name in order:
        reader.receive([sites[name].log[taken[name]]])
        taken[name] += 1
    return reader.state


def _in_any_order(actor: type[ReplicatedActor[Any]], histories: Mapping[str, Sequence[Event]]) -> _Diverged | None:
    chance = random.Random(0)  # noqa: S311
    for _ in range(_TRIES):
        for writing in _orders(histories, chance):
            found, _ = _any_order(actor, histories, writing, chance)
            if found is not None:
                return found
    return None


def _smaller(found: _Diverged, tried: Callable[[Mapping[str, Sequence[Event]]], _Diverged | None]) -> _Diverged:
    """The same with as few events as will do."""
    is_smaller = True
    while is_smaller:
        is_smaller = False
        for name, events in found.events.items():
            for index in range(len(events)):
                fewer = {**found.events, name: [*events[:index], *events[index + 1 :]]}
                again = tried({name: kept for name, kept in fewer.items() if kept})
                if again is not None:
                    found, is_smaller = again, True
                    break
            if is_smaller:
                break
    return found


# Replicas write and learn in turn


def _drawn(histories: Mapping[str, Sequence[Event]], chance: random.Random) -> list[_Step]:
    names = list(histories)
    writes = [_Step(name, None) for name in names for _ in histories[name]]
    learns = [_Step(*chance.sample(names, 2)) for _ in range(len(writes))] if len(names) > 1 else []
    steps = [*writes, *learns]
    chance.shuffle(steps)
    return steps


def _run(
    actor: type[ReplicatedActor[Any]], histories: Mapping[str, Sequence[Event]], steps: Sequence[_Step]
) -> _Diverged | None:
    sites = {name: Site(actor, name) for name in histories}
    written = dict.fromkeys(histories, 0)
    for wall, (name, source) in enumerate(steps, 1):
        if source is None:
            sites[name].write(histories[name][written[name]], wall)
            written[name] += 1
        else:
            sites[name].receive(sites[source].log)
    # In the end everyone learns everything, each in an order of its own.
    for reader in sites.values():
        for other in sites.values():
            reader.receive(other.log)
    first = next(iter(sites.values()))
    # What a recovery from the journal would make of it.
    again = Site(actor, f"{first.name}, recovered")
    again.receive(first.log)
    for other in (*list(sites.values())[1:], again):
        if other.state != first.state:
            story = [*(str(step) for step in steps), f"everyone learns everything: {first.name} and {other.name}"]
            return _Diverged(histories, story, (first.state, other.state))
    return None


def _shorter(
    actor: type[ReplicatedActor[Any]],
    histories: Mapping[str, Sequence[Event]],
    steps: Sequence[_Step],
    diverged: _Diverged,
) -> _Diverged:
    """The same with as few steps as will do. A write goes with its event."""
    is_shorter = True
    while is_shorter:
        is_shorter = False
        for index, (name, source) in enumerate(steps):
            fewer = [*steps[:index], *steps[index + 1 :]]
            given: dict[str, Sequence[Event]] = dict(histories)
            if source is None:
                number = sum(step == (name, None) for step in steps[:index])
                given[name] = [*histories[name][:number], *histories[name][number + 1 :]]
            again = next((found for _ in range(_TRIES) if (found := _run(actor, given, fewer)) is not None), None)
            if again is not None:
                histories, steps, diverged, is_shorter = given, fewer, again, True
                break
    return diverged


def _failure(actor: type[ReplicatedActor[Any]], found: _Diverged) -> KitFailure:
    events = "; ".join(f"{name} writes {', '.join(map(repr, given))}" for name, given in found.events.items() if given)
    one, other = (state.decode()[:300] for state in found.states)
    place = f"{actor.__qualname__}.resolve" if actor.has_rule else actor.__qualname__
    return KitFailure(
        place,
        f"replicas that know the same events differ: {events}; {'; '.join(found.story)}; the states are {one} and "
        f"{other}; event handlers and resolve use the event, the conflict and the state alone",
    )
