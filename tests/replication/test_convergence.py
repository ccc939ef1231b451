"""The canonical order: every replica has it, late events cost what they overtake, and rules see what they should."""

from __future__ import annotations

import random
import time
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel

from actors import ActorError, Conflict, DefinitionError, ReplicatedActor, event_handler, last_writer_wins
from actors.replaying.determinism import breaches_noted
from actors.replicas.conflict import Resolution
from actors.replicas.convergence import CHECKPOINT_EVERY, Base, History
from actors.replicas.convergence_check import Site, converges, entry_of
from actors.testing import KitFailure
from backends.conformance.cases import case
from eventstore import Event
from eventstore.stamp import Stamp, parse_stamp
from eventstore.vector_clock import VectorClock
from tests.replication.ledger import Ledger, Lines, Noted, Ruled


def lines(site: Site) -> list[str]:
    state = site.actor.state
    assert isinstance(state, Lines)
    return state.lines


def test_while_an_event_is_applied_its_version_is_the_actor_s() -> None:
    class Seen(ReplicatedActor[Lines], kind="Seen"):
        @event_handler
        def noted(self, event: Noted) -> None:
            self.state.lines.append(f"{event.text} {self.version}")

    a, b = Site(Seen, "a"), Site(Seen, "b")
    for moment in (1, 3, 4):
        a.write(Noted(text=str(moment)), moment)
    b.write(Noted(text="2"), 2)
    # The one that comes last stands second: what is applied again has the versions that the journal has.
    a.receive(b.log)
    assert lines(a) == ["1 1", "2 4", "3 2", "4 3"]


def test_a_handler_s_call_is_told_with_the_version_of_the_event() -> None:
    class Dated(ReplicatedActor[Lines], kind="Dated"):
        @event_handler
        def noted(self, event: Noted) -> None:
            if event.text == "x":
                self.state.lines.append(str(time.time()))

    a, b = Site(Dated, "a"), Site(Dated, "b")
    for moment, text in enumerate("abxd", 1):
        a.write(Noted(text=text), moment)
    with breaches_noted(Dated) as breaches:
        b.receive(a.log)
    assert [(breach.version, breach.call) for breach in breaches] == [(3, "time.time")]


@case("C254")
def test_ties_go_to_the_lower_replica() -> None:
    # At one time the lower replica has the last word, at both.
    a, b = Site(Ledger, "a"), Site(Ledger, "b")
    a.write(Noted(text="from a"), 100)
    b.write(Noted(text="from b"), 100)
    exchange(a, b)
    assert lines(a) == lines(b) == ["from b", "from a"]


@pytest.mark.parametrize(
    ("lower", "higher"), [("a", "b"), ("a", "ab"), ("A", "a"), ("e\u0301", "é"), ("z", "\U0001f600")]
)
def test_names_are_ordered_by_their_characters(lower: str, higher: str) -> None:
    one, other = (Stamp(name, 1, VectorClock({name: 1}), 5) for name in (lower, higher))
    assert lower < higher
    assert other.key < one.key


def test_the_later_time_stands_last_and_causality_beats_the_clock() -> None:
    a, b = Site(Ledger, "a"), Site(Ledger, "b")
    a.write(Noted(text="first"), 1_000_000)
    b.write(Noted(text="other"), 7)
    b.receive(a.log)
    # The clock of b is far behind: what it writes after it has seen the first stands behind it all the same.
    b.write(Noted(text="second"), 8)
    exchange(a, b)
    assert lines(a) == lines(b) == ["other", "first", "second"]
    second = b.log[-1].stamp
    assert second.has_seen(a.log[0].stamp)
    assert second.time == 1_000_001
    assert a.log[0].stamp.is_concurrent_with(b.log[0].stamp)
    assert not second.is_concurrent_with(a.log[0].stamp)


@case("C248")
def test_a_batch_is_not_torn() -> None:
    # The events of one command have one time.
    a, b = Site(Ledger, "a"), Site(Ledger, "b")
    for site in (a, b):
        site.write(Noted(text=f"{site.name}1"), 100)
        stamp = site.history.next_stamp(site.name, site.history.latest)
        event = Noted(text=f"{site.name}2")
        entry = entry_of(event, stamp, 2)
        site.history.append(entry, event)
        site.log.append(entry)
    exchange(a, b)
    assert lines(a) == lines(b) == ["b1", "b2", "a1", "a2"]


