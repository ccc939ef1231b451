"""The module of `cli_orders_v1`, two changes later, one of which forgot the events that are stored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from actors import Command, PersistentActor, command_handler, event_handler
from eventstore import Event, upcaster


class Ordered(Event, name="cli-orders.ordered"):
    item: str
    count: int
    colour: str


class Paid(Event, name="cli-orders.paid", version=2):
    cents: int


class Refunded(Event, name="cli-orders.refunded"):
    cents: int


@upcaster("cli-orders.paid", from_version=1)
def in_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"cents": data["euros"] * 100}


class Order(BaseModel):
    items: list[str] = []
    cents: int = 0


class Add(Command[int]):
    item: str


class OrderActor(PersistentActor[Order], kind="order"):
    @command_handler
    def add(self, command: Add) -> int:
        return len(self.state.items)

    @event_handler
    def ordered(self, event: Ordered | Refunded) -> None: ...
