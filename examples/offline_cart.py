"""A shopping cart on two devices that are apart, each with a SQLite file of its own, and that agree when they meet.

    python examples/offline_cart.py [folder]

Two processes change one cart without seeing each other: a phone, and a laptop. Then both read what the other has
written, and come to the same cart; what they did not know of each other is listed as conflicts.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel

from actors import ActorSystem, Command, Conflict, ReplicatedActor, command_handler, event_handler
from actors.replicas.conflict import Resolution
from eventstore import Event
from eventstore.cli.app import main as eventstore

DEVICES = ("laptop", "phone")


class Put(Command[int]):
    item: str
    count: int = 1


class Order(Command[bool]):
    address: str


class Look(Command[dict[str, int]]):
    pass


class CartPut(Event):
    item: str
    count: int


class CartOrdered(Event):
    address: str


class CartState(BaseModel):
    items: dict[str, int] = {}
    address: str = ""


class Cart(ReplicatedActor[CartState]):
    """Of two orders that did not know each other the first stands: a cart is sent once."""

    @command_handler
    def put(self, command: Put) -> int:
        self.persist(CartPut(item=command.item, count=command.count))
        return self.state.items[command.item]

    @command_handler
    def order(self, command: Order) -> bool:
        if not self.state.address:
            self.persist(CartOrdered(address=command.address))
        return self.state.address == command.address

    @command_handler
    def look(self, command: Look) -> dict[str, int]:
        return dict(self.state.items)

    @event_handler
    def was_put(self, event: CartPut) -> None:
        self.state.items[event.item] = self.state.items.get(event.item, 0) + event.count

    @event_handler
    def ordered(self, event: CartOrdered) -> None:
        self.state.address = event.address

    def resolve(self, conflict: Conflict) -> Resolution:
        if isinstance(conflict.event, CartOrdered) and self.state.address:
            return None
        return conflict.event


def url(folder: Path, device: str) -> str:
    return f"sqlite:///{folder / device}.db"


async def apart(folder: Path, device: str) -> None:
    """What a device does while it sees nobody."""
    async with ActorSystem(url(folder, device), replica=device) as system:
        cart = system.ref(Cart, "ann")
        if device == "laptop":
            await cart.ask(Put(item="book"))
            await cart.ask(Order(address="Home Street 1"))
        else:
            await cart.ask(Put(item="book", count=2))
            await cart.ask(Put(item="pen"))
            await cart.ask(Order(address="Office Road 5"))
        items = await cart.ask(Look())
        print(f"{device}, alone: {items}")


async def together(folder: Path, device: str) -> None:
    """What it does when the other's file can be read."""
    peers = {other: url(folder, other) for other in DEVICES if other != device}
    async with ActorSystem(url(folder, device), replica=device, peers=peers, replicated=[Cart]) as system:
        cart = system.ref(Cart, "ann")
        # The reply comes when the other device is known to have stored what this one has.
        await cart.ask(Put(item=f"sticker from the {device}"), replicated="all")
        items = await cart.ask(Look())
        async with asyncio.timeout(20):
            while len(items) < 4:
                await asyncio.sleep(0.05)
                items = await cart.ask(Look())
        # It need not stay: the other one reads in this one's file that its sticker has arrived.
        print(f"{device}, together: {items}")


def run_both(phase: str, folder: Path) -> None:
    """One process for each device."""
    command = [sys.executable, __file__, phase, str(folder)]
    devices = [subprocess.Popen([*command, device], stdout=subprocess.PIPE, text=True) for device in DEVICES]
    for device in devices:
        said, _ = device.communicate(timeout=60)
        print(said, end="")
        if device.returncode:
            raise SystemExit(f"a device failed with exit code {device.returncode}")


def demo(folder: Path) -> None:
    run_both("apart", folder)
    run_both("together", folder)
    for device in DEVICES:
        print(f"\nConflicts on the {device} (stream, version there, written by, type, met, which, of whom):")
        eventstore(["conflicts", "list", url(folder, device)])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["apart", where, device]:
            asyncio.run(apart(Path(where), device))
        case ["together", where, device]:
            asyncio.run(together(Path(where), device))
        case [where]:
            Path(where).mkdir(parents=True, exist_ok=True)
            demo(Path(where))
        case _:
            with tempfile.TemporaryDirectory() as temporary:
                demo(Path(temporary))
