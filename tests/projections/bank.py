"""Actors whose events the ledger of `ledger.py` takes."""

from __future__ import annotations

from actors import Command, CommandRejected, PersistentActor, command_handler, event_handler

from .ledger import Closed, Paid


class Pay(Command[int]):
    amount: int


class PayLater(Command[int]):
    """The same, by an `async def` handler."""

    amount: int


class Close(Command[None]):
    pass


class Account(PersistentActor[list[int]], kind="account"):
    @command_handler
    def pay(self, command: Pay) -> int:
        if command.amount == 0:
            raise CommandRejected("nothing to pay")
        self.persist(Paid(amount=command.amount))
        return len(self.state)

    @command_handler
    async def pay_later(self, command: PayLater) -> int:
        self.persist(Paid(amount=command.amount))
        return len(self.state)

    @command_handler
    def close(self, command: Close) -> None:
        self.persist(Closed())

    @event_handler
    def paid(self, event: Paid) -> None:
        self.state.append(event.amount)

    @event_handler
    def closed(self, event: Closed) -> None:
        pass


class Other(Account, kind="other"):
    """Accounts that the ledger does not want."""
