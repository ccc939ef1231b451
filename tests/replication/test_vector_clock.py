"""The laws of vector clocks, and the cases that a known system gets wrong."""

from __future__ import annotations

import random
from itertools import permutations

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.conformance.cases import case
from eventstore.errors import InvalidReplica
from eventstore.vector_clock import MAX_COUNT, Order, VectorClock

BEFORE, AFTER, EQUAL, CONCURRENT = Order.BEFORE, Order.AFTER, Order.EQUAL, Order.CONCURRENT
OPPOSITE = {BEFORE: AFTER, AFTER: BEFORE, EQUAL: EQUAL, CONCURRENT: CONCURRENT}

ODD = ["A", "a", "é", "e\u0301", '"', "\\", "'", "{}", "a b", "\U0001f600", "\u4e2d", "clock", "0", "x" * 64]
clocks = st.dictionaries(st.sampled_from(ODD[:5]), st.integers(0, 3), max_size=4).map(VectorClock)


@pytest.mark.parametrize(
    ("one", "other", "order"),
    [
        ({"A": 1}, {"B": 1}, CONCURRENT),
        ({"A": 1}, {"A": 1, "B": 1}, BEFORE),
        ({}, {"B": 1}, BEFORE),
        ({"A": 1, "B": 0}, {"A": 1}, EQUAL),
        ({"B": 1, "A": 2}, {"A": 2, "B": 1}, EQUAL),
        ({"A": 2, "B": 1, "C": 1}, {"A": 1, "B": 2, "C": 1}, CONCURRENT),
        ({}, {}, EQUAL),
        ({"n1": 2, "n2": 1}, {"n1": 2, "n3": 1}, CONCURRENT),
        ({"n2": 2}, {"n1": 1, "n2": 2, "n3": 1}, BEFORE),
    ],
)
@case("C235", "C238", "C239")
def test_cases_that_a_known_system_gets_wrong(one: dict[str, int], other: dict[str, int], order: Order) -> None:
    assert VectorClock(one).compare(VectorClock(other)) is order
    assert VectorClock(other).compare(VectorClock(one)) is OPPOSITE[order]


@case("C240")
def test_a_merge_is_the_least_upper_bound() -> None:
    one, other = VectorClock({"A": 3, "B": 1}), VectorClock({"B": 2, "C": 1})
    merged = one.merge(other)
    assert merged == other.merge(one) == VectorClock({"A": 3, "B": 2, "C": 1})
    assert merged.compare(one) is merged.compare(other) is AFTER
    for replica, count in merged.items():
        less = VectorClock({**dict(merged.items()), replica: count - 1})
        assert not (less.covers(one) and less.covers(other))


@case("C236")
def test_an_increment_raises_its_own_entry_alone() -> None:
    clock = VectorClock({"A": 1})
    assert clock.incremented("B") == VectorClock({"A": 1, "B": 1})
    assert clock.incremented("A", 2) == VectorClock({"A": 3})
    assert clock == VectorClock({"A": 1})
    assert VectorClock().incremented("B").compare(VectorClock()) is AFTER


@case("C237")
def test_two_replicas_that_write_in_turn() -> None:
    # Each writes on what the other wrote.
    a = VectorClock().incremented("a")
    b = a.incremented("b")
    a = b.incremented("a")
    assert a.compare(b.merge(a)) is EQUAL
    assert b.compare(a) is BEFORE
    assert a.incremented("c").compare(a) is AFTER


def test_bytes_are_canonical() -> None:
    counts = {"B": 2, "A": 1, "é": 3}
    encodings = {bytes(VectorClock(dict(order))) for order in permutations(counts.items())}
    assert encodings == {'{"A":1,"B":2,"é":3}'.encode()}
    assert bytes(VectorClock({"A": 1, "B": 0})) == b'{"A":1}'
    assert bytes(VectorClock({"A": 1}).merge(VectorClock({"B": 1}))) == bytes(VectorClock({"B": 1, "A": 1}))
    assert bytes(VectorClock({"B": 1}).incremented("A")) == b'{"A":1,"B":1}'


def test_it_cannot_be_changed_from_outside() -> None:
    counts = {"A": 1}
    clock = VectorClock(counts)
    counts["A"] = 5
    assert clock["A"] == 1
    with pytest.raises(TypeError):
        clock["A"] = 2  # type: ignore[index]


@pytest.mark.parametrize("count", [-1, 2**63, 1.0, True, "1", None])
def test_a_count_is_a_whole_number(count: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        VectorClock({"A": count})  # type: ignore[dict-item]
    assert VectorClock({"A": MAX_COUNT})["A"] == MAX_COUNT


@pytest.mark.parametrize("name", ["", "a\0", "a\n", "x" * 65, "é" * 33, "\ud800", 7])
def test_odd_names_are_refused(name: object) -> None:
    with pytest.raises(InvalidReplica):
        VectorClock({name: 1})  # type: ignore[dict-item]
    with pytest.raises(InvalidReplica):
        VectorClock().incremented(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"A":-1}', '{"A":1.5}', '{"A":"1"}', '{"":1}', "null"])
def test_what_is_no_clock_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        VectorClock.parse(text)


@given(st.dictionaries(st.sampled_from(ODD), st.integers(0, MAX_COUNT)))
def test_it_is_read_as_it_was_written(counts: dict[str, int]) -> None:
    clock = VectorClock(counts)
    again = VectorClock.parse(bytes(clock))
    assert again == clock
    assert hash(again) == hash(clock)
    assert bytes(again) == bytes(clock)
    assert list(orjson.loads(bytes(clock))) == sorted(replica for replica, count in counts.items() if count)


@settings(max_examples=500)
@given(clocks, clocks, clocks)
def test_laws(one: VectorClock, two: VectorClock, three: VectorClock) -> None:
    check_laws(one, two, three)


def check_laws(one: VectorClock, two: VectorClock, three: VectorClock) -> None:
    order = one.compare(two)
    assert two.compare(one) is OPPOSITE[order]
    assert order is by_definition(one, two)
    assert (order is EQUAL) == (one == two) == (bytes(one) == bytes(two))
    assert two.covers(one) == (order in (BEFORE, EQUAL))
    if order is BEFORE and two.compare(three) is BEFORE:
        assert one.compare(three) is BEFORE
    merged, met = one.merge(two), one.meet(two)
    assert merged == two.merge(one)
    assert met == two.meet(one)
    assert merged.covers(one)
    assert merged.covers(two)
    assert one.covers(met)
    assert two.covers(met)
    assert one.merge(one) == one == one.meet(one)
    assert merged.merge(three) == one.merge(two.merge(three))
    # Least, and greatest: whatever covers both covers the merge.
    assert three.covers(merged) == (three.covers(one) and three.covers(two))
    assert met.covers(three) == (one.covers(three) and two.covers(three))
    assert one.incremented("A").compare(one) is AFTER


def by_definition(one: VectorClock, two: VectorClock) -> Order:
    replicas = {replica for clock in (one, two) for replica, _ in clock.items()}
    at_most = all(one[replica] <= two[replica] for replica in replicas)
    at_least = all(one[replica] >= two[replica] for replica in replicas)
    return {(True, True): EQUAL, (True, False): BEFORE, (False, True): AFTER}.get((at_most, at_least), CONCURRENT)


@pytest.mark.soak
def test_laws_of_a_million_triples() -> None:
    chance = random.Random(1)

    def some() -> VectorClock:
        return VectorClock({replica: chance.randrange(4) for replica in chance.sample(ODD, chance.randrange(5))})

    for _ in range(1_000_000):
        check_laws(some(), some(), some())
