"""Statements of the user's own in a transaction: stored together with the events, or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import Column, Integer, MetaData, Table, Text, bindparam, func, insert, select
from sqlalchemy.exc import IntegrityError

from actors import (
    ActorSystem,
    CommandRejected,
    ConcurrencyError,
    SnapshotPolicy,
    Transaction,
    TransactionError,
    TransactionExpired,
    TransactionOvertaken,
    TransactionRepeated,
)
from eventstore import BackendUnavailable, CapabilityError, EventStore, EventStoreError, JournalCorrupt, StoreClosed
from tests.actors.journals import new_journal
from tests.actors.notebook import Notebook, Read, Refuse, Write, Written, texts
from tests.actors.outside import outside

pages = Table("test_pages", MetaData(), Column("id", Integer, primary_key=True), Column("text", Text, nullable=False))


@pytest.fixture(params=["sqlite", "postgres"])
def sql_url(request: pytest.FixtureRequest) -> str:
    """A journal that lives beside a table of the user's."""
    name = "emptied_postgres_url" if request.param == "postgres" else "sqlite_journal_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def sqlite_journal_url(tmp_path: Path) -> str:
    return new_journal("sqlite", tmp_path)


@pytest_asyncio.fixture
async def store(sql_url: str) -> AsyncIterator[EventStore]:
    create = "CREATE TABLE IF NOT EXISTS test_pages (id INTEGER PRIMARY KEY, text TEXT NOT NULL)"
    if sql_url.startswith("sqlite"):
        connection = sqlite3.connect(sql_url.removeprefix("sqlite:///"))
        connection.execute(create)
        connection.close()
    else:
        postgres = await asyncpg.connect(sql_url.partition("?")[0])
        await postgres.execute(create)
        await postgres.execute("TRUNCATE test_pages")
        await postgres.close()
    async with EventStore.open(sql_url) as store:
        yield store


@pytest_asyncio.fixture
async def system(store: EventStore) -> AsyncIterator[ActorSystem]:
    async with ActorSystem(store, transaction_timeout=60) as system:
        yield system


async def rows(system: ActorSystem) -> list[str]:
    async with system.transaction() as tx:
        return list(await tx.connection.scalars(select(pages.c.text).order_by(pages.c.id)))


async def test_a_statement_is_committed_with_the_events(system: ActorSystem):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        await tx.connection.execute(insert(pages).values(id=1, text="x"))
        await tx.ask(b, Write(text="2"))
        await tx.connection.execute(insert(pages), [{"id": 2, "text": "y"}, {"id": 3, "text": "z"}])
        assert await tx.connection.scalar(select(func.count()).select_from(pages)) == 3
    assert await rows(system) == ["x", "y", "z"]
    assert await texts(system.store, "a") == ["1"]
    assert (await a.ask(Read()), await b.ask(Read())) == (["1"], ["2"])


async def test_sqlalchemys_own_connection_and_plain_functions_serve_too(system: ActorSystem):
    async with system.transaction() as tx:
        connection = await tx.connection.open()
        async with connection.begin_nested():
            await connection.execute(insert(pages).values(id=1, text="x"))
        await tx.connection.run_sync(lambda plain: plain.execute(insert(pages).values(id=2, text="y")))
        found = await tx.connection.execute(
            select(pages.c.text).where(pages.c.id == bindparam("wanted")), {"wanted": 2}
        )
        assert found.scalar_one() == "y"
        assert (await tx.connection.exec_driver_sql("SELECT count(*) FROM test_pages")).scalar_one() == 2
    assert await rows(system) == ["x", "y"]


@pytest.mark.parametrize("error", [RuntimeError("no"), CommandRejected("no")])
async def test_an_error_in_the_block_undoes_the_statements(system: ActorSystem, error: Exception):
    a = system.ref(Notebook, "a")
    with pytest.raises(type(error)):
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
            raise error
    assert await rows(system) == []
    assert await a.ask(Read()) == []
    await a.ask(Write(text="2"))


async def test_a_statement_that_fails_is_sqlalchemys_error_and_nothing_is_stored(system: ActorSystem):
    a = system.ref(Notebook, "a")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            async with system.transaction() as tx:
                await tx.ask(a, Write(text="1"))
                await tx.connection.execute(insert(pages).values(id=1, text="x"))
                await tx.connection.execute(insert(pages).values(id=1, text="x"))
    assert await rows(system) == []
    assert await a.ask(Read()) == []


