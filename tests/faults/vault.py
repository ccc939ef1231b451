"""The load that the fault tests put on a store: vaults, deposits that carry their own ids, and a record of both.

What is written to the record, a line each:

    intent ID STREAM PARTS AMOUNT     before a deposit is asked for
    ack ID VERSION TOTAL              after its reply: the vault's version, and what was in it then
    refused ID ERROR                  after an error that promises that nothing was stored
    unknown ID                        after any other error

A line goes out in one system call, so it arrives whole or not at all, and what was written survives the writer.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel

from actors import (
    ActorRef,
    ActorSystem,
    AskTimeout,
    Command,
    PersistentActor,
    Restart,
    SnapshotPolicy,
    command_handler,
    event_handler,
)
from eventstore import BackendUnavailable, ConcurrencyError, Event, OutcomeUnknown


class Receipt(NamedTuple):
    """The vault as it was after a deposit."""

    version: int
    total: int


class Deposit(Command[Receipt]):
    """Stored as one event per part, all in one batch."""

    id: str
    parts: int = 1
    amount: int = 1


class SlowDeposit(Deposit):
    """One that is handled by an `async def` handler, which waits until its first part is durable."""


class GetTotal(Command[Receipt]):
    pass


class Deposited(Event, name="faults.deposited"):
    id: str
    part: int
    parts: int
    amount: int


class Content(BaseModel):
    total: int = 0


class Vault(PersistentActor[Content], kind="vault"):
    snapshot_policy = SnapshotPolicy(every=20)
    # The faults come close together, and each is to find work under way.
    supervision = Restart(first_pause_seconds=0.01, longest_pause_seconds=0.2)

    @command_handler
    def deposit(self, command: Deposit) -> Receipt:
        self.persist(*parts_of(command))
        return Receipt(self.version, self.state.total)

    @command_handler
    async def slow_deposit(self, command: SlowDeposit) -> Receipt:
        await self.persist(*parts_of(command))
        await asyncio.sleep(0)
        return Receipt(self.version, self.state.total)

    @command_handler
    def total(self, command: GetTotal) -> Receipt:
        return Receipt(self.version, self.state.total)

    @event_handler
    def deposited(self, event: Deposited) -> None:
        self.state.total += event.amount


def parts_of(command: Deposit) -> list[Deposited]:
    return [
        Deposited(id=command.id, part=part, parts=command.parts, amount=command.amount)
        for part in range(1, command.parts + 1)
    ]


# The record.


class Intent(NamedTuple):
    stream_id: str
    parts: int
    amount: int


@dataclass
class Record:
    """What the writers of one store said."""

    intents: dict[str, Intent] = field(default_factory=dict[str, Intent])
    acks: dict[str, Receipt] = field(default_factory=dict[str, Receipt])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    unknown: set[str] = field(default_factory=set[str])

    def read(self, lines: str) -> None:
        for line in lines.splitlines():
            match line.split(" "):
                case ["intent", id_, stream_id, parts, amount]:
                    self.intents[id_] = Intent(stream_id, int(parts), int(amount))
                case ["ack", id_, version, total]:
                    self.acks[id_] = Receipt(int(version), int(total))
                case ["refused", id_, error]:
                    self.refused[id_] = error
                case ["unknown", id_]:
                    self.unknown.add(id_)
                case _:
                    raise ValueError(f"this is no line of a record: {line!r}")


Write = Callable[[str], None]


def writer_to(descriptor: int) -> Write:
    def write(line: str) -> None:
        os.write(descriptor, f"{line}\n".encode())

    return write


# The load.

DepositInto = Callable[[ActorRef[Vault], Deposit, Write], Coroutine[Any, Any, None]]


async def deposit(vault: ActorRef[Vault], command: Deposit, write: Write) -> None:
    """One deposit with its lines."""
    write(f"intent {command.id} {vault.stream_id} {command.parts} {command.amount}")
    try:
        receipt = await vault.ask(command)
    except (OutcomeUnknown, AskTimeout):
        write(f"unknown {command.id}")
    except (ConcurrencyError, BackendUnavailable) as error:
        write(f"refused {command.id} {type(error).__name__}")
        # Who is refused at once would else ask as fast as the processor goes.
        await asyncio.sleep(0.005)
    else:
        write(f"ack {command.id} {receipt.version} {receipt.total}")


async def keep_depositing(
    system: ActorSystem, keys: Sequence[str], prefix: str, write: Write, deposit: DepositInto = deposit
) -> NoReturn:
    """Deposit into vaults for ever, with three tellers at each: in one part or several, by either kind of handler."""

    async def teller(vault: ActorRef[Vault], name: str) -> None:
        for number in count():
            make = SlowDeposit if random.random() < 0.1 else Deposit
            parts = random.choice((1, 1, 1, 3))
            await deposit(vault, make(id=f"{name}/{number}", parts=parts, amount=random.randint(1, 9)), write)

    async with asyncio.TaskGroup() as tellers:
        for key in keys:
            for number in range(3):
                tellers.create_task(teller(system.ref(Vault, key), f"{prefix}/{key}/{number}"))
    raise AssertionError("the tellers have stopped")