def test_every_schedule_of_four_replicas_ends_in_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.replicas.convergence.CHECKPOINT_EVERY", 3)
    chance = random.Random(3)
    bases = 0
    for _ in range(60):
        sites = [Listener(Ledger, name, "abcd") for name in "abcd"]
        for wall in range(150):
            one, other = chance.sample(sites, 2)
            if chance.random() < 0.3:
                one.write(Noted(text=f"{one.name}{wall}"), chance.randrange(wall + 1, 170))
            else:
                one.hear(other)
            if chance.random() < 0.2:
                one.settle()
        exchange(*sites)
        assert len({site.state for site in sites}) == 1
        again = Site(Ledger, "again")
        again.receive(sites[0].log)
        assert again.state == sites[0].state
        bases += sum(site.history.base.version > 0 for site in sites)
        stamps = [entry.stamp for entry in again.history.entries]
        for index, stamp in enumerate(stamps):
            assert not any(stamp.has_seen(later) for later in stamps[index + 1 :])
    # It was tried with histories that had let something go.
    assert bases > 60


@pytest.mark.parametrize("size", [1_000, 8_000])
@pytest.mark.parametrize("overtaken", [0, 1, 10, 100, 900])
def test_a_late_event_costs_what_it_overtakes(size: int, overtaken: int) -> None:
    a, b = Site(Ledger, "a"), Site(Ledger, "b")
    for number in range(size):
        a.write(Noted(text=str(number)), 10 * number + 10)
    place = 10 * (size - overtaken) + 11
    late = [b.write(Noted(text=f"late {number}"), place + number % 5) for number in range(20)]
    before = a.history.applied
    a.receive(late)
    cost = a.history.applied - before
    assert len(late) + overtaken <= cost + 1
    # Not a function of the size.
    assert cost <= len(late) + 2 * overtaken + 2 * CHECKPOINT_EVERY
    # The next one to the same place finds the state that was kept there.
    more = b.write(Noted(text="one more"), place)
    before = a.history.applied
    a.receive([more])
    assert a.history.applied - before <= 1 + 2 * overtaken + CHECKPOINT_EVERY
    again = Site(Ledger, "again")
    again.receive(a.log)
    assert again.state == a.state
    # What was folded from the journal has its checkpoints too.
    third = Site(Ledger, "c").write(Noted(text="of a third"), place + 7)
    before = again.history.applied
    again.receive([third])
    assert again.history.applied - before <= 1 + 2 * (overtaken + 21) + CHECKPOINT_EVERY


def test_few_checkpoints_are_kept() -> None:
    site = Site(Ledger, "a")
    for number in range(20_000):
        site.write(Noted(text=str(number)), number + 1)
    assert len(site.history._checkpoints) <= 20  # pyright: ignore[reportPrivateUsage]


def test_what_all_know_is_let_go() -> None:
    a, b = Site(Ledger, "a"), Site(Ledger, "b")
    for number in range(500):
        a.write(Noted(text=f"a{number}"), number + 1)
    b.receive(a.log[:300])
    base = a.history.settle(a.history.clock.meet(b.history.clock), through=500)
    assert 300 - CHECKPOINT_EVERY < base.clock["a"] <= 300
    assert base.version == base.clock["a"]
    assert len(a.history.entries) == 500 - base.clock["a"]
    for number in range(3):
        b.write(Noted(text=f"b{number}"), 310 + number)
    a.receive(b.log)
    b.receive(a.log)
    assert a.state == b.state


def test_an_event_from_before_the_base_is_refused() -> None:
    a, b = Site(Ledger, "a"), Site(Ledger, "b")
    b.write(Noted(text="late"), 1)
    a.write(Noted(text="early"), 2)
    a.history.settle(a.history.clock, through=1, is_forced=True)
    assert not a.history.reaches([b.log[0].stamp])
    with pytest.raises(ActorError, match="belongs before"):
        a.receive(b.log)


def test_the_journal_must_hold_what_is_let_go() -> None:
    site = Site(Ledger, "a")
    for number in range(500):
        site.write(Noted(text=str(number)), number + 1)
    assert site.history.settle(site.history.clock, through=200, is_forced=True).clock["a"] <= 200
    assert site.history.settle(site.history.clock, through=500, is_forced=True).clock["a"] == 500


