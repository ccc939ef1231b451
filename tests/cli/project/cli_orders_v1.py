"""A user's module, before it was changed: `cli_orders` is what became of it."""

from __future__ import annotations

from pydantic import BaseModel

from actors import Command, PersistentActor, command_handler, event_handler
from eventstore import Event


class Ordered(Event, name="cli-orders.ordered"):
    item: str
    count: int


class Paid(Event, name="cli-orders.paid"):
    euros: int


class Gone(Event, name="cli-orders.gone"):
    text: str


class Order(BaseModel):
    items: list[str] = []


class Add(Command[int]):
    item: str


class OrderActor(PersistentActor[Order], kind="order"):
    @command_handler
    def add(self, command: Add) -> int:
        self.persist(Ordered(item=command.item, count=1))
        return len(self.state.items)

    @event_handler
    def ordered(self, event: Ordered | Paid | Gone) -> None: ...
