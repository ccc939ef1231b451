"""F01: a process that is killed at any moment has lost nothing that it had acknowledged, and done nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.servers.databases import Databases
from tests.servers.keyspaces import Keyspaces

from .journals import sqlite_url, stored_events
from .kill_cycles import Counts
from .vault import Record
from .verdict import verdict

ROOT = Path(__file__).parents[2]
CYCLES_TO_A_STORE = 100

MakeStore = Callable[[], Any]


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def new_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """Makes the URL of a new, empty store; a server is shared with other tests."""
    if request.param == "postgres":
        databases: Databases = request.getfixturevalue("databases")
        return databases.migrated
    if request.param == "redis":
        keyspaces: Keyspaces = request.getfixturevalue("keyspaces")
        return keyspaces.migrated
    return contextmanager(lambda: _file(tmp_path))


def _file(folder: Path) -> Generator[str]:
    path = folder / "vaults.db"
    yield sqlite_url(path)
    for file in folder.glob("vaults.db*"):
        file.unlink()


@pytest.fixture
def short_cycles(request: pytest.FixtureRequest) -> int:
    return 150 if "sqlite" in request.node.name else 60


def run_cycles(url: str, record_file: Path, cycles: int, worker: str = "honest") -> tuple[Counts, Record]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.kill_cycles", url, str(record_file), str(cycles), worker],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60 + cycles,
        check=True,
    )
    record = Record()
    record.read(record_file.read_text())
    return Counts(**json.loads(done.stdout)), record


def assert_survives(new_store: MakeStore, record_file: Path, cycles: int) -> None:
    stored_and_not_acknowledged = not_stored = 0
    more = 10
    while cycles > 0:
        count = min(cycles, CYCLES_TO_A_STORE)
        with new_store() as url:
            counts, record = run_cycles(url, record_file, count)
            stored = {event.id for event in stored_events(url)}

            assert verdict(url, record) == []
        assert counts.killed == count
        # The kills came where they hurt: between intent and ack, of deposits that were stored and that were not.
        assert counts.killed_with_asks_in_flight > count // 2
        assert counts.killed_after_acks >= count // 2
        stored_and_not_acknowledged += len(stored - record.acks.keys())
        not_stored += len(record.intents.keys() - stored)
        cycles -= count
        if cycles <= 0 and more and not (stored_and_not_acknowledged and not_stored):
            # So few kills may by chance have missed the moment between the two.
            cycles, more = 20, more - 1
    assert stored_and_not_acknowledged
    assert not_stored


def test_kills_lose_nothing_and_double_nothing(new_store: MakeStore, tmp_path: Path, short_cycles: int) -> None:
    assert_survives(new_store, tmp_path / "record", short_cycles)


@pytest.mark.soak
def test_10_000_kills_lose_nothing_and_double_nothing(new_store: MakeStore, tmp_path: Path) -> None:
    assert_survives(new_store, tmp_path / "record", 10_000)


@pytest.mark.parametrize(
    ("worker", "rule"), [("acknowledging early", "lost"), ("buffering", "lost"), ("doubling", "doubled")]
)
def test_a_worker_that_breaks_its_promise_is_found_guilty(
    new_store: MakeStore, tmp_path: Path, worker: str, rule: str
) -> None:
    # Whether a kill comes when it breaks it is chance.
    for _ in range(10):
        with new_store() as url:
            _, record = run_cycles(url, tmp_path / "record", 12, worker)

            if rule in {violation.rule for violation in verdict(url, record)}:
                return
    pytest.fail(f"the {worker} worker was not found guilty")