@case("C264")
def test_a_base_and_what_follows_it_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 7 of recovery: from every base that is ever taken, the rest leads to the same state."""
    monkeypatch.setattr("actors.replicas.convergence.CHECKPOINT_EVERY", 3)
    bases = 0
    chance = random.Random(5)
    for cls in (Ledger, Ruled):
        for _ in range(6):
            sites = [Listener(cls, name, "abc") for name in "abc"]
            for wall in range(90):
                one, other = chance.sample(sites, 2)
                if chance.random() < 0.6:
                    one.write(Noted(text=f"{one.name}{wall}"), wall)
                else:
                    one.hear(other)
                base = one.settle()
                bases += 0 < base.version < len(one.log)
                again = Site(cls, "again")
                again.history = History(again.actor, base)
                rest = [entry for entry in one.log[base.version :] if not again.history.knows(entry.stamp)]
                if rest:
                    assert again.history.reaches(entry.stamp for entry in rest)
                    again.history.extend(rest)
                assert again.state == one.state
                assert again.history.clock == one.history.clock
                assert all(base.clock[entry.stamp.origin] >= entry.stamp.sequence for entry in one.log[: base.version])
    assert bases > 50


# Rules


def test_a_rule_is_asked_for_concurrent_events_alone() -> None:
    a, b = Site(Ruled, "a"), Site(Ruled, "b")
    a.write(Noted(text="before"), 1)
    b.receive(a.log)
    a.write(Noted(text="a1"), 2)
    a.write(Noted(text="a2"), 4)
    b.write(Noted(text="b1"), 3)
    exchange(a, b)
    b.write(Noted(text="after"), 9)
    exchange(a, b)
    assert lines(a) == lines(b) == ["before", "a1", "b1|a1", "a2|b1", "after"]


class Keeping(Ledger, kind="Keeping"):
    """Looks at what it is asked when all is done."""

    kept: ClassVar[list[Conflict]] = []

    def resolve(self, conflict: Conflict) -> Resolution:
        self.kept.append(conflict)
        return conflict.event


def test_a_conflict_shows_what_stands_before_its_event_whenever_it_is_looked_at() -> None:
    Keeping.kept.clear()
    a, b = Site(Keeping, "a"), Site(Keeping, "b")
    a.write(Noted(text="a1"), 1)
    b.write(Noted(text="b1"), 2)
    a.write(Noted(text="a2"), 3)
    exchange(a, b)
    found = [conflict.against for conflict in Keeping.kept if conflict.event == Noted(text="b1")]
    assert found
    assert all([each.event for each in against] == [Noted(text="a1")] for against in found)


class Choosing(Ledger, kind="Choosing"):
    """Keeps one of two, or both, or neither."""

    def resolve(self, conflict: Conflict) -> Resolution:
        event = conflict.event
        assert isinstance(event, Noted)
        if event.text == "twice":
            return [event, event]
        return None if event.text == "never" else event


def test_what_a_rule_returns_is_applied() -> None:
    a, b = Site(Choosing, "a"), Site(Choosing, "b")
    a.write(Noted(text="first"), 1)
    b.write(Noted(text="twice"), 2)
    b.write(Noted(text="never"), 3)
    exchange(a, b)
    assert lines(a) == lines(b) == ["first", "twice", "twice"]


class Unknown(Event):
    pass


class Wrong(Ledger, kind="Wrong"):
    def resolve(self, conflict: Conflict) -> Resolution:
        return Unknown()


def test_a_rule_that_returns_what_nobody_handles_is_an_error() -> None:
    a, b = Site(Wrong, "a"), Site(Wrong, "b")
    a.write(Noted(text="a"), 1)
    b.write(Noted(text="b"), 2)
    with pytest.raises(DefinitionError, match="Wrong.resolve returned Unknown"):
        a.receive(b.log)


def test_rules_cannot_be_async() -> None:
    with pytest.raises(DefinitionError, match="resolve cannot be async"):

        class Slow(Ledger, kind="Slow"):
            async def resolve(self, conflict: Conflict) -> Resolution:  # type: ignore[override]
                return None


class Renamed(Event):
    name: str | None = None
    email: str | None = None


class Named(BaseModel):
    name: str = ""
    email: str = ""
    changes: int = 0


class FirstCome(ReplicatedActor[Named]):
    """By its handler the first name stays; in a conflict the last writer's does."""

    resolve = last_writer_wins("name", "email")

    @event_handler
    def renamed(self, event: Renamed) -> None:
        self.state.name = self.state.name or event.name or ""
        self.state.email = self.state.email or event.email or ""
        self.state.changes += 1


