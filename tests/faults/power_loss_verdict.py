"""The verdict on what a loss of power has left, beyond the one on a store after any fault (`verdict.py`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

from tests.faults.journals import stored_events
from tests.faults.vault import Receipt, Record
from tests.faults.verdict import Violation

# Deposits whose ids begin so are sent as commands with an id. Not those with an `async def` handler, which may have
# stored their events when they are not remembered yet.
ONCE = "once"


class Contents(NamedTuple):
    """What a file holds, in the order of its commits: (position, batch), and (row id, stream, version, command id)."""

    events: list[tuple[int, bytes]]
    commands: list[tuple[int, str, int, str]]


def contents_of(url: str) -> Contents:
    events = [(event.position, event.batch_id) for event in stored_events(url)]
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        commands = connection.execute(
            "SELECT c.id, s.stream_id, c.version, c.command_id FROM journal_commands c "
            "JOIN journal_streams s ON s.id = c.stream ORDER BY c.id"
        ).fetchall()
    return Contents(events, commands)


def violations_of_order(found: Contents, in_the_end: Contents) -> Iterator[Violation]:
    """Only the newest may be missing."""
    if found.events != in_the_end.events[: len(found.events)]:
        yield Violation("not a suffix", "the events that are left are not the first ones")
    if found.commands != in_the_end.commands[: len(found.commands)]:
        yield Violation("not a suffix", "the outcomes that are left are not the first ones")


def violations_of_outcomes(url: str, found: Contents, record: Record) -> Iterator[Violation]:
    """A command with an id is remembered exactly if its events are stored."""
    ends = {event.id: (event.stream_id, event.version) for event in stored_events(url) if event.id.startswith(ONCE)}
    remembered = {command_id: (stream_id, version) for _, stream_id, version, command_id in found.commands}
    for id_ in ends.keys() ^ remembered.keys():
        yield Violation("events without outcome" if id_ in ends else "outcome without events", id_)
    for id_ in ends.keys() & remembered.keys():
        # Its version is that of its commit, in which other commands' events may follow.
        if ends[id_] > remembered[id_]:
            yield Violation("outcome of another place", id_)
    for id_ in record.acks:
        if id_.startswith(ONCE) and id_ not in remembered:
            yield Violation("outcome lost", id_)


def violations_of_reads(url: str, reads: list[tuple[str, Receipt]]) -> Iterator[Violation]:
    """What an actor has told of its state is what the journal holds."""
    totals: dict[str, list[int]] = {}
    for event in stored_events(url):
        history = totals.setdefault(event.stream_id, [0])
        history.append(history[-1] + event.amount)
    for stream_id, receipt in reads:
        history = totals.get(stream_id, [0])
        if receipt.version >= len(history) or history[receipt.version] != receipt.total:
            yield Violation("read and lost", stream_id)
