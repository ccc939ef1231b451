"""F45: batches that lock the same streams in opposite orders, and databases that refuse what was not serial.

A gate, a row lock of the test's own on the stream in the middle, makes both processes stand before it at the same time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from actors import ActorSystem
from eventstore import EventStore
from eventstore.store import Append
from tests.backends.postgres_help import connected, execute, fetch
from tests.faults.asking_again import Asking
from tests.faults.journals import stored_events
from tests.faults.lockstep import id_of
from tests.faults.outcomes import verdict_on_ids
from tests.faults.vault import Deposit, Record, Vault, parts_of
from tests.faults.verdict import verdict

ROOT = Path(__file__).parents[2]
STREAMS = ("vault-a", "vault-m", "vault-z")
GATE = "BEGIN; SELECT FROM journal_streams WHERE stream_id = 'vault-m' FOR NO KEY UPDATE"
STANDING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@dataclass
class Met:
    """What came of two processes that met at the gate, round by round."""

    record: Record = field(default_factory=Record)
    both_stood: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[str] = field(default_factory=Counter[str])


class Process:
    def __init__(self, process: asyncio.subprocess.Process, name: str, streams: tuple[str, ...]) -> None:
        self._process = process
        self.name = name
        self.streams = streams

    async def line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            return (await self._process.stdout.readline()).decode()

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")


@asynccontextmanager
async def started(url: str, name: str, build: str, *streams: str) -> AsyncIterator[Process]:
    arguments = ["-W", "error", "-m", "tests.faults.lockstep", url, name, build, *streams]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        started = Process(process, name, streams)
        assert await started.line() == "ready\n", f"it has ended: {await process.wait()}"
        yield started
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def meet(url: str, rounds: int, build: str = "honest") -> Met:
    met = Met()
    async with EventStore.open(url) as store:
        # In this order they get their rows.
        for stream_id in STREAMS:
            id_ = id_of("first", 0, stream_id)
            met.record.read(f"intent {id_} {stream_id} 1 1\nack {id_} 1 1")
            await store.append_batch([Append(stream_id, parts_of(Deposit(id=id_)), 0)])
    await execute(url, f"ALTER DATABASE \"{urlsplit(url).path[1:]}\" SET deadlock_timeout = '10ms'")
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(connected(url))
        watcher = await stack.enter_async_context(connected(url))
        processes = [
            await stack.enter_async_context(started(url, "up", build, *STREAMS)),
            await stack.enter_async_context(started(url, "down", build, *reversed(STREAMS))),
        ]
        for number in range(rounds):
            await gate.execute(GATE)
            for process in processes:
                process.go()
            met.both_stood += await both_stand(watcher)
            await gate.execute("ROLLBACK")
            for process in processes:
                note(met, process, number, json.loads(await process.line()))
    return met


async def both_stand(watcher: Any) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if await watcher.fetchval(STANDING) >= 2:
            return True
        await asyncio.sleep(0.002)
    return False


def note(met: Met, process: Process, number: int, said: dict[str, Any]) -> None:
    met.refused.update(said["refused"])
    for index, stream_id in enumerate(process.streams):
        id_ = id_of(process.name, number, stream_id)
        lines = [f"intent {id_} {stream_id} 1 1"]
        if "error" in said:
            lines.append(f"refused {id_} {said['error']}")
        else:
            # Every deposit is of one, so what is in a vault is its version.
            version = said["versions"][index]
            lines.append(f"ack {id_} {version} {version}")
        met.record.read("\n".join(lines))
    if "error" in said:
        met.errors[said["error"]] += 1


async def assert_sound(url: str, met: Met, rounds: int) -> None:
    assert met.both_stood == rounds
    assert await asyncio.to_thread(verdict, url, met.record) == []
    batches: dict[bytes, set[str]] = defaultdict(set)
    for event in await asyncio.to_thread(stored_events, url):
        if not event.id.startswith("first"):
            batches[event.batch_id].add(event.stream_id)
    # Each is whole.
    assert set(map(frozenset, batches.values())) == {frozenset(STREAMS)}


async def deadlocks(url: str, *, at_least: int = 0) -> int:
    deadline = time.monotonic() + 20
    while True:
        # A session tells what it has counted when it ends, or after some time.
        await asyncio.sleep(0.1)
        count: int = (await fetch(url, DEADLOCKS))[0][0]
        if count >= at_least or time.monotonic() > deadline:
            return count


async def survives(url: str, rounds: int) -> None:
    met = await meet(url, rounds)

    print(f"{rounds} rounds, {met.both_stood} where both stood before the gate, refused {dict(met.refused)}")
    await assert_sound(url, met, rounds)
    assert met.errors == {}
    assert len(met.record.acks) == len(STREAMS) * (2 * rounds + 1)
    assert await deadlocks(url) == 0


async def test_batches_in_opposite_orders_never_wait_for_each_other(postgres_url: str) -> None:
    await survives(postgres_url, 20)


@pytest.mark.soak
async def test_a_thousand_batches_in_opposite_orders_never_wait_for_each_other(postgres_url: str) -> None:
    await survives(postgres_url, 1000)


async def test_a_deadlock_is_cured_inside(postgres_url: str) -> None:
    """Only a store that locks in the wrong order has one here; a user's own transactions may have them with ours."""
    met = await meet(postgres_url, 10, "unsorted")

    await assert_sound(postgres_url, met, 10)
    assert await deadlocks(postgres_url, at_least=5) >= 5
    assert met.refused["40P01"] >= 5
    assert met.errors == {}


