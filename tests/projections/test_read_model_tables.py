"""Tables of a read model may refer to each other, have constraints with names, and views: a rebuild makes them anew."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import EventStore, Projection, ProjectionError, ProjectionRunner, RecordedEvent, event_handler, rebuild
from eventstore.read_models.projection_control import live_checkpoint
from eventstore.read_models.rebuild import give_up

from .ledger import Paid, pay, table_names

pytestmark = pytest.mark.sql_alone

_metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(column_0_label)s"})
CURRENCIES = Table("ledger_currencies", _metadata, Column("name", String, primary_key=True))
ACCOUNTS = Table(
    "ledger_accounts",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    UniqueConstraint("name", name="ledger_one_of_a_name"),
)
PAYMENTS = Table(
    "ledger_payments",
    _metadata,
    Column("position", Integer, primary_key=True),
    Column("account", ForeignKey("ledger_accounts.id"), nullable=False, index=True),
    Column("currency", ForeignKey("ledger_currencies.name"), nullable=False),
    Column("before", ForeignKey("ledger_payments.position")),
    Column("amount", Integer, nullable=False),
)


class Payments(Projection, name="payments", kinds=("account",)):
    # What refers to the other stands first: the order is nothing that one has to know.
    tables = (PAYMENTS, ACCOUNTS)

    @event_handler
    async def paid(self, event: Paid, recorded: RecordedEvent, connection: AsyncConnection) -> None:
        payments, accounts = self.table(PAYMENTS), self.table(ACCOUNTS)
        name = recorded.stream_id
        account = await connection.scalar(select(accounts.c.id).where(accounts.c.name == name))
        if account is None:
            account = await connection.scalar(insert(accounts).values(name=name).returning(accounts.c.id))
        of_account = payments.join(accounts)
        before = await connection.scalar(
            select(func.max(payments.c.position)).select_from(of_account).where(accounts.c.name == name)
        )
        row = {"account": account, "currency": "EUR", "before": before, "amount": event.amount}
        await connection.execute(insert(payments).values(position=recorded.position, **row))


async def execute(store: EventStore, *statements: str) -> list[tuple[Any, ...]]:
    transaction = await store.begin_sql(seconds=30.0)
    try:
        for statement in statements:
            result = await transaction.connection.execute(text(statement))
        rows = [tuple(row) for row in result] if result.returns_rows else []
        await transaction.commit(())
        return rows
    finally:
        await transaction.rollback()


async def run(store: EventStore, projection: type[Projection]) -> None:
    await ProjectionRunner(store, projection).run(follow=False)


async def begun(store: EventStore) -> None:
    """A read model of three events, beside a table of the user's own that it refers to."""
    await execute(
        store,
        "CREATE TABLE ledger_currencies (name VARCHAR PRIMARY KEY)",
        "INSERT INTO ledger_currencies VALUES ('EUR')",
    )
    for amount, account in ((1, "account-a"), (2, "account-b"), (3, "account-a")):
        await pay(store, amount, account=account)
    await run(store, Payments)


async def names(store: EventStore) -> set[str]:
    transaction = await store.begin_sql(seconds=30.0)
    try:
        return await table_names(transaction.connection)
    finally:
        await transaction.rollback()


ROWS = (
    "SELECT name, amount, before IS NULL FROM ledger_payments p JOIN ledger_accounts a ON a.id = p.account ORDER BY 2"
)


async def test_they_are_rebuilt_again_and_again_with_all_that_refers_to_others(store: EventStore):
    await begun(store)
    before = await execute(store, ROWS)
    assert [row[:2] for row in before] == [("account-a", 1), ("account-b", 2), ("account-a", 3)]
    for version in (2, 3):
        assert (await rebuild(store, Payments)).version == version
        assert await execute(store, ROWS) == before
        assert await names(store) == {"ledger_accounts", "ledger_currencies", "ledger_payments"}
    for wrong in (
        "UPDATE ledger_payments SET account = 99",
        "UPDATE ledger_payments SET before = 999",
        "UPDATE ledger_payments SET currency = 'DEM'",
        "UPDATE ledger_accounts SET name = 'account-a'",
    ):
        with pytest.raises(Exception, match=r"(?i)(foreign key|unique) constraint"):
            await execute(store, wrong)
    await pay(store, 4, account="account-b")
    await run(store, Payments)
    assert [row[1] for row in await execute(store, ROWS)] == [1, 2, 3, 4]


async def test_those_of_a_rebuild_that_is_given_up_go(store: EventStore):
    class Stopped(Payments, name="payments", kinds=("account",)):
        async def switched(self, connection: AsyncConnection | None) -> None:
            raise LookupError("not now")

    await begun(store)
    with pytest.raises(LookupError):
        await rebuild(store, Stopped)
    assert {"ledger_accounts__v2", "ledger_payments__v2"} < await names(store)
    assert await give_up(store, Payments)
    assert await names(store) == {"ledger_accounts", "ledger_currencies", "ledger_payments"}


async def test_a_view_of_them_is_made_anew_when_they_are_switched(store: EventStore):
    view = "CREATE VIEW ledger_sums AS SELECT sum(amount) AS total FROM ledger_payments"

    class Viewed(Payments, name="payments", kinds=("account",)):
        async def switched(self, connection: AsyncConnection | None) -> None:
            assert connection is not None
            await connection.execute(text("DROP VIEW ledger_sums"))
            await connection.execute(text(view))

    await begun(store)
    await execute(store, view)
    await pay(store, 4)
    await rebuild(store, Viewed)
    assert await execute(store, "SELECT total FROM ledger_sums") == [(10,)]
    await execute(store, "UPDATE ledger_payments SET amount = 5 WHERE amount = 4")
    assert await execute(store, "SELECT total FROM ledger_sums") == [(11,)]
    await execute(store, "DROP VIEW ledger_sums")


async def test_a_view_that_is_not_made_anew_is_never_left_with_what_is_gone(store: EventStore, url: str):
    await begun(store)
    await execute(store, "CREATE VIEW ledger_sums AS SELECT sum(amount) AS total FROM ledger_payments")
    if url.startswith("sqlite"):
        # There it is of whatever has the table's name.
        assert (await rebuild(store, Payments)).version == 2
    else:
        with pytest.raises(ProjectionError, match="in the projection's method `switched`; the live one is as it was"):
            await rebuild(store, Payments)
        assert (await live_checkpoint(store, "payments")).version == 1
    await execute(store, "UPDATE ledger_payments SET amount = 5 WHERE amount = 3")
    assert await execute(store, "SELECT total FROM ledger_sums") == [(8,)]
    await execute(store, "DROP VIEW ledger_sums")
    assert (await rebuild(store, Payments)).version >= 2
