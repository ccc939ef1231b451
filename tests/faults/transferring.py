"""Transfers between vaults, each a transaction with an id that is sent until it is answered; and the verdict on them.

    python -m tests.faults.transferring URL RECORD NAME COUNT BUILD

is one of several processes that do so at the same time. It says when it is ready, begins when it gets a line, and says
in the end how often it was overtaken by another process.

What is written to the record, a line each:

    intent ID FROM TO AMOUNT                   before a transfer is asked for
    ack ID VERSION TOTAL VERSION TOTAL         after it: each vault's version, and what was in it then
    again ID ERROR                             there was no answer, so it is sent again
    gave-up ID ERROR                           there will be none, which must not happen
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from actors import ActorSystem, CommandForgotten, DuplicateCommandMismatch, OutcomeUnknown, Transaction, fold
from eventstore import BackendUnavailable, ConcurrencyError, EventStore, EventStoreError
from eventstore.backend import Appended, AppendOutcome, Batch, StreamWrite
from tests.faults.broken import Wrapped, opened_with
from tests.faults.journals import Stored, journal_at
from tests.faults.vault import Deposit, Receipt, Vault, Write, writer_to
from tests.faults.verdict import Violation

KEYS = tuple("abcdef")
AT_ONCE = 6
# A machine that has much to do is no deadlock, and a deadlock would last until then.
PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.005


class Transfer(NamedTuple):
    id: str
    source: str
    target: str
    amount: int


def chosen(id_: str) -> Transfer:
    """The transfer of an id: always the same. Every pair of vaults occurs, in both orders."""
    chance = random.Random(id_)
    return Transfer(id_, *chance.sample(KEYS, 2), chance.randint(1, 9))


async def transfer(system: ActorSystem, wanted: Transfer, write: Write) -> None:
    """One transfer with its lines, sent until it is answered."""

    async def work(tx: Transaction) -> tuple[Receipt, Receipt]:
        taken = await tx.ask(system.ref(Vault, wanted.source), Deposit(id=wanted.id, amount=-wanted.amount))
        await asyncio.sleep(0)
        given = await tx.ask(system.ref(Vault, wanted.target), Deposit(id=wanted.id, amount=wanted.amount))
        return taken, given

    write(f"intent {wanted.id} {wanted.source} {wanted.target} {wanted.amount}")
    while True:
        try:
            taken, given = await system.transact(work, command_id=wanted.id)
        except (OutcomeUnknown, BackendUnavailable, ConcurrencyError) as error:
            write(f"again {wanted.id} {type(error).__name__}")
            await asyncio.sleep(_PAUSE_SECONDS)
        except (CommandForgotten, DuplicateCommandMismatch) as error:
            # Where a promise is broken, one side alone may remember it.
            write(f"gave-up {wanted.id} {type(error).__name__}")
            return
        else:
            write(f"ack {wanted.id} {taken.version} {taken.total} {given.version} {given.total}")
            return


async def transfer_all(system: ActorSystem, ids: Iterable[str], write: Write) -> None:
    """Transfer, so many at once, until there is no id left."""
    rest = iter(ids)

    async def teller() -> None:
        for id_ in rest:
            await transfer(system, chosen(id_), write)

    async with asyncio.TaskGroup() as tellers:
        for _ in range(AT_ONCE):
            tellers.create_task(teller())


# Builds


class Counting(Wrapped):
    """Counts the appends that another process was faster than."""

    overtaken = 0

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        outcomes = await self._backend.append(batches)
        Counting.overtaken += sum(isinstance(outcome, ConcurrencyError) for outcome in outcomes)
        return outcomes


class InTwo(Wrapped):
    """Stores what belongs to several actors in a batch for each."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return [await self._apart(batch) for batch in batches]

    async def _apart(self, batch: Batch) -> AppendOutcome:
        writes: dict[str, list[StreamWrite]] = defaultdict(list)
        for write in batch:
            writes[write.stream_id].append(write)
        versions: dict[str, list[int]] = {}
        for stream_id, part in writes.items():
            if versions:
                await asyncio.sleep(0.002)
            (outcome,) = await self._backend.append([part])
            if not isinstance(outcome, Appended):
                return outcome
            versions[stream_id] = list(outcome.versions)
        return Appended(0, tuple(versions[write.stream_id].pop(0) for write in batch))