async def test_a_conflict_undoes_the_statements_and_transact_runs_them_again(system: ActorSystem, sql_url: str):
    a = system.ref(Notebook, "a")
    await a.ask(Write(text="1"))
    runs = 0
    async with EventStore.open(sql_url) as other:

        async def write(tx: Transaction) -> int:
            nonlocal runs
            runs += 1
            lines = await tx.ask(a, Write(text="mine"))
            if runs == 1:
                await other.append("Notebook-a", [Written(text="theirs")])
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
            return lines

        assert await system.transact(write) == 3
        assert runs == 2
        with pytest.raises(ConcurrencyError):
            async with system.transaction() as tx:
                await tx.ask(a, Write(text="lost"))
                await other.append("Notebook-a", [Written(text="theirs, too")])
                await tx.connection.execute(insert(pages).values(id=2, text="y"))
    assert await rows(system) == ["x"]
    assert await a.ask(Read()) == ["1", "theirs", "mine", "theirs, too"]


async def test_a_repeated_transaction_runs_its_statements_once_as_it_is_written(system: ActorSystem, sql_url: str):
    # As printed in the documentation, run twice: the second time the rest of the block is passed over.
    for number in range(2):
        async with ActorSystem(sql_url) as again:
            a = again.ref(Notebook, "a")
            is_through = False
            async with again.transaction(command_id="page-1") as tx:
                await tx.ask(a, Write(text="1"))
                await tx.connection.execute(insert(pages).values(id=1, text="x"))
                is_through = True
            assert (tx.replies, tx.is_repeated, is_through) == ((1,), number == 1, number == 0)
    assert await rows(system) == ["x"]
    assert await system.ref(Notebook, "a").ask(Read()) == ["1"]


async def test_a_function_may_look_whether_it_was_stored_before(system: ActorSystem):
    a = system.ref(Notebook, "a")

    async def write(tx: Transaction) -> int:
        lines = await tx.ask(a, Write(text="1"))
        if not tx.is_repeated:
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
        return lines

    assert [await system.transact(write, command_id="page-1") for _ in range(2)] == [1, 1]
    assert await rows(system) == ["x"]

    async def unaware(tx: Transaction) -> int:
        lines = await tx.ask(a, Write(text="1"))
        await tx.connection.execute(insert(pages).values(id=1, text="x"))
        return lines

    with pytest.raises(TransactionRepeated) as repeated:
        await system.transact(unaware, command_id="page-1")
    assert repeated.value.replies == (1,)


async def test_one_that_another_process_stores_meanwhile_is_repeated(system: ActorSystem, sql_url: str):
    runs = 0

    async def write(tx: Transaction, by: ActorSystem) -> int:
        nonlocal runs
        lines = await tx.ask(by.ref(Notebook, "a"), Write(text="1"))
        runs += by is system
        if by is system and runs == 1:
            async with ActorSystem(sql_url) as other:
                assert await outside(other.transact(partial(write, by=other), command_id="page-1")) == 1
        if not tx.is_repeated:
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
        return lines

    assert await system.transact(partial(write, by=system), command_id="page-1") == 1
    assert runs == 2
    assert await rows(system) == ["x"]
    assert await system.ref(Notebook, "a").ask(Read()) == ["1"]


async def test_a_block_that_another_process_stores_meanwhile_has_a_conflict(system: ActorSystem, sql_url: str):
    async def write(by: ActorSystem) -> None:
        async with by.transaction(command_id="page-1") as tx:
            await tx.ask(by.ref(Notebook, "a"), Write(text="1"))
            if by is system:
                async with ActorSystem(sql_url) as other:
                    await outside(write(other))
            await tx.connection.execute(insert(pages).values(id=1, text="x"))

    with pytest.raises(ConcurrencyError, match="Notebook-a") as conflict:
        await write(system)
    assert isinstance(conflict.value.__cause__, IntegrityError)
    assert await rows(system) == ["x"]


async def test_with_an_id_a_statement_that_fails_is_sqlalchemys_error_too(system: ActorSystem):
    for _ in range(2):
        with pytest.raises(IntegrityError):
            async with system.transaction(command_id="page-1") as tx:
                await tx.ask(system.ref(Notebook, "a"), Write(text="1"))
                await tx.connection.execute(insert(pages), [{"id": 1, "text": "x"}] * 2)
    assert await rows(system) == []


