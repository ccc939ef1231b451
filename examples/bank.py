"""A bank account as a persistent actor.

python examples/bank.py            # in a temporary file
python examples/bank.py bank.db    # in a file of your own: run it twice, and the money is still there
python examples/bank.py URL        # on Postgres or Redis, once `eventstore migrate URL` has been run
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel, PositiveInt

from actors import ActorSystem, Command, CommandRejected, PersistentActor, command_handler, event_handler
from eventstore import Event, EventStoreError

# What an account can be asked, and the type of its answer. Amounts are in cents.


class Deposit(Command[int]):
    """Put money in. The answer is the new balance."""

    amount: PositiveInt
    reference: str = ""


class Withdraw(Command[int]):
    """Take money out. The answer is the new balance."""

    amount: PositiveInt
    reference: str = ""


class GetBalance(Command[int]):
    pass


# What has happened. Events are what is stored, under the names given here; so the classes may be renamed later.


class Deposited(Event, name="account.deposited"):
    amount: int
    reference: str


class Withdrawn(Event, name="account.withdrawn"):
    amount: int
    reference: str


# The account. Its state is never stored: it is what its events add up to.


class Balance(BaseModel):
    amount: int = 0


class Account(PersistentActor[Balance], kind="account"):
    # Command handlers decide. The answer leaves when the events are safely on the disk.

    @command_handler
    def deposit(self, command: Deposit) -> int:
        self.persist(Deposited(amount=command.amount, reference=command.reference))
        return self.state.amount

    @command_handler
    def withdraw(self, command: Withdraw) -> int:
        if command.amount > self.state.amount:
            raise CommandRejected(f"{self.key} has {self.state.amount}, which is less than {command.amount}")
        self.persist(Withdrawn(amount=command.amount, reference=command.reference))
        return self.state.amount

    @command_handler
    def balance(self, command: GetBalance) -> int:
        return self.state.amount

    # Event handlers change the state: when an event happens, and again whenever the account is loaded.

    @event_handler
    def deposited(self, event: Deposited) -> None:
        self.state.amount += event.amount

    @event_handler
    def withdrawn(self, event: Withdrawn) -> None:
        self.state.amount -= event.amount


async def main(store: str) -> None:
    async with ActorSystem(store) as bank:
        alice, bob = bank.ref(Account, "alice"), bank.ref(Account, "bob")
        print(f"At first      alice {await alice.ask(GetBalance()):>6}   bob {await bob.ask(GetBalance()):>6}")

        await alice.ask(Deposit(amount=10_000, reference="salary"))
        await alice.ask(Withdraw(amount=2_500, reference="rent to bob"))
        await bob.ask(Deposit(amount=2_500, reference="rent from alice"))
        try:
            await bob.ask(Withdraw(amount=1_000_000, reference="a yacht"))
        except CommandRejected as reason:
            print(f"Refused       {reason}")

        print(f"In the end    alice {await alice.ask(GetBalance()):>6}   bob {await bob.ask(GetBalance()):>6}")

        # The journal tells how it came to this.
        async for recorded in bank.store.read(alice.stream_id):
            print(f"  {recorded.stream_id} version {recorded.version}: {bank.store.decode(recorded)!r}")


def url_of(store: str) -> str:
    """A URL as it is, and anything else as the name of a file."""
    return store if "://" in store else f"sqlite:///{Path(store).resolve()}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(main(url_of(sys.argv[1] if len(sys.argv) > 1 else f"{folder}/bank.db")))
        except EventStoreError as error:
            sys.exit(f"The store failed: {error}")
