"""A user's module: what the command line's tests name as `cli_ledger:Account`."""

from __future__ import annotations

import sys

from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from actors import Command, PersistentActor, SnapshotPolicy, command_handler, event_handler
from eventstore import Event, Projection, RecordedEvent

sys.stdout.write("this module prints while it is imported\n")


class Deposit(Command[int]):
    amount: int


class Deposited(Event, name="cli-ledger.deposited"):
    amount: int
    note: str = ""


class Stray(Event, name="cli-ledger.stray"):
    """An event that no account handles."""


class Balance(BaseModel):
    amount: int = 0
    notes: set[str] = set()
    history: list[int] = []


class Account(PersistentActor[Balance]):
    snapshot_policy = SnapshotPolicy(keep=3)

    @command_handler
    def deposit(self, command: Deposit) -> int:
        self.persist(Deposited(amount=command.amount))
        return self.state.amount

    @event_handler
    def deposited(self, event: Deposited) -> None:
        if event.note == "poison":
            raise ValueError("this event cannot be handled")
        self.state.amount += event.amount
        self.state.history.append(event.amount)
        if event.note:
            self.state.notes.add(event.note)


class Later(PersistentActor[Balance], kind="Account"):
    """The same accounts, after a change of what they compute."""

    snapshot_policy = SnapshotPolicy(revision=2)

    @event_handler
    def deposited(self, event: Deposited) -> None:
        self.state.amount += event.amount


class Unmade(PersistentActor[Balance], kind="Account"):
    def initial_state(self) -> Balance:
        raise LookupError("no initial state today")


class NotAnActor:
    pass


amounts = Table(
    "amounts", MetaData(), Column("account", Text, primary_key=True), Column("amount", Integer, nullable=False)
)


class Amounts(Projection, name="amounts", kinds=("Account",)):
    tables = (amounts,)
    retries = 0
    fails_on: int | None = None

    @event_handler
    async def deposited(self, event: Deposited, recorded: RecordedEvent, connection: AsyncConnection) -> None:
        if event.amount == type(self).fails_on:
            raise ValueError(f"{event.amount} cannot be")
        # SQLite's integers have 64 bits, and one test's amount has more.
        amount = min(event.amount, 2**31)
        table = self.table(amounts)
        added = insert(table).values(account=recorded.stream_id, amount=amount)
        changed = {"amount": table.c.amount + added.excluded.amount}
        await connection.execute(added.on_conflict_do_update(["account"], set_=changed))