@pytest.mark.parametrize(
    "other", [BackendUnavailable("gone"), StoreClosed("closed"), JournalCorrupt("damaged")], ids=repr
)
async def test_what_nobody_can_find_out_takes_not_the_place_of_the_blocks_own_error(
    system: ActorSystem, monkeypatch: pytest.MonkeyPatch, other: EventStoreError
):
    async def fail(_: object) -> Any:
        raise other

    with pytest.raises(IntegrityError):
        async with system.transaction(command_id="page-1") as tx:
            await tx.ask(system.ref(Notebook, "a"), Write(text="1"))
            monkeypatch.setattr(system.store._open_calls.commands, "_call", fail)
            await tx.connection.execute(insert(pages), [{"id": 1, "text": "x"}] * 2)


async def test_with_an_id_an_actor_is_asked_before_the_connection_is_used(system: ActorSystem):
    with pytest.raises(TransactionError, match="ask an actor before"):
        async with system.transaction(command_id="page-1") as tx:
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
    assert await rows(system) == []


async def test_statements_alone_are_committed_too(system: ActorSystem):
    async with system.transaction() as tx:
        await tx.connection.execute(insert(pages).values(id=1, text="x"))
    assert await rows(system) == ["x"]


async def test_after_its_time_everything_is_undone_and_others_go_on(system: ActorSystem):
    a = system.ref(Notebook, "a")
    begun = asyncio.Event()

    async def write_meanwhile() -> int:
        await begun.wait()
        return await a.ask(Write(text="2"))

    # Not within the block: what that starts is a part of the transaction, and may not wait for what it holds.
    writing = asyncio.create_task(write_meanwhile())
    with pytest.raises(TransactionExpired):
        async with system.transaction(timeout=1.0) as tx:
            await tx.ask(a, Write(text="1"))
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
            begun.set()
            # The actor was given back when the time was up, and nothing keeps the database from storing this.
            assert await writing == 1
            await tx.connection.execute(insert(pages).values(id=2, text="y"))
    assert await rows(system) == []


