"""Commits: from an ask to its durable reply, against the bare database and the peer (rows 1 to 7)."""

from __future__ import annotations

import asyncio
import time
from statistics import median

from actors import ActorRef, ActorSystem
from benchmarks.accounts import Account, Deposit
from benchmarks.databases import POSTGRES, REDIS, SQLITE, Bare, Database
from benchmarks.harness import EVENTS_PER_SECOND, MILLISECONDS, Goal, Plan, Ratio, Side, compared, interleaved

_ACTORS = 64
_PEER_THREADS = 8


async def actors_64(row: str, database: Database, goal: Goal, plan: Plan) -> Ratio:
    """Rows 1, 4, 5: 64 actors, each asked again when it has replied / the same rows, 64 to a commit."""
    async with database.journal(plan) as journal, ActorSystem(journal.url) as system, journal.bare(_ACTORS) as bare:
        refs = await accounts(system, _ACTORS)
        sides = [
            Side("64 actors, ask to durable reply", database.durability, lambda seconds: throughput(refs, seconds)),
            Side(
                f"{database.bare}, 64 rows a commit",
                database.durability,
                lambda seconds: _bare_rows(bare, seconds, rows=_ACTORS),
            ),
        ]
        figures = await interleaved(sides, plan)
    what = f"{database.name}: 64 actors / {database.bare}, 64 rows a commit"
    return compared(row, what, sides, figures, EVENTS_PER_SECOND, goal)


async def on_sqlite(plan: Plan) -> list[Ratio]:
    return [await actors_64("1", SQLITE, Goal(0.55, 0.75), plan)]


async def on_postgres(plan: Plan) -> list[Ratio]:
    return [await actors_64("4", POSTGRES, Goal(0.45, 0.70), plan)]


async def on_redis(plan: Plan) -> list[Ratio]:
    return [await actors_64("5", REDIS, Goal(0.50, 0.80), plan)]


async def one_actor(plan: Plan) -> list[Ratio]:
    """Row 2: one actor, the next ask after the reply / commits of one row."""
    async with SQLITE.journal(plan) as journal, ActorSystem(journal.url) as system, journal.bare(1) as bare:
        refs = await accounts(system, 1)
        sides = [
            Side("1 actor in strict sequence", SQLITE.durability, lambda seconds: throughput(refs, seconds)),
            Side("single INSERT, autocommit", SQLITE.durability, lambda seconds: _bare_rows(bare, seconds, rows=1)),
        ]
        figures = await interleaved(sides, plan)
    what = "SQLite: 1 actor in strict sequence / bare single commits"
    return [compared("2", what, sides, figures, EVENTS_PER_SECOND, Goal(0.55, 0.85))]


async def one_hot_actor(plan: Plan) -> list[Ratio]:
    """Row 3: 64 clients of one actor / one client of the same actor."""
    async with SQLITE.journal(plan) as journal, ActorSystem(journal.url) as system:
        refs = await accounts(system, 1)
        full = SQLITE.durability
        sides = [
            Side("1 actor, 64 asks in flight", full, lambda seconds: throughput(refs * _ACTORS, seconds)),
            Side("the same actor in sequence", full, lambda seconds: throughput(refs, seconds)),
        ]
        figures = await interleaved(sides, plan)
    what = "SQLite: one hot actor, 64 asks in flight / in sequence"
    return [compared("3", what, sides, figures, EVENTS_PER_SECOND, Goal(8, 15), digits=1)]


async def peer_on_sqlite(plan: Plan) -> list[Ratio]:
    return [await _against_peer(SQLITE, Goal(12, 25), plan)]


async def peer_on_postgres(plan: Plan) -> list[Ratio]:
    return [await _against_peer(POSTGRES, Goal(30, 60), plan)]


