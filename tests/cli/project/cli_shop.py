"""A replicated actor, and another rule for its events."""

from __future__ import annotations

from pydantic import BaseModel

from actors import Command, Conflict, ReplicatedActor, SnapshotPolicy, command_handler, event_handler
from actors.replicas.conflict import Resolution
from eventstore import Event


class Add(Command[None]):
    item: str


class ShopAdded(Event):
    item: str


class Items(BaseModel):
    items: list[str] = []


class Shop(ReplicatedActor[Items]):
    @command_handler
    def add(self, command: Add) -> None:
        self.persist(ShopAdded(item=command.item))

    @event_handler
    def added(self, event: ShopAdded) -> None:
        self.state.items.append(event.item)


class FirstOnly(Shop, kind="FirstOnly"):
    def resolve(self, conflict: Conflict) -> Resolution:
        return None


class KeptShop(Shop, kind="Shop"):
    """The same with snapshots."""

    snapshot_policy = SnapshotPolicy(on_passivation=True)


class RuledShop(KeptShop, kind="Shop"):
    """What it is once it has a rule."""

    def resolve(self, conflict: Conflict) -> Resolution:
        return None


class RevisedShop(RuledShop, kind="Shop"):
    """The same, told of."""

    snapshot_policy = SnapshotPolicy(on_passivation=True, revision=1)
