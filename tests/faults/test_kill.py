"""F01: a process that is killed at any moment has lost nothing that it had acknowledged, and done nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .kill_cycles import Counts
from .vault import Record
from .verdict import stored_events, verdict

ROOT = Path(__file__).parents[2]
CYCLES_TO_A_FILE = 100


def run_cycles(path: Path, cycles: int, worker: str = "honest") -> tuple[Counts, Record]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.kill_cycles", str(path), str(cycles), worker],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60 + cycles,
        check=True,
    )
    record = Record()
    record.read(Path(f"{path}.record").read_text())
    return Counts(**json.loads(done.stdout)), record


def assert_survives(folder: Path, files: int) -> None:
    for number in range(files):
        path = folder / f"{number}.db"
        counts, record = run_cycles(path, CYCLES_TO_A_FILE)
        stored = {event.id for event in stored_events(path)}

        assert verdict(path, record) == []
        assert counts.killed == CYCLES_TO_A_FILE
        # The kills came where they hurt: between intent and ack, of deposits that were stored and that were not.
        assert counts.killed_with_asks_in_flight > CYCLES_TO_A_FILE // 2
        assert counts.killed_after_acks >= CYCLES_TO_A_FILE // 2
        assert stored - record.acks.keys()
        assert record.intents.keys() - stored
        for file in folder.glob(f"{number}.db*"):
            file.unlink()


def test_300_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    assert_survives(tmp_path, 3)


@pytest.mark.soak
def test_10_000_kills_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    assert_survives(tmp_path, 100)


@pytest.mark.parametrize(
    ("worker", "rule"), [("acknowledging early", "lost"), ("buffering", "lost"), ("doubling", "doubled")]
)
def test_a_worker_that_breaks_its_promise_is_found_guilty(tmp_path: Path, worker: str, rule: str) -> None:
    _, record = run_cycles(tmp_path / "broken.db", 12, worker)

    assert rule in {violation.rule for violation in verdict(tmp_path / "broken.db", record)}
