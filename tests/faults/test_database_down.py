"""A database that goes away and comes back under load: quick refusals, little memory, and service again by itself."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from actors import ActorSystem
from eventstore import BackendUnavailable, EventStore, OutcomeUnknown
from eventstore.backend import AppendOutcome, Backend, Batch, Load, Loaded
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.calls.group_commit import UNRESOLVED_SECONDS
from eventstore.errors import JournalCorrupt
from eventstore.schema import upgrade
from eventstore.url import parse_store_url
from tests.faults.asking_again import Asking
from tests.faults.broken import TakingLostForRefused, Wrapped, opened_with
from tests.faults.journals import sqlite_url, stored_events
from tests.faults.machine import StolenTime, resident_megabytes
from tests.faults.outages import CALL_SECONDS, OfNetwork, OfServer, Outage
from tests.faults.outcomes import verdict_on_ids
from tests.faults.vault import Deposit, GetTotal, Vault, deposit
from tests.servers.proxy import FaultProxy
from tests.servers.server import Server

ACTORS = 200
RECOVERIES_AT_ONCE = 8
QUICK = 0.05
BACK_WITHIN = 2.0
# Where other work keeps the machine busy: those that wait for the database wait for twice as long, and more.
QUICK_BESIDE_OTHERS = CALL_SECONDS / 2
BACK_WITHIN_BESIDE_OTHERS = 20.0
# So many refusals are wanted, and an outage goes on until there are as many: how fast people ask is the machine's.
REFUSALS = 200
PATIENCE_SECONDS = 30.0


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

    asking: Asking = field(default_factory=lambda: Asking(pause=0.15))
    stolen: StolenTime = field(default_factory=StolenTime)
    began: float = 0.0
    ended: float = 0.0
    was_away: bool = False
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
        opened, end = self.opened, self.ended - CALL_SECONDS
        return [self.own_seconds(each.began, each.seconds) for each in self.asking.tries if opened < each.began < end]

    def own_seconds(self, began: float, seconds: float) -> float:
        """How long something took, without what the machine gave to others."""
        return seconds - self.stolen.within(began, began + seconds)

    def of(self, error: str) -> list[Any]:
        return [each for each in self.asking.tries if each.error == error and self.began < each.began < self.ended]


async def observe(
    outage: Outage,
    seconds: float,
    *,
    refusals: int = 0,
    recoveries_at_once: int = RECOVERIES_AT_ONCE,
    broken: type[Wrapped] | None = None,
) -> Observed:
    """Hammer a database that goes away for so long, and until so many were refused: actors that are in memory, and as
    many that are not."""
    seen = Observed()
    watched: list[Watched] = []

    def watch(backend: Backend) -> Watched:
        watched.append(Watched(backend if broken is None else cast("Backend", broken(backend))))
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

        async def teller(key: str) -> None:
            for number in count():
                if is_over.is_set():
                    return
                await seen.asking.deposit(system.ref(Vault, key), Deposit(id=f"{key}/{number}"))
                await asyncio.sleep(0.1)

        async def nameless(name: str) -> None:
            """Without ids: every refusal is taken at its word."""
            for number in count():
                if is_over.is_set():
                    return
                await deposit(system.ref(Vault, "nameless"), Deposit(id=f"{name}/{number}"), seen.asking.lines.append)
                await asyncio.sleep(0.005)

        async def reader() -> None:
            """What is in memory can be read all the time."""
            while not is_over.is_set():
                for vault in quiet:
                    start = time.monotonic()
                    assert await vault.ask(GetTotal()) == (1, 1)
                    seen.reads.append(seen.own_seconds(start, time.monotonic() - start))
                    await asyncio.sleep(0.005)

        for key in hot:
            tellers.create_task(teller(key))
        for number in range(3):
            tellers.create_task(nameless(f"nameless{number}"))
        tellers.create_task(reader())
        tellers.create_task(seen.stolen.watch(is_over))
        while not all(f"{key}/1" in seen.asking.answered for key in hot):
            await asyncio.sleep(0.01)
        reads_before = len(seen.reads)
        watched[0].most_loads = 0

        await outage.begin(b'"id":"nameless')
        seen.began = time.monotonic()
        seen.was_away = await outage.is_on()
        for key in cold:
            tellers.create_task(teller(key))
        await asyncio.sleep(seconds / 2)
        before = resident_megabytes()
        await asyncio.sleep(seconds / 2)
        while len(seen.refusals) < refusals and time.monotonic() < seen.began + PATIENCE_SECONDS:
            seen.ended = time.monotonic()
            await asyncio.sleep(0.1)
        seen.grown_megabytes = resident_megabytes() - before
        seen.tasks_during = len(asyncio.all_tasks())
        seen.reads = seen.reads[reads_before:]
        seen.was_away = seen.was_away and await outage.is_on()
        await outage.end()
        seen.ended = time.monotonic()

        async with asyncio.timeout(60):
            while len(seen.served_again) < 2 * ACTORS:
                await asyncio.sleep(0.02)
                seen.served_again = served_after(seen, hot + cold)
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
    quick, back_within = (QUICK, BACK_WITHIN) if strict else (QUICK_BESIDE_OTHERS, BACK_WITHIN_BESIDE_OTHERS)
    latest = CALL_SECONDS + UNRESOLVED_SECONDS + (1 if strict else PATIENCE_SECONDS)
    if len(seen.refusals) < 100 or seen.opened - seen.began > latest:
        return ["nobody was refused quickly"]
    # On a machine that does other work too, something now and then takes longer.
    if percentile(seen.refusals, 95 if strict else 75) > quick:
        found.append("refusals were slow")
    if seen.grown_megabytes > 16 or seen.tasks_during > 5 * ACTORS:
        found.append("it took memory")
    if len(seen.reads) < 20 or percentile(seen.reads, 95 if strict else 75) > quick:
        found.append("actors in memory did not answer")
    if seen.served_again[-1] > back_within:
        found.append("actors served late")
    if seen.most_recoveries > RECOVERIES_AT_ONCE:
        found.append("too many recovered at once")
    return found


def describe(seen: Observed) -> str:
    refusals = seen.refusals or [math.nan] * 2
    median, p95, p99 = (percentile(refusals, part) * 1000 for part in (50, 95, 99))
    return (
        f"refused after {seen.opened - seen.began:.2f} s; {len(refusals)} refusals, median {median:.2f} ms, "
        f"p95 {p95:.1f} ms, p99 {p99:.1f} ms; "
        f"{seen.grown_megabytes:+.1f} MiB, {seen.tasks_during} tasks; {len(seen.reads)} reads, "
        f"p99 {percentile(seen.reads, 99) * 1000:.1f} ms; served again after {seen.served_again[0]:.2f} to "
        f"{seen.served_again[-1]:.2f} s; {seen.most_recoveries} recoveries at once; {dict(seen.asking.errors)}"
    )


async def survives(outage: Outage, seconds: float, *, strict: bool = False) -> None:
    seen = await observe(outage, seconds, refusals=REFUSALS)

    print(describe(seen))
    assert seen.was_away
    assert complaints(seen, strict=strict) == []
    assert await verdict_on(outage, seen) == set()
    # On a busy machine those who come back may also wait too long for one of the connections that read.
    busy = set() if strict else {"ConnectionsBusy"}
    assert set(seen.asking.errors) <= {"CircuitOpen", "BackendUnavailable"} | busy


@pytest.mark.parametrize("ground", ["postgres killed", "redis silent"], indirect=True)
async def test_a_database_that_goes_away_is_told_quickly_and_served_again_when_it_is_back(outage: Outage) -> None:
    await survives(outage, 3.0)


@pytest.mark.soak
@pytest.mark.parametrize(
    "ground",
    [f"{name} {way}" for name in ("postgres", "redis") for way in ("killed", "stopped", "silent", "refused")],
    indirect=True,
)
async def test_a_database_that_goes_away_for_half_a_minute_is_told_quickly_and_served_again(outage: Outage) -> None:
    await survives(outage, 25.0, strict=True)


@pytest.mark.parametrize("ground", ["redis silent"], indirect=True)
async def test_a_store_without_a_breaker_is_found_guilty(outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CircuitBreaker, "_open", lambda _: None)
    assert {"nobody was refused quickly", "refusals were slow"} & set(complaints(await observe(outage, 3.0)))


@pytest.mark.parametrize("ground", ["redis refused"], indirect=True)
async def test_actors_that_recover_all_at_once_are_found_guilty(outage: Outage) -> None:
    assert "too many recovered at once" in complaints(await observe(outage, 2.0, recoveries_at_once=ACTORS))


@pytest.mark.parametrize("ground", ["redis refused"], indirect=True)
async def test_a_store_that_takes_a_lost_reply_for_a_refusal_is_found_guilty(outage: Outage) -> None:
    assert "refused but stored" in await verdict_on(outage, await observe(outage, 2.0, broken=TakingLostForRefused))


# A file that another process has locked


async def test_a_file_that_another_process_has_locked_is_told_in_time_and_served_again_when_it_is_free(
    tmp_path: Path,
) -> None:
    path = tmp_path / "vaults.db"
    holder = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.readline()"
    )
    asking = Asking(pause=0.05)
    async with ActorSystem(f"{sqlite_url(path)}?busy_timeout=0.2") as system:
        vaults = [system.ref(Vault, str(number)) for number in range(ACTORS)]
        quiet = system.ref(Vault, "quiet")
        await asyncio.gather(*(asking.deposit(vault, Deposit(id=f"{vault.stream_id}/0")) for vault in [*vaults, quiet]))
        asking.tries.clear()
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdout is not None
            assert await asyncio.to_thread(other.stdout.readline) == b"held\n"
            before = resident_megabytes()
            waiting = [asyncio.create_task(asking.deposit(v, Deposit(id=f"{v.stream_id}/1"))) for v in vaults]
            for _ in range(50):
                assert await quiet.ask(GetTotal()) == (1, 1)
                await asyncio.sleep(0.02)
            assert not any(task.done() for task in waiting)
            assert resident_megabytes() - before < 16
            other.kill()
        ended = time.monotonic()
        async with asyncio.timeout(60):
            await asyncio.gather(*waiting)
    assert len(stored_events(sqlite_url(path))) == 2 * ACTORS + 1
    assert max(asking.answered.values()) - ended < BACK_WITHIN_BESIDE_OTHERS
    assert set(asking.errors) == {"StoreBusy"}
    # The wait of the append that was under way, and its own, and far less than without this setting.
    assert percentile([each.seconds for each in asking.tries], 50) < 2 * 0.2 + 2.0
    assert await asyncio.to_thread(verdict_on_ids, sqlite_url(path), asking.record(), asking.ids) == []


# One actor whose outcome is unknown


@pytest.mark.parametrize(
    "ground", ["postgres silent", "postgres refused", "redis silent", "redis refused"], indirect=True
)
async def test_who_waits_for_an_unknown_outcome_is_answered_in_order_when_the_database_is_back(outage: Outage) -> None:
    asking = Asking()
    async with EventStore.open(outage.url) as store, ActorSystem(store) as system:
        vault = system.ref(Vault, "1")
        await asking.deposit(vault, Deposit(id="first"))
        # What a busy machine made it wait for before is not what this is about.
        asking.tries.clear()
        beginning = asyncio.create_task(outage.begin(b'"id":"0"'))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(asking.deposit(vault, Deposit(id="0")))]
        await beginning
        waiting += [asyncio.create_task(asking.deposit(vault, Deposit(id=str(n)))) for n in range(1, 10)]
        reading = asyncio.create_task(vault.ask(GetTotal()))
        # So long that others would be refused now.
        async with asyncio.timeout(PATIENCE_SECONDS):
            while store.commits.breaker.is_closed:
                await asyncio.sleep(0.01)
        assert await outage.is_on()
        assert not any(task.done() for task in (*waiting, reading))
        # What was on its way is stored, as all know but the actor; what waits behind it is not.
        assert [event.id for event in await asyncio.to_thread(stored_events, outage.true_url)] == ["first", "0"]
        await outage.end()
        async with asyncio.timeout(PATIENCE_SECONDS):
            receipts = await asyncio.gather(*waiting)
            assert await reading == (11, 11)
    assert receipts == [(version, version) for version in range(2, 12)]
    assert sorted(asking.answered, key=asking.answered.__getitem__) == ["first", *map(str, range(10))]
    assert asking.errors == {}
    assert await asyncio.to_thread(verdict_on_ids, outage.true_url, asking.record(), asking.ids) == []


@pytest.mark.parametrize(
    "ground", ["postgres silent", "postgres refused", "redis silent", "redis refused"], indirect=True
)
async def test_past_the_deadline_everybody_is_told_their_command_and_asking_again_finds_out(outage: Outage) -> None:
    # All have to ask before that is over.
    resolve_seconds = 2.0
    async with EventStore.open(outage.url, resolve_within=resolve_seconds) as store, ActorSystem(store) as system:
        vault = system.ref(Vault, "1")
        asking = Asking(timeout=PATIENCE_SECONDS)
        await asking.deposit(vault, Deposit(id="first"))
        beginning = asyncio.create_task(outage.begin(b'"id":"0"'))
        await asyncio.sleep(0.01)
        start = time.monotonic()
        first = asyncio.create_task(vault.ask(Deposit(id="0"), command_id="0"))
        await beginning
        behind = [vault.ask(Deposit(id=str(number)), command_id=str(number)) for number in range(1, 10)]
        told = await asyncio.gather(first, *behind, vault.ask(GetTotal()), return_exceptions=True)
        assert await outage.is_on()
        assert {type(each) for each in told} == {OutcomeUnknown}
        assert [each.command_id for each in told] == [*map(str, range(10)), None]  # type: ignore[union-attr]
        # Its deadline, and that of the try that was under way then.
        assert time.monotonic() - start < resolve_seconds + 3 * CALL_SECONDS + 10
        # It is not known what the actor's state is, so it answers nothing from it.
        with pytest.raises(BackendUnavailable):
            await vault.ask(GetTotal(), timeout=PATIENCE_SECONDS)
        await outage.end()
        async with asyncio.timeout(PATIENCE_SECONDS):
            receipts = [await asking.deposit(vault, Deposit(id=str(number))) for number in range(10)]
    assert receipts == [(version, version) for version in range(2, 12)]
    assert await asyncio.to_thread(verdict_on_ids, outage.true_url, asking.record(), asking.ids) == []
