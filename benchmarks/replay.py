"""Replay: a cold actor comes to life from its events, without a snapshot (rows 9 and 10)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import orjson

from actors import ActorSystem
from benchmarks import servers
from benchmarks.accounts import Account, Deposited, Ordered, Peek
from benchmarks.bare_postgres import bare_postgres
from benchmarks.bare_redis import bare_redis
from benchmarks.databases import POSTGRES, REDIS, SQLITE, Database, Journal
from benchmarks.harness import EVENTS_PER_SECOND, READ_ONLY, Goal, Plan, Ratio, Side, compared, interleaved, progress
from eventstore import Event, EventStore

_KEY = "deep"
_STREAM_ID = f"Account-{_KEY}"
_APPEND = 500
_PAGE = 1000
_PAGE_OF_EVENTS = """
SELECT version, type, schema_version, payload FROM journal_events
WHERE stream = ? AND version > ? ORDER BY version LIMIT ?
"""

_DEPOSITED = Deposited(amount=1)
_ORDERED = Ordered(
    customer="alice@example.com", article="SKU-0042-BLUE", quantity=3, amount=1, is_gift=False, note=None
)  # fmt: skip

_Reader = Callable[[], Awaitable[int]]
"""Reads all events of the stream and parses their JSON. Returns how many they were."""


class _Readers(NamedTuple):
    """`rows` reads what the journal holds, `payloads` as many payloads from where there is nothing else."""

    rows: _Reader
    payloads: _Reader | None = None


async def rows_on_sqlite(plan: Plan) -> list[Ratio]:
    return await _against_rows(SQLITE, _sqlite_rows, "sqlite3", plan)


async def rows_on_postgres(plan: Plan) -> list[Ratio]:
    return await _against_rows(POSTGRES, _postgres_rows, "asyncpg", plan)


async def rows_on_redis(plan: Plan) -> list[Ratio]:
    return await _against_rows(REDIS, _redis_rows, "redis-py, LRANGE", plan)


async def _against_rows(
    database: Database,
    rows: Callable[[Journal, bytes, int], AbstractAsyncContextManager[_Readers]],
    client: str,
    plan: Plan,
) -> list[Ratio]:
    """Row 9: ask of a cold actor / fetch the same rows with the plain driver and parse their JSON.

    The events have one field, which is the hardest case: what is done for an event outweighs what is done for its
    content. Line 9a has events with six fields.
    """
    ratios: list[Ratio] = []
    count = 20_000 if plan.is_quick else 100_000
    for row, what, event in (
        ("9", "replay of validated events", _DEPOSITED),
        ("9a", "the same, events of six fields", _ORDERED),
    ):
        (directory := plan.directory / row).mkdir()
        async with (
            database.journal(plan._replace(directory=directory)) as journal,
            EventStore.open(journal.url) as store,
        ):
            await _fill(store, count, event)
            async with rows(journal, event.model_dump_json().encode(), count) as read:

                async def ours(seconds: float, store: EventStore = store) -> float:
                    return await _repeated(seconds, count, lambda: _activation(store, count))

                sides = [
                    Side(f"cold actor with {count:,} events, validated and applied", READ_ONLY, ours),
                    _reading(f"{client}: pages of {_PAGE:,} and orjson.loads", read.rows, count),
                ]
                if read.payloads is not None and row == "9":
                    sides.append(_reading(f"{client}: a list of payloads alone, orjson.loads", read.payloads, count))
                figures = await interleaved(sides, plan)
        title = f"{database.name}: {what} / row fetch + orjson.loads"
        ratios.append(compared(row, title, sides[:2], figures[:2], EVENTS_PER_SECOND, Goal(0.60, 0.80)))
        if len(sides) > 2:
            title = f"{database.name}: {what} / fetch of payloads alone + orjson.loads"
            ratios.append(compared("9b", title, sides[::2], figures[::2], EVENTS_PER_SECOND))
    return ratios


def _reading(name: str, read: _Reader, count: int) -> Side:
    async def theirs(seconds: float) -> float:
        async def read_all() -> None:
            assert await read() == count

        return await _repeated(seconds, count, read_all)

    return Side(name, READ_ONLY, theirs)


async def peer_on_sqlite(plan: Plan) -> list[Ratio]:
    return [await _against_peer(SQLITE, plan)]


async def peer_on_postgres(plan: Plan) -> list[Ratio]:
    return [await _against_peer(POSTGRES, plan)]


async def _against_peer(database: Database, plan: Plan) -> Ratio:
    """Row 10: ask of a cold actor / `repository.get` of an aggregate with as many events."""
    from benchmarks import peer

    count = 5_000 if plan.is_quick else 20_000
    async with database.journal(plan) as journal, EventStore.open(journal.url) as store:
        await _fill(store, count, _DEPOSITED)
        with peer.opened(journal.url, plan.directory) as application:
            account = peer.Account()
            for _ in range(count - 1):
                account.deposit(1)
            application.save(account)

            async def ours(seconds: float) -> float:
                return await _repeated(seconds, count, lambda: _activation(store, count))

            async def theirs(seconds: float) -> float:
                async def get() -> None:
                    assert application.repository.get(account.id).version == count

                return await _repeated(seconds, count, get)

            sides = [
                Side(f"cold actor with {count:,} events", READ_ONLY, ours),
                Side("eventsourcing, repository.get", READ_ONLY, theirs),
            ]
            figures = await interleaved(sides, plan)
    what = f"{database.name}: replay / replay by eventsourcing 9.5"
    return compared("10", what, sides, figures, EVENTS_PER_SECOND, Goal(6, 10), digits=1)


async def _fill(store: EventStore, count: int, event: Event) -> None:
    progress(f"  storing {count:,} events")
    for _ in range(count // _APPEND):
        await store.append(_STREAM_ID, [event] * _APPEND)


async def _activation(store: EventStore, count: int) -> None:
    # A new system over the same store: nothing of the actor is in memory.
    async with ActorSystem(store) as system:
        assert await system.ref(Account, _KEY).ask(Peek()) == count


@asynccontextmanager
async def _sqlite_rows(journal: Journal, _payload: bytes, _count: int) -> AsyncGenerator[_Readers, None]:
    connection = sqlite3.connect(Path(journal.url.removeprefix("sqlite:///")))
    try:

        async def read() -> int:
            (stream,) = connection.execute("SELECT id FROM journal_streams").fetchone()
            version = 0
            while rows := connection.execute(_PAGE_OF_EVENTS, (stream, version, _PAGE)).fetchall():
                for row in rows:
                    orjson.loads(row[3])
                version = int(rows[-1][0])
            return version

        yield _Readers(read)
    finally:
        connection.close()


@asynccontextmanager
async def _postgres_rows(journal: Journal, _payload: bytes, _count: int) -> AsyncGenerator[_Readers, None]:
    async with bare_postgres(servers.dsn_of(journal.url)) as bare:
        await bare.analyze()

        async def read() -> int:
            version = 0
            async for rows in bare.read(_STREAM_ID, _PAGE):
                for row in rows:
                    orjson.loads(row[3])
                version = int(rows[-1][0])
            return version

        yield _Readers(read)


@asynccontextmanager
async def _redis_rows(journal: Journal, payload: bytes, count: int) -> AsyncGenerator[_Readers, None]:
    async with bare_redis(servers.dsn_of(journal.url), servers.prefix_of(journal.url)) as bare:
        bare.fill(payload, count)

        async def read_records() -> int:
            # A record ends with its payload. That all of them are of one size is more than the library can know.
            start = -len(payload)
            count = 0
            for records in bare.read_journal(_PAGE):
                for record in records:
                    orjson.loads(record[start:])
                count += len(records)
            return count

        async def read_payloads() -> int:
            count = 0
            for payloads in bare.read(_PAGE):
                for payload in payloads:
                    orjson.loads(payload)
                count += len(payloads)
            return count

        yield _Readers(read_records, read_payloads)


async def _repeated(seconds: float, count: int, replay: Callable[[], Awaitable[None]]) -> float:
    """Replay again and again for so long, once at least. Returns events per second."""
    start = time.perf_counter()
    replays = 0
    while replays == 0 or time.perf_counter() - start < seconds:
        await replay()
        replays += 1
    return replays * count / (time.perf_counter() - start)