async def test_a_store_that_gives_up_after_a_deadlock_is_found_guilty(postgres_url: str) -> None:
    met = await meet(postgres_url, 5, "unsorted, giving up")

    assert met.refused["40P01"]
    assert met.errors["StoreBusy"]
    # It says the truth, at least.
    await assert_sound(postgres_url, met, 5)


async def serialize(url: str, level: str) -> None:
    await execute(url, f"ALTER DATABASE \"{urlsplit(url).path[1:]}\" SET default_transaction_isolation = '{level}'")


@pytest.mark.parametrize("level", ["repeatable read", pytest.param("serializable", marks=pytest.mark.soak)])
async def test_a_serialization_failure_is_cured_inside(postgres_url: str, level: str) -> None:
    await serialize(postgres_url, level)
    met = await meet(postgres_url, 10)

    await assert_sound(postgres_url, met, 10)
    assert met.refused["40001"] >= 5
    assert met.errors == {}


async def test_a_store_that_gives_up_after_a_serialization_failure_is_found_guilty(postgres_url: str) -> None:
    await serialize(postgres_url, "repeatable read")
    met = await meet(postgres_url, 5, "unsorted, giving up")

    assert met.errors["StoreBusy"]


async def test_a_lock_that_is_not_to_be_had_in_time_is_told_and_asking_again_stores_once(postgres_url: str) -> None:
    asking = Asking()
    async with ActorSystem(postgres_url) as system, connected(postgres_url) as gate:
        vault = system.ref(Vault, "m")
        await asking.deposit(vault, Deposit(id="first"))
    await execute(postgres_url, f"ALTER DATABASE \"{urlsplit(postgres_url).path[1:]}\" SET lock_timeout = '20ms'")
    async with ActorSystem(postgres_url) as system, connected(postgres_url) as gate:
        for number in range(10):
            await gate.execute(GATE)
            vaults = [system.ref(Vault, key) for key in ("m", "other")]
            deposits = [asking.deposit(vault, Deposit(id=f"{vault.stream_id}/{number}")) for vault in vaults]
            waiting = asyncio.gather(*deposits)
            before = asking.errors["StoreBusy"]
            async with asyncio.timeout(30):
                while asking.errors["StoreBusy"] == before:
                    await asyncio.sleep(0.005)
            await gate.execute("ROLLBACK")
            async with asyncio.timeout(30):
                await waiting
    assert set(asking.errors) == {"StoreBusy"}
    assert await asyncio.to_thread(verdict_on_ids, postgres_url, asking.record(), asking.ids) == []