class Unchecked(Wrapped):
    """Says that it was stored, whatever another process did."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        await self._backend.append(batches)
        return [Appended(0, tuple(write.expected + len(write.events) for write in batch)) for batch in batches]


BUILDS: dict[str, Callable[[str], EventStore]] = {
    "honest": lambda url: opened_with(Counting, url),
    "in two": lambda url: opened_with(InTwo, url),
    "unchecked": lambda url: opened_with(Unchecked, url),
}


# The verdict


@dataclass
class Answers:
    """What was said of transfers."""

    intents: dict[str, Transfer] = field(default_factory=dict[str, Transfer])
    acks: dict[str, set[tuple[Receipt, Receipt]]] = field(default_factory=lambda: defaultdict(set))
    errors: Counter[str] = field(default_factory=Counter[str])

    def read(self, lines: str) -> None:
        for line in lines.splitlines():
            match line.split(" "):
                case ["intent", id_, source, target, amount]:
                    self.intents[id_] = Transfer(id_, source, target, int(amount))
                case ["ack", id_, *numbers]:
                    version, total, other_version, other_total = map(int, numbers)
                    self.acks[id_].add((Receipt(version, total), Receipt(other_version, other_total)))
                case ["again" | "gave-up", _, error]:
                    self.errors[error] += 1
                case _:
                    raise ValueError(f"this is no line of a record: {line!r}")

    @property
    def unanswered(self) -> list[str]:
        return [id_ for id_ in self.intents if id_ not in self.acks]


def verdict_on_transfers(url: str, said: Answers) -> list[Violation]:
    """Every violation in a store that nobody writes to now."""
    journal = journal_at(url)
    if journal.damage:
        return [Violation("corrupt", message) for message in journal.damage]
    totals: dict[str, list[int]] = defaultdict(lambda: [0])
    for event in journal.events:
        totals[event.stream_id].append(totals[event.stream_id][-1] + event.amount)
    return [
        *_violations_of_transfers(journal.events, said),
        *_violations_of_answers(totals, said),
        *asyncio.run(_violations_of_replay(url, totals)),
    ]


def _violations_of_transfers(events: list[Stored], said: Answers) -> Iterator[Violation]:
    sides: dict[str, list[Stored]] = defaultdict(list)
    versions: dict[str, int] = defaultdict(int)
    for event in events:
        sides[event.id].append(event)
        versions[event.stream_id] += 1
        if event.version != versions[event.stream_id]:
            yield Violation("hole", f"{event.stream_id}: {event.version}")
    if total := sum(event.amount for event in events):
        yield Violation("made or lost", f"{total}")
    for id_ in said.acks.keys() - sides.keys():
        yield Violation("lost", id_)
    for id_, stored in sides.items():
        wanted = said.intents.get(id_)
        if wanted is None:
            yield Violation("not intended", id_)
            continue
        _, source, target, amount = wanted
        found = [(side.stream_id, side.amount) for side in stored]
        whole = [(f"vault-{source}", -amount), (f"vault-{target}", amount)]
        if len(found) > len(whole):
            yield Violation("doubled", id_)
        elif found != whole:
            yield Violation("torn", f"{id_}: {found}")
        # On Postgres another process may have taken a position in between.
        elif stored[0].batch_id != stored[1].batch_id:
            yield Violation("apart", id_)


def _violations_of_answers(totals: dict[str, list[int]], said: Answers) -> Iterator[Violation]:
    for id_, answers in said.acks.items():
        if len(answers) > 1:
            yield Violation("two answers", f"{id_}: {sorted(answers)}")
        wanted = said.intents[id_]
        for answer in answers:
            for key, receipt in zip((wanted.source, wanted.target), answer, strict=True):
                history = totals[f"vault-{key}"]
                if receipt.version >= len(history) or history[receipt.version] != receipt.total:
                    yield Violation("wrong reply", f"{id_}: {receipt} of {key}")


async def _violations_of_replay(url: str, totals: dict[str, list[int]]) -> list[Violation]:
    found: list[Violation] = []
    async with EventStore.open(url) as store:
        for stream_id, history in totals.items():
            for use_snapshots in (True, False):
                key = stream_id.removeprefix("vault-")
                try:
                    folded = await fold(store, Vault, key, use_snapshots=use_snapshots)
                except EventStoreError as error:
                    found.append(Violation("no replay", str(error)))
                    continue
                if folded.state.total != history[-1]:
                    found.append(Violation("wrong replay", f"{stream_id}: {folded.state.total}"))
    return found


async def main(record: str, name: str, count: int, store: EventStore) -> None:
    write = writer_to(os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    async with store, ActorSystem(store, transaction_timeout=PATIENCE_SECONDS) as system:
        print("ready", flush=True)
        sys.stdin.readline()
        await transfer_all(system, [f"{name}/{number}" for number in range(count)], write)
    print(Counting.overtaken)


if __name__ == "__main__":
    url, record, name, count, build = sys.argv[1:]
    # Conflicts are expected, and the record has what came of them.
    logging.disable()
    asyncio.run(main(record, name, int(count), BUILDS[build](url)))
