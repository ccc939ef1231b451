"""The reference in docs/cli.md is what the commands say, and what they say of themselves can be typed."""

from __future__ import annotations

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from eventstore.cli.reference import Described, brought_up_to_date, described

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = list(described())


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert page == brought_up_to_date(page), "run: make reference"


def test_every_link_within_the_page_leads_somewhere() -> None:
    page = PAGE.read_text("utf-8")
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


@pytest.mark.parametrize("each", COMMANDS, ids=lambda each: each.name)
def test_every_help_has_an_example_that_can_be_typed(each: Described) -> None:
    help_ = each.command.help if each.name != "eventstore" else each.command.epilog
    examples = re.findall(r"^ +(eventstore .*)", help_, re.MULTILINE)
    assert examples
    for example in examples:
        assert example.startswith(each.name) or "| eventstore" in example
        before, _, behind = example.partition(" | ")
        for line in filter(None, (before, behind)):
            _parse(shlex.split(line))


def _parse(words: list[str]) -> None:
    """Raises an error for a command that is not there, or an option or argument that it does not have."""
    words = list(takewhile(lambda word: word not in "<>", words))
    depth = 1
    while (name := " ".join(words[: depth + 1])) in (names := {each.name: each.command for each in COMMANDS}):
        depth += 1
        if depth == len(words):
            break
    assert depth > 1, words
    command = names[" ".join(words[:depth])]
    assert not hasattr(command, "commands"), name
    command.make_context(" ".join(words[:depth]), words[depth:])


@pytest.mark.parametrize("each", COMMANDS, ids=lambda each: each.name)
def test_no_number_is_taken_that_a_database_cannot_hold(each: Described) -> None:
    for parameter in each.command.params:
        if parameter.bare_type() in (int, list[int]):
            assert parameter.max is not None, parameter.name
            assert parameter.max < 2**63
