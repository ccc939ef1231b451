"""F18: several processes on one SQLite file take turns, and one that cannot have its turn is told so."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from actors import ActorSystem
from eventstore import EventStore, StoreBusy

from .journals import sqlite_url, stored_events
from .vault import Deposit, GetTotal, Record, Vault, parts_of
from .verdict import verdict

ROOT = Path(__file__).parents[2]
SECONDS = 3.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that is there already."""
    path = tmp_path / "vaults.db"
    asyncio.run(make(path))
    return path


async def make(path: Path) -> None:
    async with EventStore.open(f"sqlite:///{path}"):
        pass


def test_two_processes_on_one_file_lose_nothing_and_double_nothing(path: Path) -> None:
    with writer(path, "one", "own-1", "shared") as one, writer(path, "two", "own-2", "shared") as two:
        longest = max(outcome_of([one, two]))
    record = Record()
    for name in ("one", "two"):
        record.read(path.with_suffix(f".{name}").read_text())
    events = stored_events(sqlite_url(path))

    assert verdict(sqlite_url(path), record) == []
    assert record.unknown == set()
    # Both were at work all the time, and none waited long for its turn.
    deposits = Counter(event.id.partition("/")[0] for event in events)
    assert min(deposits.values()) > max(deposits.values()) / 20, deposits
    assert longest < 20.0
    # They met: wherever the other's events follow in a stream, somebody had decided on a state that was passed by.
    turns = [name for name, _ in groupby(e.id.partition("/")[0] for e in events if e.stream_id == "vault-shared")]
    assert len(turns) > 10
    # Only those are refused who were overtaken again and again, and that is rare.
    assert {id_.split("/")[1] for id_ in record.refused} <= {"shared"}
    assert set(record.refused.values()) <= {"ConcurrencyError"}
    assert len(record.refused) < len(record.acks) / 10


@contextlib.contextmanager
def writer(path: Path, name: str, *keys: str) -> Iterator[subprocess.Popen[str]]:
    """A writer that is ready to begin."""
    module = [sys.executable, "-W", "error", "-m", "tests.faults.writer"]
    arguments = [f"sqlite:///{path}", str(path.with_suffix(f".{name}")), name, str(SECONDS), "honest", *keys]
    with subprocess.Popen(
        [*module, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def outcome_of(writers: list[subprocess.Popen[str]]) -> list[float]:
    """Let all begin at once. Returns, when they have ended, how long each one's slowest deposit took."""
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("begin\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=180)[0] for process in writers]
    assert [process.returncode for process in writers] == [0] * len(writers)
    return [float(output) for output in outputs]


@contextlib.contextmanager
def lock_held(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program has the write lock. Its connection is none of ours."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


async def test_a_lock_held_for_less_than_the_busy_timeout_only_delays(path: Path) -> None:
    async with EventStore.open(f"sqlite:///{path}?busy_timeout=60") as store:
        start = time.monotonic()
        with lock_held(path) as other:
            asyncio.get_running_loop().call_later(0.3, other.execute, "ROLLBACK")
            appended = await store.append("vault-1", parts_of(Deposit(id="a")))
        assert appended.versions == (1,)
        assert 0.3 <= time.monotonic() - start < 30


async def test_a_lock_held_for_longer_is_a_typed_error_and_nothing_is_stored(path: Path) -> None:
    async with EventStore.open(f"sqlite:///{path}?busy_timeout=0.2") as store:
        for version in range(3):
            with lock_held(path):
                start = time.monotonic()
                with pytest.raises(StoreBusy):
                    await store.append("vault-1", parts_of(Deposit(id=f"refused {version}")))
                assert 0.2 <= time.monotonic() - start < 30
                assert await store.version("vault-1") == version
            await store.append("vault-1", parts_of(Deposit(id=f"stored {version}")), expected_version=version)
    assert [event.id for event in stored_events(sqlite_url(path))] == ["stored 0", "stored 1", "stored 2"]


async def test_an_actor_that_could_not_store_serves_again_from_what_is_stored(path: Path) -> None:
    async with ActorSystem(f"sqlite:///{path}?busy_timeout=0.2") as system:
        vault = system.ref(Vault, "1")
        await vault.ask(Deposit(id="before", amount=1))
        with lock_held(path):
            answers = await asyncio.gather(
                *(vault.ask(Deposit(id=f"refused {number}", amount=100)) for number in range(5)),
                vault.ask(GetTotal()),
                return_exceptions=True,
            )
        assert [type(answer) for answer in answers] == [StoreBusy] * 6
        assert await vault.ask(Deposit(id="after", amount=2)) == (2, 3)
    assert [event.id for event in stored_events(sqlite_url(path))] == ["before", "after"]


async def test_a_third_process_makes_only_those_wait_too_long_who_come_while_it_holds_the_lock(path: Path) -> None:
    holder = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print('held', flush=True); sys.stdin.readline()"
    )
    url = f"sqlite:///{path}?busy_timeout=0.3"
    async with EventStore.open(url) as one, EventStore.open(url) as two:
        with subprocess.Popen(
            [sys.executable, "-c", holder, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as third:
            assert third.stdout is not None
            assert await asyncio.to_thread(third.stdout.readline) == b"held\n"
            refused = await asyncio.gather(
                one.append("vault-1", parts_of(Deposit(id="one"))),
                two.append("vault-1", parts_of(Deposit(id="two"))),
                return_exceptions=True,
            )
            assert [type(answer) for answer in refused] == [StoreBusy, StoreBusy]
            # Killed in its transaction: its lock goes with it.
            third.kill()
        assert (await one.append("vault-1", parts_of(Deposit(id="one")))).versions == (1,)
        assert (await two.append("vault-1", parts_of(Deposit(id="two")))).versions == (2,)
    record = Record()
    record.read("intent one vault-1 1 1\nintent two vault-1 1 1\nack one 1 1\nack two 2 2")
    assert await asyncio.to_thread(verdict, sqlite_url(path), record) == []
