"""Where two states differ, in words; and what is printed instead of what must not be."""

from __future__ import annotations

import json

import pytest

from eventstore.cli.differences import first_difference, without_order
from eventstore.cli.escaping import escaped, one_line, printable_json


@pytest.mark.parametrize(
    ("stored", "folded", "difference"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', None),
        ('{"a": 1}', '{"a": 1.0}', None),
        ('{"a": NaN}', '{"a": NaN}', None),
        ('{"a": NaN}', '{"a": null}', "$.a is NaN in it, null when replayed"),
        ('{"a": true}', '{"a": 1}', "$.a is true in it, 1 when replayed"),
        ('{"a": [1, {"b": "x"}]}', '{"a": [1, {"b": "y"}]}', '$.a[1].b is "x" in it, "y" when replayed'),
        ('{"a": 1}', "{}", "$.a is in it, and not there when replayed"),
        ("{}", '{"a": null}', "$.a is not in it, and there when replayed"),
        ("[1, 2]", "[1]", "$ has 2 items in it, 1 when replayed"),
        ('{"a": {}}', '{"a": []}', "$.a is {} in it, [] when replayed"),
        ("12345678901234567890123", "12345678901234567890124", None),
    ],
)
def test_the_first_difference_is_named(stored: str, folded: str, difference: str | None) -> None:
    found = first_difference(json.loads(stored), json.loads(folded))
    if stored.startswith("123456789"):
        assert found is not None
    else:
        assert found == difference


def test_a_long_value_is_shortened() -> None:
    found = first_difference("x" * 1000, "y")
    assert found is not None
    assert len(found) < 120


def test_order_can_be_left_out_of_arrays_at_any_depth() -> None:
    assert without_order({"a": [[2, 1], [0]]}) == without_order({"a": [[0], [1, 2]]})
    assert without_order([1, 1, 2]) != without_order([1, 2, 2])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日本 🙂 　", "plain é 日本 🙂 　"),
        ("a\\b", "a\\\\b"),
        ("\x1b\x9b\n\t\r", "\\x1b\\x9b\\n\\t\\r"),
        ("\u202e\u2028\u200b\ufeff", "\\u202e\\u2028\\u200b\\ufeff"),
        ("\U000e0001", "\\U000e0001"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_escaped_json_means_the_same() -> None:
    value = {"\u202e": "\x1b\x9b\u2028\U000e0001🙂\\u0041"}
    text = printable_json(json.dumps(value, ensure_ascii=False))
    assert text.isprintable()
    assert json.loads(text) == value


def test_a_message_is_one_line() -> None:
    assert one_line("one\n  two\x1b[0m") == "one two\\x1b[0m"
