"""Load a store on a disk that keeps what was synced, and fail its power, again and again.

    python -m tests.faults.power_loss FOLDER LOSSES SEED BUILD [RULE]

A life is one process's time on the disk: it opens the store, sends again the commands with ids that had no reply,
reads, deposits, and closes. At chance moments of it, each just before a change of a file, it is looked at what a loss
of power would leave then. The next life begins with one of these, or with what a kill would leave: that all is
readable, and not all of it is durable. Counts and violations are printed as JSON. BUILD is `honest`, or the name of one
that is broken on purpose; that one is given up once it is found guilty of breaking RULE.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from actors import ActorRef, ActorSystem
from backends import sqlite
from backends.sqlite_writer import SQLiteWriter
from eventstore import Durability, EventStore, EventStoreError
from eventstore.backend import AppendOutcome, Batch
from tests.faults.apsw_driver import apsw_instead
from tests.faults.broken import Buffering, Wrapped, opened_with
from tests.faults.journals import sqlite_url
from tests.faults.losing_disk import Files, Left, LosingDisk, files_with, not_durable
from tests.faults.power_loss_verdict import (
    ONCE,
    Contents,
    contents_of,
    violations_of_order,
    violations_of_outcomes,
    violations_of_reads,
)
from tests.faults.vault import Deposit, GetTotal, Receipt, Record, SlowDeposit, Vault
from tests.faults.verdict import Violation, verdict

FILE = "vaults.db"
KEYS = ("a", "b", "c")
# A store begins anew then, so that it stays small.
LIVES_OF_A_STORE = 12
# Of some lives: the default of 1,000 pages is hardly reached by such short ones.
PAGES_TO_A_CHECKPOINT = 40
MOMENTS_OF_A_LIFE = 30
# Only what a killed process left unsynced is in danger then, so all lives but the first begin with that.
NOT_SECURING = "not securing the log"


class OutcomesApart(Wrapped):
    """Stores the outcomes of commands after their events, in a commit of their own."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        appended = await self._backend.append([[write._replace(commands=()) for write in batch] for batch in batches])
        outcomes = [[write._replace(expected=-1, events=()) for write in batch if write.commands] for batch in batches]
        await self._backend.append([batch for batch in outcomes if batch])
        return appended


BUILDS: dict[str, Callable[[str], EventStore]] = {
    "honest": EventStore.open,
    "acknowledging early": lambda url: opened_with(Buffering, url),
    "outcomes apart": lambda url: opened_with(OutcomesApart, url),
    "not syncing commits": EventStore.open,
    NOT_SECURING: EventStore.open,
}


class Moment(NamedTuple):
    """One moment of a life: what the files would be after a loss or a kill, and how much was said until then."""

    left: Left
    killed: Files
    lines: int
    reads: int


@dataclass
class Counts:
    """Whether the fault has struck, and where."""

    losses: int = 0
    lives: int = 0
    kills: int = 0
    syncs: int = 0
    took_writes: int = 0
    """Losses after which the files differed from what was written."""
    in_flight: int = 0
    """Losses when a deposit had no reply yet."""
    acks: int = 0
    outcomes: int = 0
    violations: dict[str, int] = field(default_factory=dict[str, int])
    """How many of each rule, and one of each in full."""
    examples: dict[str, str] = field(default_factory=dict[str, str])

    def add(self, violations: list[Violation]) -> None:
        for rule, what in violations:
            self.violations[rule] = self.violations.get(rule, 0) + 1
            self.examples.setdefault(rule, f"loss {self.losses}: {what}")


class Said(NamedTuple):
    """What the clients of one store know, whatever becomes of the processes that they ask."""

    lines: list[str]
    reads: list[tuple[str, Receipt]]
    deposits: dict[str, tuple[str, Deposit]]

    def record(self, lines: int) -> Record:
        record = Record()
        record.read("\n".join(self.lines[:lines]))
        return record


