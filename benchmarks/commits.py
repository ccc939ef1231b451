"""Commits: from an ask to its durable reply, against the bare database and the peer (rows 1, 2, 3, 6, 7)."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from statistics import median

from actors import ActorRef, ActorSystem
from benchmarks.accounts import Account, Deposit
from benchmarks.bare_sqlite import BareSQLite
from benchmarks.harness import EVENTS_PER_SECOND, FULL, MILLISECONDS, Goal, Plan, Ratio, Side, compared, interleaved

_ACTORS = 64
_PEER_THREADS = 8


async def actors_64(plan: Plan) -> list[Ratio]:
    """Row 1: 64 actors, each asked again when it has replied / the same rows, 64 to a transaction."""
    async with _system(plan) as system:
        refs = await _accounts(system, _ACTORS)
        with _bare(plan, _ACTORS) as bare:
            sides = [
                Side("64 actors, ask to durable reply", FULL, lambda seconds: _throughput(refs, seconds)),
                Side("executemany, 64 rows a commit", FULL, lambda seconds: _bare_rows(bare, seconds, rows=_ACTORS)),
            ]
            figures = await interleaved(sides, plan)
    what = "SQLite: 64 actors / bare executemany of 64 rows"
    return [compared("1", what, sides, figures, EVENTS_PER_SECOND, Goal(0.55, 0.75))]


async def one_actor(plan: Plan) -> list[Ratio]:
    """Row 2: one actor, the next ask after the reply / commits of one row."""
    async with _system(plan) as system:
        refs = await _accounts(system, 1)
        with _bare(plan, 1) as bare:
            sides = [
                Side("1 actor in strict sequence", FULL, lambda seconds: _throughput(refs, seconds)),
                Side("single INSERT, autocommit", FULL, lambda seconds: _bare_rows(bare, seconds, rows=1)),
            ]
            figures = await interleaved(sides, plan)
    what = "SQLite: 1 actor in strict sequence / bare single commits"
    return [compared("2", what, sides, figures, EVENTS_PER_SECOND, Goal(0.55, 0.85))]


async def one_hot_actor(plan: Plan) -> list[Ratio]:
    """Row 3: 64 clients of one actor / one client of the same actor."""
    async with _system(plan) as system:
        refs = await _accounts(system, 1)
        sides = [
            Side("1 actor, 64 asks in flight", FULL, lambda seconds: _throughput(refs * _ACTORS, seconds)),
            Side("the same actor in sequence", FULL, lambda seconds: _throughput(refs, seconds)),
        ]
        figures = await interleaved(sides, plan)
    what = "SQLite: one hot actor, 64 asks in flight / in sequence"
    return [compared("3", what, sides, figures, EVENTS_PER_SECOND, Goal(8, 15), digits=1)]


async def against_peer(plan: Plan) -> list[Ratio]:
    """Row 6: 64 actors / 64 aggregates of `eventsourcing`, from one thread or from several, whichever is faster."""
    from benchmarks import peer

    async with _system(plan) as system:
        refs = await _accounts(system, _ACTORS)
        with peer.opened(plan.directory / "peer.db") as application:
            accounts = peer.new_accounts(application, _ACTORS)

            async def in_turn(seconds: float) -> float:
                return peer.deposit_in_turn(application, accounts, seconds)

            async def in_threads(seconds: float) -> float:
                # The loop sleeps meanwhile, so the peer's threads have the interpreter to themselves.
                return peer.deposit_in_threads(application, accounts, seconds, threads=_PEER_THREADS)

            ours = Side("64 actors, ask to durable reply", FULL, lambda seconds: _throughput(refs, seconds))
            candidates = [
                Side("eventsourcing, save after save", FULL, in_turn),
                Side(f"eventsourcing, {_PEER_THREADS} threads", FULL, in_threads),
            ]
            figures = await interleaved([ours, *candidates], plan)
    fastest = max(range(len(candidates)), key=lambda number: median(figures[number + 1]))
    sides = [ours, candidates[fastest]]
    chosen = [figures[0], figures[fastest + 1]]
    what = "SQLite: 64 actors / eventsourcing 9.5, the faster of two ways"
    return [compared("6", what, sides, chosen, EVENTS_PER_SECOND, Goal(12, 25), digits=1)]


async def latency(plan: Plan) -> list[Ratio]:
    """Row 7: the 99th percentile of asks at 64 actors / that of bare commits of 64 rows."""
    async with _system(plan) as system:
        refs = await _accounts(system, _ACTORS)
        with _bare(plan, _ACTORS) as bare:

            async def ours(seconds: float) -> float:
                taken: list[float] = []
                end = time.perf_counter() + seconds
                await asyncio.gather(*(_timed_client(ref, end, taken) for ref in refs))
                return _p99(taken)

            async def theirs(seconds: float) -> float:
                return _p99(bare.commits(seconds, rows=_ACTORS))

            sides = [
                Side("p99 of an ask, 64 actors", FULL, ours),
                Side("p99 of a commit of 64 rows", FULL, theirs),
            ]
            figures = await interleaved(sides, plan)
    what = "SQLite: p99 of an ask at 64 actors / p99 of a bare commit of 64 rows"
    return [compared("7", what, sides, figures, MILLISECONDS, Goal(2.5, 1.5, is_upper_limit=True))]


async def _throughput(refs: list[ActorRef[Account]], seconds: float) -> float:
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


async def _bare_rows(bare: BareSQLite, seconds: float, *, rows: int) -> float:
    taken = bare.commits(seconds, rows=rows)
    return rows * len(taken) / sum(taken)


def _system(plan: Plan) -> ActorSystem:
    return ActorSystem(f"sqlite:///{plan.directory / 'journal.db'}")


async def _accounts(system: ActorSystem, count: int) -> list[ActorRef[Account]]:
    refs = [system.ref(Account, str(number)) for number in range(count)]
    await asyncio.gather(*(ref.ask(Deposit(amount=1)) for ref in refs))
    return refs


def _bare(plan: Plan, streams: int) -> closing[BareSQLite]:
    return closing(BareSQLite(plan.directory / "bare.db", streams=streams))


def _p99(taken: list[float]) -> float:
    return sorted(taken)[int(len(taken) * 0.99)]
