"""Account: the actor that is measured, as a user would write it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from pydantic import BaseModel

from actors import Command, PersistentActor, command_handler, event_handler
from eventstore import Event


class Deposit(Command[int]):
    amount: int


class Peek(Command[int]):
    """Reads, and stores nothing."""


class PeekLater(Command[int]):
    """Reads, and is handled by an `async def`."""


class Hold(Command[None]):
    """Keeps the actor busy until `Account.release` is set."""


class Deposited(Event, name="benchmark.deposited"):
    amount: int


class Ordered(Event, name="benchmark.ordered"):
    """An event with as many fields as most have."""

    customer: str
    article: str
    quantity: int
    amount: int
    is_gift: bool
    note: str | None


class Balance(BaseModel):
    amount: int = 0


class Account(PersistentActor[Balance]):
    release: ClassVar[asyncio.Event]

    @command_handler
    def deposit(self, command: Deposit) -> int:
        self.persist(Deposited(amount=command.amount))
        return self.state.amount

    @command_handler
    def peek(self, command: Peek) -> int:
        return self.state.amount

    @command_handler
    async def peek_later(self, command: PeekLater) -> int:
        return self.state.amount

    @command_handler
    async def hold(self, command: Hold) -> None:
        await self.release.wait()

    @event_handler
    def deposited(self, event: Deposited) -> None:
        self.state.amount += event.amount

    @event_handler
    def ordered(self, event: Ordered) -> None:
        self.state.amount += event.amount