class Life:
    """One life: its load, and the moments at which a loss is looked at."""

    def __init__(self, folder: Path, name: str, files: Files, said: Said, chance: random.Random, build: str) -> None:
        self.name = name
        self.said = said
        self.moments: list[Moment] = []
        self._chance = chance
        # The first change often: until then nothing was made durable, whatever was said.
        self._next = 1 if build == NOT_SECURING else chance.choice((1, chance.randint(1, 60)))
        self.disk = LosingDisk(name, folder / name, files, self._before_a_change)
        self.url = sqlite_url(folder / name / FILE)

    def _before_a_change(self, is_sync: bool) -> None:
        self._next -= 1
        is_chosen = self._next <= 0 or (is_sync and self._chance.random() < 0.1)
        if not is_chosen or len(self.moments) >= MOMENTS_OF_A_LIFE:
            return
        self._next = self._chance.randint(1, 60)
        # What was said is counted first: what is said meanwhile is held to less than it could be.
        lines, reads = len(self.said.lines), len(self.said.reads)
        left = self.disk.after_a_loss(self._chance)
        self.moments.append(Moment(left, self.disk.after_a_kill(), lines, reads))

    def live(self, open_store: Callable[[str], EventStore]) -> None:
        pages = PAGES_TO_A_CHECKPOINT if self._chance.random() < 0.5 else None
        with apsw_instead(self.name, pages_to_a_checkpoint=pages):
            asyncio.run(self._work(open_store))

    async def _work(self, open_store: Callable[[str], EventStore]) -> None:
        async with open_store(self.url) as store, ActorSystem(store, catch_up_seconds=60) as system:
            record = self.said.record(len(self.said.lines))
            again = [id_ for id_ in record.intents if id_.startswith(ONCE) and id_ not in record.acks]
            await asyncio.gather(*(self._send(system, id_) for id_ in again))
            await asyncio.gather(*(self._read(system.ref(Vault, key)) for key in KEYS))
            await asyncio.gather(*(self._teller(system, f"{self.name}/{n}") for n in range(2 * len(KEYS))))

    async def _teller(self, system: ActorSystem, name: str) -> None:
        chance = self._chance
        for number in range(chance.randint(1, 6)):
            prefix, make = chance.choice(((ONCE, Deposit), (ONCE, Deposit), ("any", Deposit), ("slow", SlowDeposit)))
            id_ = f"{prefix}/{name}/{number}"
            command = make(id=id_, parts=chance.choice((1, 1, 1, 3)), amount=chance.randint(1, 9))
            key = chance.choice(KEYS)
            self.said.deposits[id_] = (key, command)
            self.said.lines.append(f"intent {id_} vault-{key} {command.parts} {command.amount}")
            await self._send(system, id_)

    async def _send(self, system: ActorSystem, id_: str) -> None:
        key, command = self.said.deposits[id_]
        receipt = await system.ref(Vault, key).ask(command, command_id=id_ if id_.startswith(ONCE) else None)
        self.said.lines.append(f"ack {id_} {receipt.version} {receipt.total}")

    async def _read(self, vault: ActorRef[Vault]) -> None:
        receipt = await vault.ask(GetTotal())
        self.said.reads.append((vault.stream_id, receipt))


def lose(folder: Path, losses: int, seed: int, build: str, rule: str | None) -> Counts:
    """Lives after lives, until the power was lost so many times, or a rule was broken."""
    chance = random.Random(seed)
    counts = Counts()
    new = new_store(folder)
    files, said = new, Said([], [], {})
    while counts.losses < losses and rule not in counts.violations:
        if counts.lives % LIVES_OF_A_STORE == 0:
            files, said = new, Said([], [], {})
        counts.lives += 1
        life = Life(folder, f"life-{counts.lives}", files, said, chance, build)
        try:
            life.live(BUILDS[build])
        except EventStoreError as error:
            # After what the life before it was promised, there was nothing to prevent it.
            counts.add([Violation("no service", str(error))])
            files, said = new, Said([], [], {})
            continue
        counts.syncs += life.disk.syncs
        in_the_end = contents_of(life.url)
        for moment in life.moments[: losses - counts.losses]:
            look_at(moment, folder / "found", said, in_the_end, counts)
        if life.moments:
            moment = chance.choice(life.moments)
            is_kill = build == NOT_SECURING or chance.random() < 0.5
            if is_kill:
                # A kill is of interest where there is something that the power could still take.
                moment = chance.choice([m for m in life.moments if not_durable(m.killed)] or [moment])
            counts.kills += is_kill
            files = moment.killed if is_kill else files_with(moment.left.contents)
            del said.lines[moment.lines :], said.reads[moment.reads :]
        else:
            files = life.disk.after_a_kill()
        life.disk.unregister()
        shutil.rmtree(folder / life.name)
    return counts


def new_store(folder: Path) -> Files:
    """The files of an empty journal."""
    path = folder / "new" / FILE
    path.parent.mkdir()

    async def make() -> None:
        async with EventStore.open(sqlite_url(path)):
            pass

    asyncio.run(make())
    return files_with({FILE: path.read_bytes()})


def look_at(moment: Moment, folder: Path, said: Said, in_the_end: Contents, counts: Counts) -> None:
    """What one loss left, and whether that is what was promised. `in_the_end` is what the life went on to store."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in moment.left.contents.items():
        (folder / name).write_bytes(data)
    url = sqlite_url(folder / FILE)
    record = said.record(moment.lines)
    counts.losses += 1
    counts.took_writes += moment.left.is_changed
    counts.in_flight += len(record.intents) > len(record.acks)
    counts.acks += len(record.acks)

    violations = verdict(url, record)
    if not any(violation.rule == "corrupt" for violation in violations):
        found = contents_of(url)
        counts.outcomes += len(found.commands)
        violations += violations_of_order(found, in_the_end)
        violations += violations_of_outcomes(url, found, record)
        violations += violations_of_reads(url, said.reads[: moment.reads])
    counts.add(violations)


def main(folder: Path, losses: int, seed: int, build: str, rule: str | None = None) -> dict[str, Any]:
    # The errors of broken builds are expected.
    logging.disable()
    breaks: dict[str, Any] = {
        "not syncing commits": patch.dict(sqlite._SYNCHRONOUS, {Durability.POWER_LOSS: "NORMAL"}),
        NOT_SECURING: patch.object(SQLiteWriter, "_secure_log", lambda *_: None),
    }
    if build in breaks:
        with breaks[build]:
            return asdict(lose(folder, losses, seed, build, rule))
    return asdict(lose(folder, losses, seed, build, rule))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])))
