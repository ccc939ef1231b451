"""A runner that is killed at random moments leaves a read model that is byte for byte what a rebuild makes."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from eventstore import EventStore, caught_up, rebuild
from eventstore.completeness import check_completeness

from .ledger import Ledger, entries, pay

ROOT = Path(__file__).parents[2]


def start(url: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.Popen([sys.executable, str(ROOT / "tests/projections/killed.py"), url], env=environment)


async def position(store: EventStore) -> int:
    return max((one.position for one in await store.checkpoints()), default=0)


async def kill_again_and_again(store: EventStore, url: str, kills: int) -> int:
    """Kill a runner, each time after it has come a little further, while events come. Returns how many there are."""
    generator, number = random.Random(kills), 0
    for _ in range(kills):
        for _ in range(generator.randrange(30, 60)):
            await pay(store, number, account=f"account-{number % 7}")
            number += 1
        process, before = start(url), await position(store)
        async with asyncio.timeout(60):
            while await position(store) < before + generator.randrange(1, 30):
                assert process.poll() is None
                await asyncio.sleep(0.001)
        await asyncio.sleep(generator.uniform(0, 0.01))
        process.kill()
        assert process.wait() == -9
    return number


async def show_it_is_right(store: EventStore, url: str, number: int) -> None:
    process = start(url)
    try:
        async with asyncio.timeout(60):
            while not await store.checkpoints():
                await asyncio.sleep(0.01)
        await caught_up(store, Ledger, timeout=60)
    finally:
        process.kill()
        process.wait()
    kept = await entries(store)
    assert [amount for *_, amount in kept] == list(range(number))
    assert (await check_completeness(store, Ledger)).is_complete
    await rebuild(store, Ledger)
    assert await entries(store) == kept


@pytest.mark.sql_alone
async def test_killed_a_few_times_it_is_what_a_rebuild_makes(store: EventStore, url: str):
    await show_it_is_right(store, url, await kill_again_and_again(store, url, 4))


@pytest.mark.soak
@pytest.mark.sql_alone
async def test_killed_a_hundred_times_it_is_what_a_rebuild_makes(store: EventStore, url: str):
    await show_it_is_right(store, url, await kill_again_and_again(store, url, 100))
