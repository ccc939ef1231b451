"""The verdict on a store after its faults: what its journal holds against what its writers recorded.

The journal is read by plain clients (`journals.py`); only the replay of the actors uses the code under test.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from actors import fold
from eventstore import EventStore, EventStoreError

from .journals import Journal, Stored, journal_at
from .vault import Record, Vault


class Violation(NamedTuple):
    """A promise that was not kept: which one, and where."""

    rule: str
    what: str


def verdict(url: str, record: Record) -> list[Violation]:
    """Every violation in a store that nobody writes to now."""
    journal = journal_at(url)
    if journal.damage:
        # What a damaged journal holds says nothing.
        return [Violation("corrupt", message) for message in journal.damage]
    events = journal.events
    return [
        *_violations_of_deposits(events, record),
        *_violations_of_streams(journal),
        *_violations_of_replies(events, record),
        *asyncio.run(_violations_of_replay(url, events)),
    ]


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
        # Their positions rise, as the list does; between two of them another process may have taken some.
        whole = [(first.version + n, n + 1, first.batch_id) for n in range(intent.parts)]
        if [(part.version, part.part, part.batch_id) for part in parts[: intent.parts]] != whole:
            yield Violation("torn", id_)


def _violations_of_streams(journal: Journal) -> Iterator[Violation]:
    versions: dict[str, int] = defaultdict(int)
    for event in journal.events:
        versions[event.stream_id] += 1
        if event.version != versions[event.stream_id]:
            yield Violation("hole", f"{event.stream_id}: {event.version} instead of {versions[event.stream_id]}")
            versions[event.stream_id] = event.version
    if journal.heads is not None and journal.heads != versions:
        yield Violation("wrong head", f"{journal.heads} instead of {dict(versions)}")


def _violations_of_replies(events: list[Stored], record: Record) -> Iterator[Violation]:
    """A reply tells of a state: it must be the one that the journal had at that version."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0])
    for event in events:
        totals[event.stream_id].append(totals[event.stream_id][-1] + event.amount)
    for id_, receipt in record.acks.items():
        history = totals[record.intents[id_].stream_id]
        if receipt.version >= len(history) or history[receipt.version] != receipt.total:
            yield Violation("wrong reply", id_)


async def _violations_of_replay(url: str, events: list[Stored]) -> list[Violation]:
    totals: dict[str, int] = defaultdict(int)
    for event in events:
        totals[event.stream_id] += event.amount
    found: list[Violation] = []
    async with EventStore.open(url) as store:
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
