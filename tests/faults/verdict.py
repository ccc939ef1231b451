"""The verdict on a store after its faults: what its file holds against what its writers recorded.

The file is read with plain SQL, by none of the code under test; only the replay of the actors uses the library.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from actors import fold
from eventstore import EventStore, EventStoreError

from .vault import Record, Vault


class Stored(NamedTuple):
    """One stored event."""

    position: int
    stream_id: str
    version: int
    batch_id: bytes
    id: str
    part: int
    parts: int
    amount: int


class Violation(NamedTuple):
    """A promise that was not kept: which one, and where."""

    rule: str
    what: str


def verdict(path: Path, record: Record) -> list[Violation]:
    """Every violation in a store that nobody writes to now."""
    found = list(_file_violations(path))
    if found:
        return found  # What a damaged file holds says nothing.
    events = stored_events(path)
    return [
        *_violations_of_deposits(events, record),
        *_violations_of_streams(events),
        *_violations_of_replies(events, record),
        *asyncio.run(_violations_of_replay(path, events)),
    ]


def stored_events(path: Path) -> list[Stored]:
    """All events in the order of the log."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT e.position, s.stream_id, e.version, coalesce(e.batch_id, e.event_id), e.payload "
            "FROM journal_events e JOIN journal_streams s ON s.id = e.stream ORDER BY e.position"
        ).fetchall()
    return [Stored(*place, **json.loads(payload)) for *place, payload in rows]


def _file_violations(path: Path) -> Iterator[Violation]:
    with closing(sqlite3.connect(path)) as connection:
        try:
            messages = [row[0] for row in connection.execute("PRAGMA integrity_check").fetchall()]
        except sqlite3.DatabaseError as error:
            messages = [str(error)]
    yield from (Violation("corrupt", message) for message in messages if message != "ok")


def _violations_of_deposits(events: list[Stored], record: Record) -> Iterator[Violation]:
    deposits: dict[str, list[Stored]] = defaultdict(list)
    for event in events:
        deposits[event.id].append(event)
    for id_ in record.acks.keys() - deposits.keys():
        yield Violation("lost", id_)
    for id_ in record.refused.keys() & deposits.keys():
        yield Violation("refused but stored", id_)
    for id_, parts in deposits.items():
        intent = record.intents.get(id_)
        if intent is None or {(part.stream_id, part.parts, part.amount) for part in parts} != {intent}:
            yield Violation("not intended", id_)
            continue
        if len(parts) > intent.parts:
            yield Violation("doubled", id_)
        first = parts[0]
        whole = [(first.version + n, first.position + n, n + 1, first.batch_id) for n in range(intent.parts)]
        if [(part.version, part.position, part.part, part.batch_id) for part in parts[: intent.parts]] != whole:
            yield Violation("torn", id_)


def _violations_of_streams(events: list[Stored]) -> Iterator[Violation]:
    versions: dict[str, int] = defaultdict(int)
    for event in events:
        versions[event.stream_id] += 1
        if event.version != versions[event.stream_id]:
            yield Violation("hole", f"{event.stream_id}: {event.version} instead of {versions[event.stream_id]}")
            versions[event.stream_id] = event.version


def _violations_of_replies(events: list[Stored], record: Record) -> Iterator[Violation]:
    """A reply tells of a state: it must be the one that the journal had at that version."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0])
    for event in events:
        totals[event.stream_id].append(totals[event.stream_id][-1] + event.amount)
    for id_, receipt in record.acks.items():
        history = totals[record.intents[id_].stream_id]
        if receipt.version >= len(history) or history[receipt.version] != receipt.total:
            yield Violation("wrong reply", id_)


async def _violations_of_replay(path: Path, events: list[Stored]) -> list[Violation]:
    totals: dict[str, int] = defaultdict(int)
    for event in events:
        totals[event.stream_id] += event.amount
    found: list[Violation] = []
    async with EventStore.open(f"sqlite:///{path}") as store:
        for stream_id, total in totals.items():
            key = stream_id.removeprefix("vault-")
            for use_snapshots in (True, False):
                try:
                    folded = await fold(store, Vault, key, use_snapshots=use_snapshots)
                except EventStoreError as error:
                    found.append(Violation("no replay", str(error)))
                    continue
                if folded.state.total != total:
                    found.append(Violation("wrong replay", f"{stream_id}: {folded.state.total} instead of {total}"))
    return found
