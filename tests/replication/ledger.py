"""Actors for the tests of replication: one whose state shows in what order its events were applied, and others."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from pydantic import BaseModel

from actors import (
    Command,
    CommandRejected,
    Conflict,
    ReplicatedActor,
    SnapshotPolicy,
    command_handler,
    event_handler,
)
from actors.replicas.conflict import Resolution
from eventstore import Event


class Note(Command[int]):
    text: str


class Read(Command[list[str]]):
    pass


class Noted(Event):
    text: str


class Lines(BaseModel):
    lines: list[str] = []


class Ledger(ReplicatedActor[Lines]):
    """No two orders of its events lead to the same state."""

    @command_handler
    def note(self, command: Note) -> int:
        first, *more = command.text.split("+")
        self.persist(Noted(text=first))
        if more:
            self.persist(*(Noted(text=text) for text in more))
        return len(self.state.lines)

    @command_handler
    def read(self, command: Read) -> list[str]:
        return list(self.state.lines)

    @event_handler
    def noted(self, event: Noted) -> None:
        self.state.lines.append(event.text)


class KeptLedger(Ledger, kind="KeptLedger"):
    """The same, with snapshots."""

    snapshot_policy = SnapshotPolicy(every=5, on_passivation=True)


class Ruled(Ledger, kind="Ruled"):
    """A rule that shows what it was asked, and snapshots of what comes of it."""

    snapshot_policy = SnapshotPolicy(every=3)

    def resolve(self, conflict: Conflict) -> Resolution:
        against = ",".join(each.event.text for each in conflict.against if isinstance(each.event, Noted))
        return Noted(text=f"{conflict.event.model_dump()['text']}|{against}")


class BeBusy(Command[None]):
    pass


class Busy(Ledger, kind="Busy"):
    """Serves nobody else while it is busy, which is for as long as a test wants."""

    is_busy: ClassVar[asyncio.Event]
    may_end: ClassVar[asyncio.Event]

    @command_handler
    async def be_busy(self, command: BeBusy) -> None:
        self.is_busy.set()
        await self.may_end.wait()


class Deposit(Command[int]):
    amount: int


class Withdraw(Command[int]):
    amount: int


class Balance(Command[int]):
    pass


class Deposited(Event):
    amount: int


class Withdrawn(Event):
    amount: int


class OverdraftFound(Event):
    amount: int


class Account(BaseModel):
    amount: int = 0
    found: int = 0


class Accounts(ReplicatedActor[Account], kind="account"):
    """Overdrawn where two replicas allow what one would not have; then one of them says so."""

    @command_handler
    def deposit(self, command: Deposit) -> int:
        self.persist(Deposited(amount=command.amount))
        return self.state.amount

    @command_handler
    def withdraw(self, command: Withdraw) -> int:
        if command.amount > self.state.amount:
            raise CommandRejected("not enough")
        self.persist(Withdrawn(amount=command.amount))
        return self.state.amount

    @command_handler
    def balance(self, command: Balance) -> int:
        return self.state.amount

    def after_merge(self) -> None:
        if self.state.amount < -self.state.found:
            self.persist(OverdraftFound(amount=-self.state.amount))

    @event_handler
    def deposited(self, event: Deposited) -> None:
        self.state.amount += event.amount

    @event_handler
    def withdrawn(self, event: Withdrawn) -> None:
        self.state.amount -= event.amount

    @event_handler
    def overdraft_found(self, event: OverdraftFound) -> None:
        self.state.found = event.amount
