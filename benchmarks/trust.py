"""Trust: what it costs to own actors exclusively, and to have every command remembered (rows 17 and 18)."""

from __future__ import annotations

import asyncio
import time

from actors import ActorRef, ActorSystem, new_command_id
from benchmarks.accounts import Account, Deposit
from benchmarks.commits import accounts, throughput
from benchmarks.databases import POSTGRES, SQLITE, Database
from benchmarks.harness import EVENTS_PER_SECOND, Goal, Plan, Ratio, Side, compared, interleaved

_ACTORS = 64


class OwnedAccount(Account):
    """The same, of which one process at a time may have it."""

    ownership = "exclusive"


async def owned_on_sqlite(plan: Plan) -> list[Ratio]:
    return [await _owned(SQLITE, plan)]


async def owned_on_postgres(plan: Plan) -> list[Ratio]:
    return [await _owned(POSTGRES, plan)]


async def remembered_on_sqlite(plan: Plan) -> list[Ratio]:
    return [await _remembered(SQLITE, plan)]


async def remembered_on_postgres(plan: Plan) -> list[Ratio]:
    return [await _remembered(POSTGRES, plan)]


async def _owned(database: Database, plan: Plan) -> Ratio:
    """Row 17: 64 actors that are owned exclusively / 64 that are shared."""
    async with database.journal(plan) as journal, ActorSystem(journal.url) as system:
        owned = await accounts(system, _ACTORS, OwnedAccount)
        shared = await accounts(system, _ACTORS)
        kept = database.durability
        sides = [
            Side("64 actors, exclusive", kept, lambda seconds: throughput(owned, seconds)),
            Side("64 actors, shared", kept, lambda seconds: throughput(shared, seconds)),
        ]
        figures = await interleaved(sides, plan)
    what = f"{database.name}: 64 actors owned exclusively / shared"
    return compared("17", what, sides, figures, EVENTS_PER_SECOND, Goal(0.95, 1.0))


async def _remembered(database: Database, plan: Plan) -> Ratio:
    """Row 18: 64 actors, every command with an id / without."""
    async with database.journal(plan) as journal, ActorSystem(journal.url) as system:
        refs = await accounts(system, _ACTORS)
        kept = database.durability
        sides = [
            Side("every command with an id", kept, lambda seconds: _with_ids(refs, seconds)),
            Side("without ids", kept, lambda seconds: throughput(refs, seconds)),
        ]
        figures = await interleaved(sides, plan)
    what = f"{database.name}: 64 actors, every command with an id / without"
    return compared("18", what, sides, figures, EVENTS_PER_SECOND, Goal(0.60, 0.80))


async def _with_ids(refs: list[ActorRef[Account]], seconds: float) -> float:
    start = time.perf_counter()
    replies = await asyncio.gather(*(_client(ref, start + seconds) for ref in refs))
    return sum(replies) / (time.perf_counter() - start)


async def _client(ref: ActorRef[Account], end: float) -> int:
    replies = 0
    while time.perf_counter() < end:
        await ref.ask(Deposit(amount=1), command_id=new_command_id())
        replies += 1
    return replies
