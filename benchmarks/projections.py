"""Projections: what it takes to bring a read model forward, and to write it with the events (rows 20 to 22)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.ext.asyncio import AsyncConnection

from actors import ActorRef, ActorSystem
from benchmarks import servers
from benchmarks.accounts import Account, Deposited
from benchmarks.commits import accounts, throughput
from benchmarks.databases import POSTGRES, SQLITE, Database, Journal
from benchmarks.harness import EVENTS_PER_SECOND, READ_ONLY, Goal, Plan, Ratio, Side, compared, interleaved, progress
from eventstore import EventBatch, EventStore, Projection, ProjectionRunner, RecordedEvent, event_handler
from eventstore.backend import LogPage
from eventstore.contract.checkpoint import Checkpoint
from eventstore.read_models.delivering import handle_events
from eventstore.reading.reading_ahead import ReadAhead

# What a projection that is behind comes to; the other side has as many.
_PAGE = Projection.batch_size
_STREAMS = 50

_ENTRIES = Table(
    "benchmark_entries",
    MetaData(),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("account", Text, nullable=False),
    Column("amount", Integer, nullable=False),
)

_Insert = Callable[[float], Awaitable[float]]
"""Inserts rows for so long. Returns how many a second."""


class Sums(Projection, name="sums"):
    """What is delivered goes into a number, so that delivering is all there is."""

    total = 0

    @event_handler
    def deposited(self, event: Deposited, recorded: RecordedEvent) -> None:
        Sums.total += event.amount


class Entries(Projection, name="entries"):
    """One row for each event."""

    tables = (_ENTRIES,)

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, int]] = []

    @event_handler
    def deposited(self, batch: EventBatch[Deposited]) -> None:
        amounts = [event.amount for event in batch.events]
        self.rows = list(zip(batch.positions, batch.stream_ids, amounts, strict=True))

    async def flush(self, connection: AsyncConnection | None) -> None:
        if connection is not None and self.rows:
            # The driver's own SQL, as on the other side: SQLAlchemy would look at each row.
            values = "?, ?, ?" if connection.dialect.name == "sqlite" else "$1, $2, $3"
            await connection.exec_driver_sql(f"INSERT INTO {self.table(_ENTRIES).name} VALUES ({values})", self.rows)


async def delivery_on_sqlite(plan: Plan) -> list[Ratio]:
    return [await _against_peer(SQLITE, plan)]


async def delivery_on_postgres(plan: Plan) -> list[Ratio]:
    return [await _against_peer(POSTGRES, plan)]


async def read_model_on_sqlite(plan: Plan) -> list[Ratio]:
    return [await _against_inserts(SQLITE, _sqlite_inserts, "sqlite3, executemany", plan)]


async def read_model_on_postgres(plan: Plan) -> list[Ratio]:
    return [await _against_inserts(POSTGRES, _postgres_inserts, "asyncpg, executemany", plan)]


async def inline_on_sqlite(plan: Plan) -> list[Ratio]:
    return await _inline(SQLITE, plan)


async def inline_on_postgres(plan: Plan) -> list[Ratio]:
    return await _inline(POSTGRES, plan)


async def _inline(database: Database, plan: Plan) -> list[Ratio]:
    """Row 22: actors whose read model is written in their commits / without one."""
    # Each in a journal of its own: to pass over the events of the others would be counted too.
    beside = plan._replace(directory=plan.directory / "plain")
    beside.directory.mkdir(exist_ok=True)
    ratios: list[Ratio] = []
    async with (
        database.journal(plan) as journal,
        database.journal(beside) as bare,
        ActorSystem(journal.url, inline=(Entries,)) as inline,
        ActorSystem(bare.url) as plain,
    ):
        for count in (64, 1):
            with_it, without = await accounts(inline, count), await accounts(plain, count)
            kept, what = database.durability, "64 actors" if count > 1 else "one actor"
            sides = [
                Side(f"{what}, a row of a read model for each event", kept, _asking(with_it)),
                Side(f"{what}, no read model", kept, _asking(without)),
            ]
            figures = await interleaved(sides, plan)
            goal = Goal(0.1, 0.3)
            named = f"{database.name}: {what} with an inline projection / without"
            ratios.append(compared("22", named, sides, figures, EVENTS_PER_SECOND, goal))
    return ratios


def _asking(refs: list[ActorRef[Account]]) -> Callable[[float], Awaitable[float]]:
    return lambda seconds: throughput(refs, seconds)


async def _against_peer(database: Database, plan: Plan) -> Ratio:
    """Row 20: read pages of the log, decode, hand to the handler / `notification_log.select` and the mapper."""
    from benchmarks import peer

    count = 10_000 if plan.is_quick else 40_000
    async with database.journal(plan) as journal, EventStore.open(journal.url) as store:
        await _fill(store, count)
        await _analyzed(journal)
        with peer.opened(journal.url, plan.directory) as application:
            accounts = peer.new_accounts(application, _STREAMS)
            for account in accounts:
                for _ in range(count // _STREAMS - 1):
                    account.deposit(1)
                # Not all in one: now and then psycopg's pipeline of that many inserts never comes to its end.
                application.save(account)
            recorder, mapper = application.recorder, application.mapper

            async def read(after: int) -> LogPage:
                return await store.read_page(after=after, limit=_PAGE, where=Sums.where())

            async def ours(seconds: float) -> float:
                async def deliver() -> None:
                    before = Sums.total
                    async with ReadAhead(read, after=0) as log:
                        is_end = False
                        while not is_end:
                            page = await log.page()
                            await handle_events(Sums, Checkpoint("sums", 1), page.events, None)
                            is_end = page.is_end
                    assert Sums.total - before == count

                return await _repeated(seconds, count, deliver)

            async def theirs(seconds: float) -> float:
                async def deliver() -> None:
                    start, total = 1, 0
                    while notifications := recorder.select_notifications(start=start, limit=_PAGE):
                        for notification in notifications:
                            mapper.to_domain_event(notification)
                        total += len(notifications)
                        start = notifications[-1].id + 1
                    assert total == count

                return await _repeated(seconds, count, deliver)

            sides = [
                Side(f"{count:,} events read, validated, handed to a projection's handler", READ_ONLY, ours),
                Side("eventsourcing, select_notifications and its mapper", READ_ONLY, theirs),
            ]
            figures = await interleaved(sides, plan)
    what = f"{database.name}: decode and deliver / eventsourcing 9.5, notification log and decode, pages of {_PAGE}"
    return compared("20", what, sides, figures, EVENTS_PER_SECOND, Goal(2.5, 5), digits=1)


async def _against_inserts(
    database: Database,
    inserts: Callable[[Journal, Plan], AbstractAsyncContextManager[_Insert]],
    client: str,
    plan: Plan,
) -> Ratio:
    """Row 21: a projection that runs, its position in the same transaction / the same rows inserted by the driver."""
    count = 20_000 if plan.is_quick else 100_000
    async with database.journal(plan) as journal, EventStore.open(journal.url) as store:
        await _fill(store, count)
        await _analyzed(journal)
        async with inserts(journal, plan) as insert_rows:

            async def ours(seconds: float) -> float:
                async def run() -> None:
                    await ProjectionRunner(store, Entries).run(follow=False)

                taken = done = 0.0
                while taken < seconds:
                    await _forget(store)
                    start = time.perf_counter()
                    await run()
                    taken += time.perf_counter() - start
                    done += count
                return done / taken

            sides = [
                Side(f"a projection of {count:,} events, {_PAGE} in a transaction", database.durability, ours),
                Side(f"{client}, {_PAGE} rows in a transaction", database.durability, insert_rows),
            ]
            figures = await interleaved(sides, plan)
    what = f"{database.name}: a projection with its position in the same transaction / bare insert of its rows"
    return compared("21", what, sides, figures, EVENTS_PER_SECOND, Goal(0.5, 0.8))


async def _analyzed(journal: Journal) -> None:
    """As after the first minutes of any server: so many rows without statistics are read by a poor plan."""
    if not journal.url.startswith("sqlite"):
        connection = await asyncpg.connect(servers.dsn_of(journal.url))
        await connection.execute("ANALYZE")
        await connection.close()


async def _fill(store: EventStore, count: int) -> None:
    progress(f"  storing {count:,} events")
    each = count // _STREAMS
    for number in range(_STREAMS):
        await store.append(f"Account-{number}", [Deposited(amount=1)] * each)


async def _forget(store: EventStore) -> None:
    """As if the projection had never been run."""
    transaction = await store.begin_sql(seconds=10)
    await transaction.connection.run_sync(_ENTRIES.metadata.drop_all)
    await transaction.commit(())
    assert await store.change_checkpoints([], [checkpoint.key for checkpoint in await store.checkpoints()])


@asynccontextmanager
async def _sqlite_inserts(_: Journal, plan: Plan) -> AsyncGenerator[_Insert, None]:
    connection = sqlite3.connect(plan.directory / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")

    async def insert_rows(seconds: float) -> float:
        connection.execute("DROP TABLE IF EXISTS entries")
        connection.execute("CREATE TABLE entries (position INTEGER PRIMARY KEY, account TEXT NOT NULL, amount INTEGER)")
        start, position = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            rows = [(position + number, f"Account-{number % _STREAMS}", 1) for number in range(_PAGE)]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
            connection.execute("COMMIT")
            position += _PAGE
        return position / (time.perf_counter() - start)

    try:
        yield insert_rows
    finally:
        connection.close()


@asynccontextmanager
async def _postgres_inserts(journal: Journal, _: Plan) -> AsyncGenerator[_Insert, None]:
    connection = await asyncpg.connect(servers.dsn_of(journal.url))

    async def insert_rows(seconds: float) -> float:
        await connection.execute("DROP TABLE IF EXISTS bare_entries")
        await connection.execute(
            "CREATE TABLE bare_entries (position integer PRIMARY KEY, account text NOT NULL, amount integer NOT NULL)"
        )
        start, position = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            rows = [(position + number, f"Account-{number % _STREAMS}", 1) for number in range(_PAGE)]
            async with connection.transaction():
                await connection.executemany("INSERT INTO bare_entries VALUES ($1, $2, $3)", rows)
            position += _PAGE
        return position / (time.perf_counter() - start)

    try:
        yield insert_rows
    finally:
        await connection.close()


async def _repeated(seconds: float, count: int, deliver: Callable[[], Awaitable[None]]) -> float:
    """Deliver again and again for so long, once at least. Returns events per second."""
    start = time.perf_counter()
    times = 0
    while times == 0 or time.perf_counter() - start < seconds:
        await deliver()
        times += 1
    return times * count / (time.perf_counter() - start)
