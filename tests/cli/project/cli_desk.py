"""A user's module with a history worth looking into: a desk of tickets, on any database."""

from __future__ import annotations

from pydantic import BaseModel

from actors import Command, PersistentActor, SnapshotPolicy, command_handler, event_handler
from eventstore import Event, upcaster


class Open(Command[None]):
    ticket: str
    owner: str


class Close(Command[None]):
    ticket: str


class Opened(Event, name="cli-desk.opened", version=2):
    ticket: str
    owner: str


class Closed(Event, name="cli-desk.closed"):
    ticket: str


@upcaster("cli-desk.opened", from_version=1)
def with_owner(data: dict[str, str]) -> dict[str, str]:
    return {"ticket": data["ticket"], "owner": "nobody"}


class Ticket(BaseModel):
    owner: str
    is_open: bool = True


class Tickets(BaseModel):
    tickets: dict[str, Ticket] = {}
    owners: set[str] = set()
    open: int = 0


class Desk(PersistentActor[Tickets]):
    snapshot_policy = SnapshotPolicy(keep=10)

    @command_handler
    def open(self, command: Open) -> None:
        self.persist(Opened(ticket=command.ticket, owner=command.owner))

    @command_handler
    def close(self, command: Close) -> None:
        self.persist(Closed(ticket=command.ticket))

    @event_handler
    def opened(self, event: Opened) -> None:
        self.state.tickets[event.ticket] = Ticket(owner=event.owner)
        self.state.owners.add(event.owner)
        self.state.open += 1

    @event_handler
    def closed(self, event: Closed) -> None:
        # One that nobody had opened is closed all the same: the mistake that is looked for.
        self.state.tickets.pop(event.ticket, None)
        self.state.open -= 1
