"""A runner that is killed at random moments leaves a read model that is byte for byte what a rebuild makes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from eventstore import EventStore, caught_up, rebuild
from eventstore.read_models.completeness import check_completeness

from .ledger import Ledger, PartedLedger, entries, pay

ROOT = Path(__file__).parents[2]

Program = subprocess.Popen[str]


@pytest.fixture
def program(url: str) -> Iterator[Program]:
    with running(url, "ledger") as started:
        yield started


@contextmanager
def running(url: str, name: str) -> Generator[Program]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(ROOT / "tests/projections/killed.py"), url, name]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(timeout=60) == 0


class Runner:
    """One runner, which is killed at the end of the block."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __enter__(self) -> Self:
        assert self._program.stdin is not None
        self._program.stdin.write("\n")
        self._program.stdin.flush()
        self._pid = int(self._line())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.kill(self._pid, signal.SIGKILL)
        assert self._line() == "-9\n"

    def _line(self) -> str:
        assert self._program.stdout is not None
        return self._program.stdout.readline()


async def position(store: EventStore) -> int:
    return max((one.position for one in await store.checkpoints()), default=0)


@pytest.mark.sql_alone
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.soak)])
async def test_killed_again_and_again_while_events_come_it_is_what_a_rebuild_makes(
    store: EventStore, program: Program, kills: int
):
    generator, number = random.Random(kills), 0
    for _ in range(kills):
        for _ in range(generator.randrange(15, 30)):
            await pay(store, number, account=f"account-{number % 7}")
            number += 1
        before = await position(store)
        with Runner(program):
            async with asyncio.timeout(60):
                while await position(store) < before + generator.randrange(1, 15):
                    await asyncio.sleep(0.001)
            await asyncio.sleep(generator.uniform(0, 0.01))
    with Runner(program):
        await caught_up(store, Ledger, timeout=60)
    kept = await entries(store)
    assert [amount for *_, amount in kept] == list(range(number))
    assert (await check_completeness(store, Ledger)).is_complete
    await rebuild(store, Ledger)
    assert await entries(store) == kept


@pytest.mark.sql_alone
@pytest.mark.parametrize("kills", [4, pytest.param(60, marks=pytest.mark.soak)])
async def test_partitions_whose_runners_are_killed_go_on_elsewhere_and_lose_and_double_nothing(
    store: EventStore, url: str, kills: int
):
    generator, number = random.Random(kills), 0
    with running(url, "parted") as one, running(url, "parted") as two:
        programs = [one, two]
        with Runner(two):
            for _ in range(kills):
                for _ in range(generator.randrange(15, 30)):
                    await pay(store, number, account=f"account-{number % 7}")
                    number += 1
                with Runner(one):
                    # Until both have some of them, in the middle of whatever they do.
                    async with asyncio.timeout(60):
                        while len(await runners(store)) < len(programs):
                            await asyncio.sleep(0.002)
                    await asyncio.sleep(generator.uniform(0, 0.02))
            await caught_up(store, PartedLedger, timeout=60)
    kept = await entries(store)
    assert sorted(amount for *_, amount in kept) == list(range(number))
    for account in range(7):
        assert [a for _, name, a in kept if name == f"account-{account}"] == list(range(account, number, 7))
    assert (await check_completeness(store, PartedLedger)).is_complete
    await rebuild(store, PartedLedger)
    assert sorted(await entries(store)) == sorted(kept)


@pytest.mark.sql_alone
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.soak)])
async def test_inline_it_has_all_that_is_stored_and_nothing_else_whenever_its_writers_are_killed(
    store: EventStore, url: str, kills: int
):
    generator = random.Random(kills)
    with running(url, "inline") as one, running(url, "inline") as two:
        for number in range(kills):
            before = await store.end()
            # One alone now and then, so that its commits do not only wait for those of another.
            with Runner(one), Runner(two) if number % 3 else nullcontext():
                async with asyncio.timeout(60):
                    while await store.end() < before + generator.randrange(1, 60):
                        await asyncio.sleep(0.001)
                await asyncio.sleep(generator.uniform(0, 0.01))
    # Nobody has brought it forward since.
    kept = await entries(store)
    stored = [recorded async for recorded in store.read_all()]
    assert kept == [(one.position, one.stream_id, one.json()["amount"]) for one in stored]
    assert len(kept) >= kills
    (checkpoint,) = await store.checkpoints()
    assert (checkpoint.position, checkpoint.events) == (stored[-1].position, len(stored))
    assert (await check_completeness(store, Ledger)).is_complete
    await rebuild(store, Ledger)
    assert await entries(store) == kept


async def runners(store: EventStore) -> set[str]:
    """The processes that have a partition, as far as they are there."""
    names = {one.runner_name for one in await store.checkpoints() if one.runner}
    return {name for name in names if is_there(int(name.rpartition(":")[2]))}


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
