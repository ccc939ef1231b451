"""Commands with ids that are sent again, by the same process or another, until they are answered; and the verdict.

Beside the lines of `vault.py` a record has

    rejected ID VERSION TOTAL    the answer to an overdraft: the vault's version and total when it was handled
    again ID ERROR               there was no answer, so it is sent again

A command is told by its id alone: the kind is in it, parts and amount follow from it.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from actors import (
    ActorRef,
    AskTimeout,
    Command,
    CommandRejected,
    MailboxFull,
    OutcomeUnknown,
    command_handler,
)
from eventstore import BackendUnavailable, ConcurrencyError
from tests.faults.journals import stored_events
from tests.faults.outcomes import payloads_at
from tests.faults.vault import Deposit, Receipt, Record, Vault, Write, parts_of
from tests.faults.verdict import Violation, verdict

_PAUSE_SECONDS = 0.005


class PatientDeposit(Deposit):
    """Handled by an `async def` handler, which stores everything at its end."""


class Overdraft(Command[Receipt]):
    """It stores nothing and is rejected, with what was there at that moment."""

    id: str


class Overdrawn(CommandRejected):
    pass


class RememberingVault(Vault, kind="vault"):
    @command_handler
    async def patient_deposit(self, command: PatientDeposit) -> Receipt:
        await asyncio.sleep(0)
        self.persist(*parts_of(command))
        return Receipt(self.version, self.state.total)

    @command_handler
    def overdraft(self, command: Overdraft) -> Receipt:
        raise Overdrawn(f"{self.version} {self.state.total}")


class Answer(NamedTuple):
    is_rejection: bool
    receipt: Receipt


KINDS = ("plain", "plain", "plain", "patient", "overdraft")


def kind_of(number: int) -> str:
    return KINDS[number % len(KINDS)]


def command_of(id_: str) -> Deposit | Overdraft:
    """The command of an id, which ends with its kind: always the same."""
    chance = zlib.crc32(id_.encode())
    match id_.rpartition("/")[2]:
        case "overdraft":
            return Overdraft(id=id_)
        case "patient":
            return PatientDeposit(id=id_, parts=1 + chance % 2, amount=1 + chance % 9)
        case _:
            return Deposit(id=id_, parts=3 if chance % 4 == 0 else 1, amount=1 + chance % 9)


# How one try is made: with the command's id, in an honest build.
Ask = Callable[[ActorRef[RememberingVault], Deposit | Overdraft], Awaitable[Receipt]]


async def ask(vault: ActorRef[RememberingVault], command: Deposit | Overdraft) -> Receipt:
    return await vault.ask(command, command_id=command.id)


async def ask_without_id(vault: ActorRef[RememberingVault], command: Deposit | Overdraft) -> Receipt:
    return await vault.ask(command)


async def send_until_answered(vault: ActorRef[RememberingVault], id_: str, write: Write, ask: Ask = ask) -> None:
    command = command_of(id_)
    match command:
        case Deposit():
            write(f"intent {id_} {vault.stream_id} {command.parts} {command.amount}")
        case _:
            write(f"intent {id_} {vault.stream_id} 0 0")
    while True:
        try:
            receipt = await ask(vault, command)
        except Overdrawn as rejection:
            write(f"rejected {id_} {rejection}")
            return
        except (OutcomeUnknown, AskTimeout, ConcurrencyError, BackendUnavailable, MailboxFull) as error:
            write(f"again {id_} {type(error).__name__}")
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            write(f"ack {id_} {receipt.version} {receipt.total}")
            return


@dataclass
class Answers:
    """What was said of commands with ids, and of deposits without."""

    streams: dict[str, str] = field(default_factory=dict[str, str])
    answers: dict[str, set[Answer]] = field(default_factory=lambda: defaultdict(set))
    times: Counter[str] = field(default_factory=Counter[str])
    """How often each command was sent from the start."""
    errors: Counter[str] = field(default_factory=Counter[str])
    record: Record = field(default_factory=Record)
    """All of it but overdrafts, for the verdict."""
    without_ids: set[str] = field(default_factory=set[str])

    def read(self, lines: str) -> None:
        for line in lines.splitlines():
            match line.split(" "):
                case ["intent", id_, stream_id, parts, _]:
                    self.streams[id_] = stream_id
                    self.times[id_] += 1
                    if id_.endswith("/no-id"):
                        self.without_ids.add(id_)
                    if parts != "0":
                        self.record.read(line)
                case ["rejected", id_, version, total]:
                    self.answers[id_].add(Answer(True, Receipt(int(version), int(total))))
                case ["ack", id_, version, total]:
                    self.answers[id_].add(Answer(False, Receipt(int(version), int(total))))
                    self.record.read(line)
                case ["again", _, error]:
                    self.errors[error] += 1
                case _:
                    self.record.read(line)

    @property
    def unanswered(self) -> list[str]:
        """The ids of commands that nobody has an answer to, in the order in which they were sent."""
        return [id_ for id_ in self.streams if id_ not in self.answers and id_ not in self.without_ids]


def verdict_on_answers(url: str, said: Answers) -> list[Violation]:
    """Every violation in a store where each command with an id was sent until it was answered."""
    return [*verdict(url, said.record), *_violations_of_answers(url, said)]


def _violations_of_answers(url: str, said: Answers) -> Iterator[Violation]:
    for id_ in said.unanswered:
        yield Violation("not answered", id_)
    remembered: dict[str, list[tuple[str, Answer]]] = defaultdict(list)
    for stream_id, id_, payload in payloads_at(url):
        remembered[id_].append((stream_id, _answer(payload)))
    for id_ in remembered.keys() - said.answers.keys():
        yield Violation("remembered but not answered", id_)
    totals: dict[str, list[int]] = defaultdict(lambda: [0])
    for event in stored_events(url):
        totals[event.stream_id].append(totals[event.stream_id][-1] + event.amount)
    for id_, answers in said.answers.items():
        if len(answers) > 1:
            yield Violation("two answers", f"{id_}: {sorted(answers)}")
        for answer in answers:
            history = totals[said.streams[id_]]
            if answer.receipt.version >= len(history) or history[answer.receipt.version] != answer.receipt.total:
                yield Violation("wrong reply", id_)
            if id_ not in said.without_ids and remembered[id_] != [(said.streams[id_], answer)]:
                yield Violation("another answer", f"{id_}: {answer}, but {remembered[id_]} is remembered")


def _answer(payload: str | bytes) -> Answer:
    """What is remembered: a receipt, or the rejection with one in its message."""
    match json.loads(payload):
        case [version, total]:
            return Answer(False, Receipt(version, total))
        case {"error": "Overdrawn", "message": str(message)}:
            version, total = map(int, message.split())
            return Answer(True, Receipt(version, total))
        case other:
            raise ValueError(f"this is no answer to a command: {other!r}")
