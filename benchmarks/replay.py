"""Replay: a cold actor comes to life from its events, without a snapshot (rows 9 and 10)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

import orjson

from actors import ActorSystem
from benchmarks.accounts import Account, Deposited, Ordered, Peek
from benchmarks.harness import EVENTS_PER_SECOND, READ_ONLY, Goal, Plan, Ratio, Side, compared, interleaved, progress
from eventstore import Event, EventStore

_KEY = "deep"
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


async def against_rows(plan: Plan) -> list[Ratio]:
    """Row 9: ask of a cold actor / fetch the same rows with plain sqlite3 and parse their JSON.

    The events have one field, which is the hardest case: what is done for an event outweighs what is done for its
    content. Line 9a has events with six fields.
    """
    return [
        await _replay(plan, "9", "replay of validated events", _DEPOSITED),
        await _replay(plan, "9a", "the same, events of six fields", _ORDERED),
    ]


async def _replay(plan: Plan, row: str, what: str, event: Event) -> Ratio:
    path = plan.directory / f"journal-{row}.db"
    count = 20_000 if plan.is_quick else 100_000
    async with EventStore.open(f"sqlite:///{path}") as store:
        await _fill(store, count, event)
        with closing(sqlite3.connect(path)) as connection:

            async def ours(seconds: float) -> float:
                return await _repeated(seconds, count, lambda: _activation(store, count))

            async def theirs(seconds: float) -> float:
                async def read() -> None:
                    _read_rows(connection, count)

                return await _repeated(seconds, count, read)

            sides = [
                Side(f"cold actor with {count:,} events, validated and applied", READ_ONLY, ours),
                Side("rows in pages of 1,000 and orjson.loads", READ_ONLY, theirs),
            ]
            figures = await interleaved(sides, plan)
    title = f"SQLite: {what} / row fetch + orjson.loads"
    return compared(row, title, sides, figures, EVENTS_PER_SECOND, Goal(0.60, 0.80))


async def against_peer(plan: Plan) -> list[Ratio]:
    """Row 10: ask of a cold actor / `repository.get` of an aggregate with as many events."""
    from benchmarks import peer

    count = 5_000 if plan.is_quick else 20_000
    async with EventStore.open(f"sqlite:///{plan.directory / 'journal.db'}") as store:
        await _fill(store, count, _DEPOSITED)
        with peer.opened(plan.directory / "peer.db") as application:
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
    what = "SQLite: replay / replay by eventsourcing 9.5"
    return [compared("10", what, sides, figures, EVENTS_PER_SECOND, Goal(6, 10), digits=1)]


async def _fill(store: EventStore, count: int, event: Event) -> None:
    progress(f"  storing {count:,} events")
    for _ in range(count // _APPEND):
        await store.append(f"Account-{_KEY}", [event] * _APPEND)


async def _activation(store: EventStore, count: int) -> None:
    # A new system over the same store: nothing of the actor is in memory.
    async with ActorSystem(store) as system:
        assert await system.ref(Account, _KEY).ask(Peek()) == count


def _read_rows(connection: sqlite3.Connection, count: int) -> None:
    (stream,) = connection.execute("SELECT id FROM journal_streams").fetchone()
    version = 0
    while rows := connection.execute(_PAGE_OF_EVENTS, (stream, version, _PAGE)).fetchall():
        for row in rows:
            orjson.loads(row[3])
        version = rows[-1][0]
    assert version == count


async def _repeated(seconds: float, count: int, replay: Callable[[], Awaitable[None]]) -> float:
    """Replay again and again for so long, once at least. Returns events per second."""
    start = time.perf_counter()
    replays = 0
    while replays == 0 or time.perf_counter() - start < seconds:
        await replay()
        replays += 1
    return replays * count / (time.perf_counter() - start)
