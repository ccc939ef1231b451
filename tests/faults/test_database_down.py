"""A database that goes away and comes back under load: quick refusals, little memory, and service again by itself."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from actors import ActorSystem
from eventstore import EventStore, OutcomeUnknown
from eventstore.backend import AppendOutcome, Backend, Batch, Load, Loaded
from eventstore.circuit_breaker import CircuitBreaker
from eventstore.errors import JournalCorrupt
from eventstore.schema import upgrade
from eventstore.url import parse_store_url
from tests.faults.asking_again import Asking
from tests.faults.broken import TakingLostForRefused, Wrapped, opened_with
from tests.faults.journals import sqlite_url, stored_events
from tests.faults.memory import resident_megabytes
from tests.faults.outages import CALL_SECONDS, OfNetwork, OfServer, Outage
from tests.faults.outcomes import verdict_on_ids
from tests.faults.vault import Deposit, GetTotal, Vault, deposit
from tests.servers.proxy import FaultProxy
from tests.servers.server import Server

ACTORS = 200
RECOVERIES_AT_ONCE = 8
QUICK = 0.05
BACK_WITHIN = 2.0


@pytest.fixture
def ground(request: pytest.FixtureRequest) -> tuple[str, Server | str]:
    """How a database will go away, and its server, or the URL on one that others share."""
    database, way = request.param.split(" ")
    if way not in {"killed", "stopped"}:
        return way, request.getfixturevalue(f"{database}_url")
    server = request.getfixturevalue(f"own_{database}")
    upgrade(parse_store_url(server.url()))
    return way, server


@pytest_asyncio.fixture
async def outage(ground: tuple[str, Server | str]) -> AsyncIterator[Outage]:
    way, at = ground
    if isinstance(at, Server):
        yield OfServer(at, at.url(), is_killed=way == "killed")  # type: ignore[attr-defined]
        return
    parts = urlsplit(at)
    async with FaultProxy(parts.hostname or "", parts.port or 0) as proxy:
        yield OfNetwork(proxy, at, is_silent=way == "silent")


class Watched(Wrapped):
    """Counts how many states are asked for at once."""

    most_loads = 0

    def append(self, batches: Sequence[Batch]) -> Awaitable[Sequence[AppendOutcome]]:
        return self._backend.append(batches)

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        self.most_loads = max(self.most_loads, len(loads))
        return await self._backend.load(loads)


@dataclass
class Observed:
    """What a load saw of an outage. Times are those of the monotonic clock."""

    asking: Asking = field(default_factory=lambda: Asking(pause=0.1))
    began: float = 0.0
    ended: float = 0.0
    was_away: bool = False
    cold_before: int = 0
    reads: list[float] = field(default_factory=list[float])
    grown_megabytes: float = 0.0
    tasks_during: int = 0
    served_again: list[float] = field(default_factory=list[float])
    most_recoveries: int = 0

    @property
    def opened(self) -> float:
        """When somebody was refused because the breaker was open."""
        return min((each.began + each.seconds for each in self.of("CircuitOpen")), default=self.ended)

    @property
    def refusals(self) -> list[float]:
        """How long those had to wait who asked while it was open."""
        return [each.seconds for each in self.asking.tries if self.opened < each.began < self.ended - CALL_SECONDS]

    def of(self, error: str) -> list[Any]:
        return [each for each in self.asking.tries if each.error == error and self.began < each.began < self.ended]


async def observe(
    outage: Outage, seconds: float, *, recoveries_at_once: int = RECOVERIES_AT_ONCE, broken: type[Wrapped] | None = None
) -> Observed:
    """Hammer a database that goes away for so long: actors that are in memory, and as many that are not."""
    seen = Observed()
    watched: list[Watched] = []

    def watch(backend: Backend) -> Watched:
        watched.append(Watched(backend if broken is None else broken(backend)))  # type: ignore[arg-type]
        return watched[0]

    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened_with(watch, outage.url))
        # An actor whose outcome was unknown is rebuilt: that is a recovery as well.
        system = await stack.enter_async_context(
            ActorSystem(store, recoveries_at_once=recoveries_at_once, ask_timeout=60, catch_up_seconds=60)
        )
        tellers = await stack.enter_async_context(asyncio.TaskGroup())
        hot = [f"hot{number}" for number in range(ACTORS)]
        cold = [f"cold{number}" for number in range(ACTORS)]
        quiet = [system.ref(Vault, f"quiet{number}") for number in range(20)]
        await asyncio.gather(*(seen.asking.deposit(vault, Deposit(id=vault.stream_id)) for vault in quiet))
        is_over = asyncio.Event()

        async def teller(key: str, first: int = 0) -> None:
            vault = system.ref(Vault, key)
            number = first
            while not is_over.is_set():
                number += 1
                await seen.asking.deposit(vault, Deposit(id=f"{key}/{number}"))
                await asyncio.sleep(0.1)

        async def nameless() -> None:
            """Without ids, and as every refusal says."""
            number = 0
            while not is_over.is_set():
                number += 1
                await deposit(system.ref(Vault, "nameless"), Deposit(id=f"n/{number}"), seen.asking.lines.append)
                await asyncio.sleep(0.005)

        async def reader() -> None:
            """What is in memory can be read all the time."""
            while not is_over.is_set():
                for vault in quiet:
                    start = time.monotonic()
                    assert await vault.ask(GetTotal()) == (1, 1)
                    seen.reads.append(time.monotonic() - start)
                    await asyncio.sleep(0.005)

        for key in hot:
            tellers.create_task(teller(key))
        for _ in range(3):
            tellers.create_task(nameless())
        tellers.create_task(reader())
        while not all(f"{key}/2" in seen.asking.answered for key in hot):
            await asyncio.sleep(0.01)
        reads_before = len(seen.reads)
        watched[0].most_loads = 0

        await outage.begin()
        seen.began = time.monotonic()
        seen.was_away = await outage.is_on()
        for key in cold:
            tellers.create_task(teller(key))
        await asyncio.sleep(seconds / 2)
        gc.collect()
        before = resident_megabytes()
        await asyncio.sleep(seconds / 2)
        gc.collect()
        seen.grown_megabytes = resident_megabytes() - before
        seen.tasks_during = len(asyncio.all_tasks())
        seen.reads = seen.reads[reads_before:]
        seen.was_away = seen.was_away and await outage.is_on()
        await outage.end()
        seen.ended = time.monotonic()

        async with asyncio.timeout(30):
            while len(seen.served_again) < 2 * ACTORS:
                await asyncio.sleep(0.02)
                seen.served_again = served_after(seen, hot + cold)
                if "DBG" in __import__("os").environ: print(len(seen.served_again), time.monotonic()-seen.ended, dict(seen.asking.errors), system.stats()[:3], flush=True)
        is_over.set()
        seen.most_recoveries = watched[0].most_loads
    return seen


def served_after(seen: Observed, keys: list[str]) -> list[float]:
    """How long after the return each actor has stored something for the first time."""
    first: dict[str, float] = {}
    for id_, at in seen.asking.answered.items():
        key = id_.partition("/")[0]
        if at > seen.ended and key not in first:
            first[key] = at - seen.ended
    return sorted(first[key] for key in keys if key in first)


def percentile(values: list[float], part: int) -> float:
    return quantiles(values, n=100)[part - 1]


async def verdict_on(outage: Outage, seen: Observed) -> set[str]:
    found = await asyncio.to_thread(verdict_on_ids, outage.true_url, seen.asking.record(), seen.asking.ids)
    return {violation.rule for violation in found}


def complaints(seen: Observed, *, strict: bool = False) -> list[str]:
    """What an outage must not do to those who ask."""
    found: list[str] = []
    if not seen.of("CircuitOpen") or seen.opened - seen.began > 4 * CALL_SECONDS + 1:
        return ["nobody was refused quickly"]
    if percentile(seen.refusals, 99 if strict else 90) > QUICK:
        found.append("refusals were slow")
    if seen.grown_megabytes > 16 or seen.tasks_during > 3 * ACTORS:
        found.append("it took memory")
    if len(seen.reads) < 20 or percentile(seen.reads, 90) > QUICK:
        found.append("actors in memory did not answer")
    if seen.served_again[0] > BACK_WITHIN or seen.served_again[-1] > BACK_WITHIN * (1 if strict else 2):
        found.append("actors served late")
    if seen.most_recoveries > RECOVERIES_AT_ONCE:
        found.append("too many recovered at once")
    return found


def describe(seen: Observed) -> str:
    return (
        f"refused after {seen.opened - seen.began:.2f} s; {len(seen.refusals)} refusals, median "
        f"{percentile(seen.refusals, 50) * 1000:.2f} ms, p99 {percentile(seen.refusals, 99) * 1000:.1f} ms; "
        f"{seen.grown_megabytes:+.1f} MiB, {seen.tasks_during} tasks; {len(seen.reads)} reads, "
        f"p99 {percentile(seen.reads, 99) * 1000:.1f} ms; served again after {seen.served_again[0]:.2f} to "
        f"{seen.served_again[-1]:.2f} s; {seen.most_recoveries} recoveries at once; {dict(seen.asking.errors)}"
    )


@pytest.mark.parametrize(
    "ground", ["postgres killed", "postgres silent", "redis stopped", "redis refused"], indirect=True
)
async def test_a_database_that_goes_away_is_told_quickly_and_served_again_when_it_is_back(outage: Outage) -> None:
    seen = await observe(outage, 2.0)

    print(describe(seen))
    assert seen.was_away
    assert complaints(seen) == []
    assert await verdict_on(outage, seen) == set()
    assert set(seen.asking.errors) <= {"CircuitOpen", "BackendUnavailable"}


@pytest.mark.soak
@pytest.mark.parametrize("way", ["killed", "stopped", "refused", "silent"])
async def test_a_database_that_goes_away_for_twenty_seconds(way: str) -> None: ...
