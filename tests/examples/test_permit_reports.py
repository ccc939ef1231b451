"""The two read models of `examples/permit_reports.py` are what the event log says, to the row, whatever is killed."""

from __future__ import annotations

import asyncio
import csv
import random
import signal
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from eventstore import EventStore

from .conftest import Run, command_of
from .permit_log import make_rows, permit_log, write_log

ReadModels = tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]

_ORDERED = (
    "SELECT case_id, events, first_at, last_at FROM permit_cases ORDER BY case_id",
    "SELECT from_resource, to_resource, n FROM handovers ORDER BY from_resource, to_resource",
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return permit_log(tmp_path, 1500, cases=120, seed=21)


def expected(path: Path) -> ReadModels:
    """What the file says, by the plainest means."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        cases.setdefault(row["case:concept:name"], []).append(row)
    known = []
    counts: Counter[tuple[str, str]] = Counter()
    for case, found in cases.items():
        times = sorted(datetime.fromisoformat(row["time:timestamp"]).astimezone(UTC) for row in found)
        known.append((case, len(found), times[0], times[-1]))
        counts.update(
            (one["org:resource"], other["org:resource"])
            for one, other in pairwise(found)
            if one["org:resource"] != other["org:resource"]
        )
    return sorted(known), sorted((one, other, n) for (one, other), n in counts.items())


def read_models(url: str) -> ReadModels:
    """What the tables have, with moments for the times, in Python's order."""
    cases, handovers = asyncio.run(rows_of(url))
    moments = [(case, n, datetime.fromisoformat(one), datetime.fromisoformat(other)) for case, n, one, other in cases]
    return sorted(moments), sorted(handovers)


async def rows_of(url: str) -> ReadModels:
    async with EventStore.open(url) as store:
        transaction = await store.begin_sql(seconds=30)
        try:
            cases, handovers = [
                [tuple(row) for row in await transaction.connection.execute(text(statement))] for statement in _ORDERED
            ]
        finally:
            await transaction.rollback()
        return cases, handovers


def test_both_are_right_to_the_row_and_again_when_they_are_rebuilt(run_example: Run, url: str, log: Path) -> None:
    assert run_example("permits.py", log, "--store", url).returncode == 0
    done = run_example("permit_reports.py", "--store", url)
    assert (done.returncode, done.stderr) == (0, "")
    wanted = expected(log)
    assert read_models(url) == wanted
    total = sum(n for *_, n in wanted[1])
    events = sum(case[1] for case in wanted[0])
    assert done.stdout == f"permit_cases: {len(wanted[0]):,} cases, {events:,} events; handovers: {total:,}\n"

    rebuilt = run_example("permit_reports.py", "--store", url, "--rebuild")
    assert (rebuilt.returncode, rebuilt.stdout, rebuilt.stderr) == (0, done.stdout, "")
    assert read_models(url) == wanted


def test_they_follow_the_journal_and_end_when_they_are_told(run_example: Run, url: str, log: Path) -> None:
    assert run_example("permits.py", log.parent / "none.csv", "--store", url).returncode == 2
    run_example("permits.py", write_log(log.parent / "few.csv", make_rows(0, cases=1, seed=1)), "--store", url)
    with subprocess.Popen(command_of("permit_reports.py", "--store", url, "--follow"), cwd=log.parent) as process:
        run_example("permits.py", log, "--store", url)
        wanted, deadline = expected(log), time.monotonic() + 120
        while not is_there(url) or read_models(url) != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130


def is_there(url: str) -> bool:
    async def checkpoints() -> int:
        async with EventStore.open(url) as store:
            return len(await store.checkpoints())

    return asyncio.run(checkpoints()) == 2


def test_killed_at_any_moment_they_are_byte_for_byte_what_a_rebuild_makes(
    run_example: Run, url: str, log: Path
) -> None:
    run_example("permits.py", log, "--store", url)
    generator = random.Random(4)
    for _ in range(4):
        with subprocess.Popen(command_of("permit_reports.py", "--store", url), cwd=log.parent) as process:
            time.sleep(generator.uniform(0.4, 1.2))
            process.kill()
    done = run_example("permit_reports.py", "--store", url)
    assert (done.returncode, done.stderr) == (0, "")
    kept = asyncio.run(rows_of(url))
    assert read_models(url) == expected(log)
    assert run_example("permit_reports.py", "--store", url, "--rebuild").returncode == 0
    assert asyncio.run(rows_of(url)) == kept


def test_a_store_without_sql_is_refused_in_one_line(run_example: Run, redis_url: str) -> None:
    for option in ((), ("--follow",), ("--rebuild",)):
        done = run_example("permit_reports.py", "--store", redis_url, *option)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert "has no SQL" in line


def test_a_fresh_database_is_refused_in_one_line(run_example: Run, tmp_path: Path) -> None:
    done = run_example("permit_reports.py", "--store", f"sqlite:///{tmp_path}/none.db")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert not (tmp_path / "none.db").exists()
