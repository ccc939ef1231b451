"""Accounts of which there are many, with many events: what the tests of memory fold, project and check."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from actors import PersistentActor, event_handler
from eventstore import Event, Projection, RecordedEvent


class Booked(Event, name="cli-wide.booked"):
    amount: int
    note: str


class Balance(BaseModel):
    amount: int = 0
    bookings: int = 0


class Wide(PersistentActor[Balance]):
    @event_handler
    def booked(self, event: Booked) -> None:
        self.state.amount += event.amount
        self.state.bookings += 1


sums = Table("sums", MetaData(), Column("account", Text, primary_key=True), Column("amount", Integer, nullable=False))


class Sums(Projection, name="sums", kinds=("Wide",)):
    tables = (sums,)

    @event_handler
    async def booked(self, event: Booked, recorded: RecordedEvent, connection: AsyncConnection) -> None:
        table = self.table(sums)
        added = insert(table).values(account=recorded.stream_id, amount=event.amount)
        changed = {"amount": table.c.amount + added.excluded.amount}
        await connection.execute(added.on_conflict_do_update(["account"], set_=changed))
