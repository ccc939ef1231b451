"""What is printed instead of what must not be."""

from __future__ import annotations

import json

import pytest

from eventstore.cli.escaping import escaped, one_line, printable_json


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