async def _against_peer(database: Database, goal: Goal, plan: Plan) -> Ratio:
    """Row 6: 64 actors / 64 aggregates of `eventsourcing`, from one thread or from several, whichever is faster."""
    from benchmarks import peer

    async with database.journal(plan) as journal, ActorSystem(journal.url) as system:
        refs = await accounts(system, _ACTORS)
        with peer.opened(journal.url, plan.directory) as application:
            aggregates = peer.new_accounts(application, _ACTORS)

            async def in_turn(seconds: float) -> float:
                return peer.deposit_in_turn(application, aggregates, seconds)

            async def in_threads(seconds: float) -> float:
                # The loop sleeps meanwhile, so the peer's threads have the interpreter to themselves.
                return peer.deposit_in_threads(application, aggregates, seconds, threads=_PEER_THREADS)

            kept = database.durability
            ours = Side("64 actors, ask to durable reply", kept, lambda seconds: throughput(refs, seconds))
            candidates = [
                Side("eventsourcing, save after save", kept, in_turn),
                Side(f"eventsourcing, {_PEER_THREADS} threads", kept, in_threads),
            ]
            figures = await interleaved([ours, *candidates], plan)
    fastest = max(range(len(candidates)), key=lambda number: median(figures[number + 1]))
    sides = [ours, candidates[fastest]]
    chosen = [figures[0], figures[fastest + 1]]
    what = f"{database.name}: 64 actors / eventsourcing 9.5, the faster of two ways"
    return compared("6", what, sides, chosen, EVENTS_PER_SECOND, goal, digits=1)


async def latency_on_sqlite(plan: Plan) -> list[Ratio]:
    return [await _latency(SQLITE, plan)]


async def latency_on_postgres(plan: Plan) -> list[Ratio]:
    return [await _latency(POSTGRES, plan)]


async def latency_on_redis(plan: Plan) -> list[Ratio]:
    return [await _latency(REDIS, plan)]


async def _latency(database: Database, plan: Plan) -> Ratio:
    """Row 7: the 99th percentile of asks at 64 actors / that of bare commits of 64 rows."""
    async with database.journal(plan) as journal, ActorSystem(journal.url) as system, journal.bare(_ACTORS) as bare:
        refs = await accounts(system, _ACTORS)

        async def ours(seconds: float) -> float:
            taken: list[float] = []
            end = time.perf_counter() + seconds
            await asyncio.gather(*(_timed_client(ref, end, taken) for ref in refs))
            return _p99(taken)

        async def theirs(seconds: float) -> float:
            return _p99(await bare.commits(seconds, rows=_ACTORS))

        sides = [
            Side("p99 of an ask, 64 actors", database.durability, ours),
            Side("p99 of a commit of 64 rows", database.durability, theirs),
        ]
        figures = await interleaved(sides, plan)
    what = f"{database.name}: p99 of an ask at 64 actors / p99 of a bare commit of 64 rows"
    return compared("7", what, sides, figures, MILLISECONDS, Goal(2.5, 1.5, is_upper_limit=True))


async def throughput(refs: list[ActorRef[Account]], seconds: float) -> float:
    """One client for each reference, which asks again when it has its reply. Returns replies per second."""
    start = time.perf_counter()
    replies = await asyncio.gather(*(_client(ref, start + seconds) for ref in refs))
    return sum(replies) / (time.perf_counter() - start)


async def _client(ref: ActorRef[Account], end: float) -> int:
    replies = 0
    while time.perf_counter() < end:
        await ref.ask(Deposit(amount=1))
        replies += 1
    return replies


async def _timed_client(ref: ActorRef[Account], end: float, taken: list[float]) -> None:
    now = time.perf_counter()
    while now < end:
        start = now
        await ref.ask(Deposit(amount=1))
        now = time.perf_counter()
        taken.append(now - start)


async def _bare_rows(bare: Bare, seconds: float, *, rows: int) -> float:
    taken = await bare.commits(seconds, rows=rows)
    return rows * len(taken) / sum(taken)


async def accounts(system: ActorSystem, count: int, cls: type[Account] = Account) -> list[ActorRef[Account]]:
    """References to so many accounts, all of them alive."""
    refs: list[ActorRef[Account]] = [system.ref(cls, str(number)) for number in range(count)]
    await asyncio.gather(*(ref.ask(Deposit(amount=1)) for ref in refs))
    return refs


def _p99(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.99)]
