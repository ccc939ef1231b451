"""Where two states differ: JSON pointers, and values that compare."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel

from actors.canonical import digest_of, without_order
from actors.state import StateType
from actors.time_travel.state_changes import (
    NOTHING,
    InvalidPointer,
    StateChange,
    leaves,
    names_of,
    state_changes,
    value_at,
)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', []),
        ('{"a": 1}', '{"a": 1.0}', []),
        ('{"a": NaN, "b": [NaN]}', '{"a": NaN, "b": [NaN]}', []),
        ('{"a": true}', '{"a": 1}', [("/a", "changed", True, 1)]),
        ('{"a": [1, {"b": "x"}]}', '{"a": [1, {"b": "y"}]}', [("/a/1/b", "changed", "x", "y")]),
        ('{"a": 1}', "{}", [("/a", "removed", 1, None)]),
        ("{}", '{"a": null}', [("/a", "added", None, None)]),
        ("[1, 2, 3]", "[1]", [("/1", "removed", 2, None), ("/2", "removed", 3, None)]),
        ("[]", "[1]", [("/0", "added", None, 1)]),
        ('{"a": {}}', '{"a": []}', [("/a", "changed", {}, [])]),
        ("1", "2", [("", "changed", 1, 2)]),
        ('{"a/b~c": 1}', '{"a/b~c": 2}', [("/a~1b~0c", "changed", 1, 2)]),
        (
            "12345678901234567890123",
            "12345678901234567890124",
            [("", "changed", 12345678901234567890123, 12345678901234567890124)],
        ),
    ],
)
def test_every_difference_is_named(before: str, after: str, changes: list[tuple[Any, ...]]) -> None:
    assert list(state_changes(json.loads(before), json.loads(after))) == [StateChange(*each) for each in changes]


def test_pointers_lead_to_what_they_were_made_for() -> None:
    value = {"a/b": {"~": [1, [], {}]}, "": None}
    found = dict(leaves(value))
    assert found == {"/a~1b/~0/0": 1, "/a~1b/~0/1": [], "/a~1b/~0/2": {}, "/": None}
    for pointer, leaf in found.items():
        assert value_at(value, names_of(pointer)) == leaf


# What RFC 6901 has in its section 5.
RFC = {
    "foo": ["bar", "baz"],
    "": 0,
    "a/b": 1,
    "c%d": 2,
    "e^f": 3,
    "g|h": 4,
    "i\\j": 5,
    'k"l': 6,
    " ": 7,
    "m~n": 8,
}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", RFC),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/c%d", 2),
        ("/e^f", 3),
        ("/g|h", 4),
        ("/i\\j", 5),
        ('/k"l', 6),
        ("/ ", 7),
        ("/m~0n", 8),
    ],
)
def test_the_examples_of_the_standard(pointer: str, value: Any) -> None:
    assert value_at(RFC, names_of(pointer)) == value


@pytest.mark.parametrize("pointer", ["/bar", "/foo/2", "/foo/-", "/foo/01", "/foo/-1", "/foo/²", "//x"])
def test_what_is_not_there_is_nothing(pointer: str) -> None:
    assert value_at(RFC, names_of(pointer)) is NOTHING


@pytest.mark.parametrize("text", ["foo", "/~", "/~2", "/a~"])
def test_what_is_no_pointer_is_refused(text: str) -> None:
    with pytest.raises(InvalidPointer):
        names_of(text)


def test_order_can_be_left_out_of_arrays_at_any_depth() -> None:
    assert without_order({"a": [[2, 1], [0]]}) == without_order({"a": [[0], [1, 2]]})
    assert without_order([1, 1, 2]) != without_order([1, 2, 2])


class Basket(BaseModel):
    names: list[str] = []
    tags: set[str] = set()
    groups: dict[str, set[frozenset[str]]] = {}


BASKET = StateType(Basket, place="Basket", revision=0)


def test_the_members_of_a_set_have_one_order_and_the_items_of_a_list_keep_theirs() -> None:
    one, other = (
        Basket(names=names, tags={"a", "b", "c"}, groups={"x": {frozenset("ab"), frozenset("c")}})
        for names in (["b", "a"], ["a", "b"])
    )
    assert BASKET.canonical(one)["tags"] == ["a", "b", "c"]
    assert BASKET.canonical(one)["groups"] == {"x": [["a", "b"], ["c"]]}
    assert [change.pointer for change in state_changes(BASKET.canonical(one), BASKET.canonical(other))] == [
        "/names/0",
        "/names/1",
    ]


def test_a_digest_is_the_same_in_every_process() -> None:
    program = (
        "from tests.actors.test_state_changes import BASKET, Basket, digest_of\n"
        "letters = [chr(97 + number) for number in range(26)]\n"
        "groups = {'x': {frozenset(letters), frozenset('xy')}}\n"
        "print(digest_of(BASKET.canonical(Basket(tags=set(letters), groups=groups))))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_other_values_have_other_digests() -> None:
    values = [1, 1.5, "1", True, None, [], {}, [1], {"1": 1}, 12345678901234567890123, "\udcff"]
    assert len({digest_of(value) for value in values}) == len(values)
