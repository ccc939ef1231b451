"""A runner that is killed at random moments leaves a read model that is byte for byte what a rebuild makes."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from eventstore import EventStore, caught_up, rebuild
from eventstore.completeness import check_completeness

from .ledger import Ledger, entries, pay

ROOT = Path(__file__).parents[2]

Program = subprocess.Popen[str]


@pytest.fixture
def program(url: str) -> Iterator[Program]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    command = [sys.executable, str(ROOT / "tests/projections/killed.py"), url]
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
