"""Transfers: transactions over two actors, against the same two inserts in one raw transaction (row 19)."""

from __future__ import annotations

import asyncio
import time
from statistics import median

from actors import ActorRef, ActorSystem
from benchmarks.accounts import Account, Deposit
from benchmarks.commits import accounts
from benchmarks.databases import POSTGRES, REDIS, SQLITE, Bare, Database
from benchmarks.harness import Goal, Plan, Ratio, Side, Unit, compared, interleaved

_TRANSFERS = 64
_TRANSFERS_PER_SECOND = Unit("transfers/s", 1, 0)

Pair = tuple[ActorRef[Account], ActorRef[Account]]


async def on_sqlite(plan: Plan) -> list[Ratio]:
    # One connection: SQLite has one writer at a time.
    return await _transfers(SQLITE, (1,), Goal(0.35, 0.70), plan)


async def on_postgres(plan: Plan) -> list[Ratio]:
    return await _transfers(POSTGRES, (4, 8), Goal(0.35, 0.70), plan)


async def on_redis(plan: Plan) -> list[Ratio]:
    # One script of two appends: Redis runs them one after the other.
    return await _transfers(REDIS, (1,), None, plan)


async def _transfers(database: Database, connections: tuple[int, ...], goal: Goal | None, plan: Plan) -> list[Ratio]:
    """Row 19: 64 transfers at a time, each between two actors of its own / the same rows, two to a transaction; by as
    many connections as do best. 19a: the same rows, all of 64 transfers in one commit."""
    rows = 2 * _TRANSFERS
    async with database.journal(plan) as journal, ActorSystem(journal.url) as system, journal.bare(rows) as bare:
        refs = await accounts(system, rows)
        pairs = list(zip(refs[::2], refs[1::2], strict=True))
        kept = database.durability
        ours = Side("64 transfers at a time", kept, lambda seconds: throughput(system, pairs, seconds))
        together = Side(f"{database.bare}, 128 rows a commit", kept, lambda seconds: _together(bare, seconds))
        candidates = [_in_pairs(bare, count, kept) for count in connections]
        figures = await interleaved([ours, together, *candidates], plan)
    fastest = max(range(len(candidates)), key=lambda number: median(figures[number + 2]))
    literal = [ours, candidates[fastest]], [figures[0], figures[fastest + 2]]
    what = f"{database.name}: two-actor transfer, 64 at a time, disjoint / the same two inserts in one raw transaction"
    grouped = f"{database.name}: the same / {database.bare}, the 128 rows of 64 transfers in one commit"
    return [
        compared("19", what, *literal, _TRANSFERS_PER_SECOND, goal),
        compared("19a", grouped, [ours, together], figures[:2], _TRANSFERS_PER_SECOND),
    ]


def _in_pairs(bare: Bare, connections: int, kept: str) -> Side:
    async def measure(seconds: float) -> float:
        return await bare.pairs(seconds, connections=connections)

    return Side(f"two inserts in a transaction, connections: {connections}", kept, measure)


async def _together(bare: Bare, seconds: float) -> float:
    taken = await bare.commits(seconds, rows=2 * _TRANSFERS)
    return _TRANSFERS * len(taken) / sum(taken)


async def throughput(system: ActorSystem, pairs: list[Pair], seconds: float) -> float:
    """One client for each pair, which transfers again when the last is stored. Returns transfers per second."""
    start = time.perf_counter()
    stored = await asyncio.gather(*(_client(system, pair, start + seconds) for pair in pairs))
    return sum(stored) / (time.perf_counter() - start)


async def _client(system: ActorSystem, pair: Pair, end: float) -> int:
    giver, taker = pair
    stored = 0
    while time.perf_counter() < end:
        async with system.transaction() as tx:
            await tx.ask(giver, Deposit(amount=-1))
            await tx.ask(taker, Deposit(amount=1))
        stored += 1
    return stored
