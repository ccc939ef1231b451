"""The examples on Postgres and Redis: the same reports as on SQLite, and one line on what a fresh database needs."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from eventstore import EventStore

from .conftest import Done, Run, command_of
from .permit_log import CASE, expected_report, make_rows, write_log

SERVERS = ("postgres", "redis")
_PATIENCE_SECONDS = 120


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest) -> str:
    """A server with an empty journal."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=SERVERS)
def fresh_url(request: pytest.FixtureRequest) -> str:
    """A server without a journal."""
    url: str = request.getfixturevalue(f"empty_{request.param}_url")
    return url


@pytest.mark.parametrize(
    "arguments",
    [("permits.py", "log.csv", "--store"), ("bank.py",), ("demo.py", "--store"), ("transfers.py", "--store")],
)
def test_a_fresh_database_is_refused_in_one_line_that_names_the_command(
    run_example: Run, fresh_url: str, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    write_log(tmp_path / "log.csv", make_rows(5, cases=1, seed=1))
    done = run_example(*arguments, fresh_url)

    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("The store failed: ")
    assert "eventstore migrate " in line


def test_the_report_is_that_of_sqlite(run_example: Run, url: str, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", make_rows(400, cases=40, seed=7))
    printed = run_example("permits.py", log)
    done, again = run_example("permits.py", log, "--store", url), run_example("permits.py", log, "--store", url)

    assert (done.returncode, done.stderr) == (0, "400 rows taken in, 0 known already, 0 left out\n")
    assert done.stdout == printed.stdout == again.stdout
    assert again.stderr == "0 rows taken in, 400 known already, 0 left out\n"


@pytest.mark.skipif("PERMIT_LOG" not in os.environ, reason="PERMIT_LOG names no real event log")
def test_the_report_on_the_real_file_is_that_of_the_file(run_example: Run, url: str) -> None:
    path = Path(os.environ["PERMIT_LOG"]).absolute()

    assert report_of(run_example("permits.py", path, "--store", url, "--json")) == expected_report(path)


def test_killed_and_run_again_it_has_every_row_once(run_example: Run, url: str, tmp_path: Path) -> None:
    rows = make_rows(1500, cases=150, seed=8)
    log = write_log(tmp_path / "log.csv", rows)
    counts = [0]
    for _ in range(2):
        with subprocess.Popen(
            command_of("permits.py", log, "--store", url), cwd=tmp_path, stderr=subprocess.DEVNULL
        ) as process:
            asyncio.run(wait_for_events(url, counts[-1] + random.randint(1, 200), process))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        counts.append(len(asyncio.run(stored_lines(url))))
    assert counts[0] < counts[1] < counts[2] < len(rows), counts

    done = run_example("permits.py", log, "--store", url, "--json")
    assert report_of(done) == expected_report(log)
    assert done.stderr == f"{len(rows) - counts[-1]:,} rows taken in, {counts[-1]:,} known already, 0 left out\n"
    lines = asyncio.run(stored_lines(url))
    assert len(lines) == len(set(lines)) == len(rows)
    assert Counter(stream_id for stream_id, _ in lines) == Counter(f"permit-{row[CASE]}" for row in rows)


def test_the_money_is_still_there_the_next_time(run_example: Run, url: str) -> None:
    first, second = run_example("bank.py", url), run_example("bank.py", url)

    assert (first.returncode, first.stderr, second.stderr) == (0, "", "")
    assert "In the end    alice   7500   bob   2500" in first.stdout
    assert "At first      alice   7500   bob   2500" in second.stdout
    assert "account-alice version 4: Withdrawn(amount=2500, reference='rent to bob')" in second.stdout


def test_the_demonstration_counts_its_own_run_alone(run_code: Run, url: str) -> None:
    code = f"""
        import sys, demo
        demo.ROUNDS, demo.SHORTEST_ROUND_SECONDS, demo.LONGEST_ROUND_SECONDS = 1, 0.2, 0.4
        sys.exit(demo.demonstrate({url!r}))
    """
    for _ in range(2):
        done = run_code(textwrap.dedent(code))
        assert (done.returncode, done.stderr) == (0, "")
        assert "Every acknowledged deposit is there, and none is there twice." in done.stdout


async def wait_for_events(url: str, number: int, process: subprocess.Popen[bytes]) -> None:
    async with EventStore.open(url) as store, asyncio.timeout(_PATIENCE_SECONDS):
        while (await store.statistics()).events < number:
            assert process.poll() is None, "it ended too early"
            await asyncio.sleep(0.002)


async def stored_lines(url: str) -> list[tuple[str, int]]:
    """For each row in the journal its stream and its line in the file."""
    async with EventStore.open(url) as store:
        return [(recorded.stream_id, recorded.json()["row"]["line"]) async for recorded in store.read_all()]


def report_of(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report
