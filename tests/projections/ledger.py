"""A read model for tests: how much each account has, and which events it got, in order."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import Column, Integer, MetaData, String, Table, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import Event, EventStore, Metadata, NewEvent, Projection, RecordedEvent, event_handler
from eventstore.backend import Expected, StreamWrite
from eventstore.codec import encoded_event, new_event_id

metadata = MetaData()
ENTRIES = Table(
    "ledger_entries",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("position", Integer, nullable=False, index=True),
    Column("account", String, nullable=False),
    Column("amount", Integer, nullable=False),
)


class Paid(Event, name="ledger.paid"):
    amount: int


class Closed(Event, name="ledger.closed"):
    pass


class Ledger(Projection, name="ledger", kinds=("account",)):
    """On SQL stores in a table, elsewhere in a list of this process."""

    tables = (ENTRIES,)
    batch_size = 4
    retries = 1
    first_pause_seconds = 0.001

    fails_on: int | None = None

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @event_handler
    def paid(self, event: Paid, recorded: RecordedEvent) -> None:
        if event.amount == type(self).fails_on:
            raise ValueError("this amount cannot be")
        self.rows.append({"position": recorded.position, "account": recorded.stream_id, "amount": event.amount})

    async def flush(self, connection: AsyncConnection | None) -> None:
        if connection is not None and self.rows:
            await connection.execute(insert(self.table(ENTRIES)), self.rows)


class PartedLedger(Ledger, name="parted", kinds=("account",), partitions=4):
    pass


class PlainLedger(Projection, name="plain", kinds=("account",)):
    """What it is told goes to `got`, which nothing rolls back."""

    batch_size = 4
    retries = 1
    first_pause_seconds = 0.001
    got: ClassVar[list[tuple[str, int]]] = []
    fails_on: int | None = None

    @event_handler
    async def paid(self, event: Paid, recorded: RecordedEvent) -> None:
        if event.amount == type(self).fails_on:
            raise ValueError("this amount cannot be")
        self.got.append((recorded.stream_id, event.amount))


class PlainPartedLedger(PlainLedger, name="plain-parted", kinds=("account",), partitions=2):
    pass


async def pay(store: EventStore, *amounts: int, account: str = "account-a", tags: tuple[str, ...] = ()) -> int:
    """Returns the position of the last."""
    position = 0
    for amount in amounts:
        event = NewEvent(Paid(amount=amount), metadata=Metadata(tags=tags) if tags else None)
        position = (await store.append(account, [event])).position
    return position


async def write_raw(store: EventStore, type: str, payload: bytes, schema_version: int = 1) -> None:
    event_id = new_event_id()
    event = encoded_event(event_id, type, schema_version, payload, None, event_id)
    await store._backend.append([[StreamWrite("account-a", Expected.ANY, [event])]])


async def amounts(store: EventStore) -> list[int]:
    """What the read model has, in the order in which it got it."""
    return [amount for _, _, amount in await entries(store)]


async def entries(store: EventStore) -> list[tuple[int, str, int]]:
    transaction = await store.begin_sql(seconds=30.0)
    try:
        statement = select(ENTRIES.c.position, ENTRIES.c.account, ENTRIES.c.amount).order_by(ENTRIES.c.id)
        return [tuple(row) for row in await transaction.connection.execute(statement)]  # type: ignore[misc]
    finally:
        await transaction.rollback()


async def drop_tables(store: EventStore) -> None:
    """What a test before this one has left in the database that they share."""
    transaction = await store.begin_sql(seconds=30.0)
    for name in await table_names(transaction.connection):
        # Postgres alone is shared. There this takes what refers to it too.
        await transaction.connection.execute(text(f"DROP TABLE IF EXISTS {name} CASCADE"))
    await transaction.commit(())


async def table_names(connection: AsyncConnection) -> set[str]:
    found = await connection.run_sync(lambda connection: inspect(connection).get_table_names())
    return {name for name in found if name.startswith("ledger")}