def test_the_last_writer_of_each_field_wins() -> None:
    a, b = Site(FirstCome, "a"), Site(FirstCome, "b")
    a.write(Renamed(name="Ann", email="ann@x"), 5)
    b.write(Renamed(name="Bob"), 6)
    exchange(a, b)
    assert a.state == b.state
    assert a.actor.state == Named(name="Bob", email="ann@x", changes=2)
    assert converges(FirstCome, Renamed(name="a"), Renamed(email="b"), Renamed(name="c", email="c")) > 200


@case("C265")
def test_a_stamp_is_there_only_while_an_event_is_applied() -> None:
    site = Site(Ledger, "a")
    with pytest.raises(ActorError, match="only while an event is applied"):
        _ = site.actor.stamp
    site.write(Noted(text="x"), 1)
    with pytest.raises(ActorError, match="only while an event is applied"):
        _ = site.actor.stamp


def test_a_stamp_is_read_as_it_was_written() -> None:
    stamp = Stamp("é", 2, VectorClock({"é": 2, "a": 1}), 123)
    fields = stamp.fields(concurrent=True)
    assert fields.clock == '{"clock":{"a":1,"é":2},"time":123}'.encode()
    assert parse_stamp(fields.origin, fields.origin_sequence, fields.clock) == stamp
    for origin, sequence, clock in (
        ("a", 2, fields.clock),
        ("é", 3, fields.clock),
        ("é", 0, fields.clock),
        ("é", 2, b"{}"),
        ("é", 2, b'{"clock":{"a":1},"time":0}'),
        ("é", 2, b'{"clock":1,"time":5}'),
        ("é", 2, b"\xff"),
    ):
        with pytest.raises(ValueError):
            parse_stamp(origin, sequence, clock)


# The kit


class Forgetful(Ledger, kind="Forgetful"):
    """A rule that throws dice."""

    dice: ClassVar[random.Random] = random.Random(1)

    def resolve(self, conflict: Conflict) -> Resolution:
        return conflict.event if self.dice.random() < 0.5 else None


class Counting(Ledger, kind="Counting"):
    """A rule that goes by how often it was asked, which depends on the order of arrival."""

    asked: ClassVar[int] = 0

    def resolve(self, conflict: Conflict) -> Resolution:
        type(self).asked += 1
        return Noted(text=f"{self.asked % 3}")


@pytest.mark.parametrize("bad", [Forgetful, Counting])
def test_a_bad_rule_is_shown_by_the_shortest_schedule(bad: type[Ledger]) -> None:
    events = [Noted(text=text) for text in "abcdef"]
    with pytest.raises(KitFailure) as failure:
        converges(bad, eu=events[:3], us=events[3:5], ap=events[5:])
    text = str(failure.value)
    assert text.startswith(f"{bad.__qualname__}.resolve: replicas that know the same events differ")
    # Of six events two are enough.
    assert text.count("Noted(") == 2, text


def test_a_bad_rule_that_needs_causes_is_found_by_drawn_schedules() -> None:
    class OnlyAfter(Ledger, kind="OnlyAfter"):
        asked: ClassVar[int] = 0

        def resolve(self, conflict: Conflict) -> Resolution:
            if len(conflict.stamp.clock) > 1:
                type(self).asked += 1
                return Noted(text=f"{self.asked}")
            return conflict.event

    with pytest.raises(KitFailure, match="receives from"):
        converges(
            OnlyAfter,
            eu=[Noted(text="a"), Noted(text="b")],
            us=[Noted(text="c"), Noted(text="d")],
            ap=[Noted(text="e")],
        )


def test_good_actors_converge() -> None:
    assert converges(Ledger, *(Noted(text=text) for text in "abc")) > 6 * 6 + 199
    assert (
        converges(Ruled, eu=[Noted(text=text) for text in "abcdef"], us=[Noted(text=text) for text in "ghijkl"]) > 200
    )


# Help


def exchange(*sites: Site) -> None:
    for one in sites:
        for other in sites:
            one.receive(other.log)
    for one in sites:
        for other in sites:
            one.receive(other.log)


class Listener(Site):
    """It keeps what it has heard of others, in their own order: what they knew then, everything new comes after."""

    def __init__(self, actor: type[ReplicatedActor[Any]], name: str, names: str) -> None:
        super().__init__(actor, name)
        self.heard = {other: VectorClock() for other in names if other != name}

    def hear(self, other: Site) -> None:
        self.receive(other.log)
        self.heard[other.name] = other.history.clock

    def settle(self, *, is_forced: bool = True) -> Base:
        known = self.history.clock
        for heard in self.heard.values():
            known = known.meet(heard)
        return self.history.settle(known, through=len(self.log), is_forced=is_forced)