async def test_who_has_begun_statements_waits_for_nobody_who_has_an_actor(system: ActorSystem):
    # On SQLite the other could not commit before the statements are; elsewhere it may want the same rows.
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    held, done = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="other"))
            held.set()
            await done.wait()

    holding = asyncio.create_task(other())
    await held.wait()
    runs = 0

    async def write(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.ask(a, Write(text="1"))
        await tx.connection.execute(insert(pages).values(id=1, text="x"))
        asyncio.get_running_loop().call_later(0.05, done.set)
        await tx.ask(b, Write(text="2"))

    with pytest.raises(TransactionOvertaken, match="ask the actors first"):
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
            await tx.ask(b, Write(text="2"))
    await system.transact(write)
    # The second time it has both before it begins.
    assert runs == 2
    await holding
    assert await rows(system) == ["x"]
    assert (await a.ask(Read()), await b.ask(Read())) == (["1"], ["other", "2"])


async def test_an_actor_that_is_not_in_memory_is_waited_for_also_behind_a_statement(system: ActorSystem, sql_url: str):
    async with ActorSystem(sql_url) as before:
        await before.ref(Notebook, "a").ask(Write(text="1"))
    async with system.transaction() as tx:
        await tx.connection.execute(insert(pages).values(id=1, text="x"))
        assert await tx.ask(system.ref(Notebook, "a"), Write(text="2")) == 2
    assert await rows(system) == ["x"]


async def test_an_actor_that_writes_before_it_serves_is_not_waited_for_behind_a_statement(system: ActorSystem):
    class Asking(Notebook):
        async def recovered(self) -> None:
            await system.ref(Notebook, "log").ask(Write(text="here"))

    began = time.monotonic()
    with pytest.raises(TransactionOvertaken):
        async with system.transaction(timeout=60) as tx:
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
            await tx.ask(system.ref(Asking, "a"), Write(text="1"))
    # On SQLite its write waits for the statements.
    assert time.monotonic() - began < 20
    assert await system.ref(Asking, "a").ask(Write(text="1")) == 1


class Owned(Notebook):
    ownership = "exclusive"


class Kept(Notebook):
    snapshot_policy = SnapshotPolicy(every=2, on_passivation=True)


async def test_nothing_waits_until_somebodys_time_is_over(store: EventStore, sql_url: str):
    """Transactions with statements, claims, snapshots and single commands, all on actors that come and go."""
    patient = f"{sql_url}?busy_timeout=600" if sql_url.startswith("sqlite") else sql_url
    waits: list[float] = []

    async def timed(work: Awaitable[object]) -> None:
        began = time.monotonic()
        await work
        waits.append(time.monotonic() - began)

    async with ActorSystem(patient, idle_seconds=0.02, transaction_timeout=600, ask_timeout=600) as system:

        async def transact(number: int) -> None:
            async def work(tx: Transaction) -> None:
                if number % 3:
                    await tx.ask(system.ref(Owned, str(number % 4)), Write(text=f"t{number}"))
                await tx.connection.execute(insert(pages).values(id=number, text="x"))
                await tx.ask(system.ref(Kept, str(number % 5)), Write(text=f"t{number}"))
                await tx.ask(system.ref(Owned, str((number + 1) % 4)), Write(text=f"t{number}"))

            await system.transact(work, retries=1000)

        async def one_by_one(number: int) -> None:
            for turn in range(3):
                await timed(system.ref((Owned, Kept, Notebook)[number % 3], str(number % 5)).ask(Write(text=f"{turn}")))
                await asyncio.sleep(0.03)

        for turn in range(3):
            async with asyncio.timeout(50):
                transacting = [timed(transact(10 * turn + number)) for number in range(10)]
                await asyncio.gather(*transacting, *(one_by_one(number) for number in range(10)))
            await asyncio.sleep(0.1)
    assert len(waits) == 3 * (10 + 30)
    assert max(waits) < 50
    async with ActorSystem(store) as system:
        assert await rows(system) == ["x"] * 30
    kept = [line for key in range(5) for line in await texts(store, str(key), "Kept") if line.startswith("t")]
    assert sorted(kept) == sorted(f"t{10 * turn + number}" for turn in range(3) for number in range(10))


async def test_a_cancelled_block_leaves_no_transaction_open(system: ActorSystem):
    a = system.ref(Notebook, "a")
    started = asyncio.Event()

    async def block() -> None:
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            await tx.connection.execute(insert(pages).values(id=1, text="x"))
            started.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(block())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(20):
        assert await a.ask(Write(text="2")) == 1
        assert await rows(system) == []


async def test_a_rejection_that_the_block_catches_keeps_its_statements(system: ActorSystem):
    a = system.ref(Notebook, "a")
    async with system.transaction() as tx:
        await tx.connection.execute(insert(pages).values(id=1, text="x"))
        with pytest.raises(CommandRejected):
            await tx.ask(a, Refuse())
        await tx.ask(a, Write(text="1"))
    assert await rows(system) == ["x"]
    assert await a.ask(Read()) == ["1"]


async def test_transactions_with_statements_and_without_take_turns(system: ActorSystem):
    refs = [system.ref(Notebook, str(number)) for number in range(4)]

    async def write(number: int) -> None:
        async def both(tx: Transaction) -> None:
            await tx.ask(refs[number % 4], Write(text=str(number)))
            if number % 2:
                await tx.connection.execute(insert(pages).values(id=number, text=str(number)))
            await tx.ask(refs[(number * 3 + 1) % 4], Write(text=str(number)))

        await system.transact(both)

    await asyncio.gather(*(write(number) for number in range(24)), *(ref.ask(Write(text="s")) for ref in refs))
    assert len(await rows(system)) == 12
    assert sorted([len(await ref.ask(Read())) for ref in refs]) == sorted(
        [len(await texts(system.store, r.stream_id.removeprefix("Notebook-"))) for r in refs]
    )
    assert sum([len(await ref.ask(Read())) for ref in refs]) == 2 * 24 + 4


async def test_a_store_without_sql_says_so():
    async with ActorSystem("memory://") as system:
        a = system.ref(Notebook, "a")
        with pytest.raises(CapabilityError):
            async with system.transaction() as tx:
                await tx.ask(a, Write(text="1"))
                await tx.connection.execute(insert(pages).values(id=1, text="x"))
        assert await a.ask(Read()) == []
