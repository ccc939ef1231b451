"""What a group decides in memory about a batch of one write with one command, which takes a shorter way than others."""

from __future__ import annotations

import pytest

from backends.conformance.events import outcome, write
from backends.deciding import Group, Head
from eventstore.backend import Appended, StreamWrite
from eventstore.errors import CommandForgotten, DuplicateCommand, FencedError


def lone(*payloads: bytes, command_id: str = "c", epoch: int | None = None, issued_at: int = 0) -> StreamWrite:
    return write("a", *payloads, epoch=epoch, commands=[outcome(command_id, issued_at=issued_at)])


def group(**head: int) -> Group:
    return Group({"a": Head(id=1, version=0, **{"epoch": 0, **head})}, 0)


@pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
def test_a_lone_command_that_an_earlier_batch_of_the_group_remembers_is_refused(payloads: tuple[bytes, ...]):
    decided = group()
    assert isinstance(decided.decide([lone(*payloads)]), Appended)
    assert isinstance(decided.decide([lone(*payloads)]), DuplicateCommand)
    assert isinstance(decided.decide([lone(*payloads, command_id="d")]), Appended)
    assert [command.command_id for _, _, command in decided.commands] == ["c", "d"]
    assert len(decided.rows) == 2 * len(payloads)


@pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
def test_a_lone_command_from_before_what_was_forgotten_is_refused(payloads: tuple[bytes, ...]):
    decided = group(forgotten=10)
    assert isinstance(decided.decide([lone(*payloads, issued_at=10)]), CommandForgotten)
    assert decided.is_empty
    assert isinstance(decided.decide([lone(*payloads, issued_at=11)]), Appended)


@pytest.mark.parametrize("payloads", [(), (b"1",)], ids=["without events", "with events"])
def test_a_lone_command_of_an_earlier_owner_is_fenced_before_anything_else_is_said_of_it(payloads: tuple[bytes, ...]):
    decided = group(epoch=2)
    assert isinstance(decided.decide([lone(*payloads, epoch=2)]), Appended)
    # The version is the one that the stream has: it is the epoch that speaks against it.
    late = lone(*payloads, epoch=1, command_id="d")._replace(expected=len(payloads))
    assert isinstance(decided.decide([late]), FencedError)
    assert isinstance(decided.decide([late._replace(expected=9)]), FencedError)
    assert isinstance(decided.decide([lone(*payloads, epoch=1)]), FencedError)
    assert [command.command_id for _, _, command in decided.commands] == ["c"]
