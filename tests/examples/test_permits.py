"""The permits example counts exactly, whatever it is killed by and whatever is in its file."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from .conftest import Done, Run, command_of
from .permit_log import ACTIVITY, CASE, HEADER, RESOURCE, TIME, Cells, cells, expected_report, make_rows, write_log

WHEN = "2011-10-11 13:45:40.276000+02:00"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.csv", make_rows(1500, cases=120, seed=1))


def report_of(done: Done, *, code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def stored_rows(store: Path) -> list[tuple[str, dict[str, Any]]]:
    """What the journal holds, read without this package: (stream, payload) in the order of the log."""
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        rows = connection.execute(
            "SELECT s.stream_id, e.payload FROM journal_events e JOIN journal_streams s ON s.id = e.stream "
            "ORDER BY e.position"
        )
        return [(stream_id, json.loads(payload)["row"]) for stream_id, payload in rows]


# What it reports


def test_every_number_is_that_of_the_file(run_example: Run, log: Path) -> None:
    assert report_of(run_example("permits.py", log, "--json")) == expected_report(log)


@pytest.mark.skipif("PERMIT_LOG" not in os.environ, reason="PERMIT_LOG names no real event log")
def test_every_number_is_that_of_the_real_file(run_example: Run) -> None:
    path = Path(os.environ["PERMIT_LOG"]).absolute()
    expected = expected_report(path)

    assert report_of(run_example("permits.py", path, "--json")) == expected
    assert_printed(run_example("permits.py", path).stdout, expected)


def test_the_printed_report_has_the_same_numbers(run_example: Run, log: Path) -> None:
    done = run_example("permits.py", log)

    assert done.returncode == 0
    assert_printed(done.stdout, expected_report(log))


def assert_printed(text: str, expected: dict[str, Any]) -> None:
    total = expected["handovers"]["total"]
    rows = [(f"{one['activity']}", f"{one['events']:,}") for one in expected["activities"]]
    rows += [(f"{one['case']}", str(timedelta(seconds=one["seconds"]))) for one in expected["longest_cases"]]
    rows += [(f"{one['from']} → {one['to']}", f"{one['count']:,}") for one in expected["handovers"]["pairs"]]

    assert f"{expected['cases']:,} cases, {expected['events']:,} events, {total:,} hand-overs\n" in text
    assert re.findall(r"│ (.*?) +│ +(.*?) │", text) == [(name.strip() or name, number) for name, number in rows]


def test_it_reports_from_the_journal_alone(run_example: Run, log: Path, tmp_path: Path) -> None:
    expected = report_of(run_example("permits.py", log, "--json"))
    with log.open() as file:
        header = file.readline()
    (tmp_path / "empty.csv").write_text(header)

    assert report_of(run_example("permits.py", "empty.csv", "--json")) == expected


def test_each_event_keeps_all_columns_as_they_were(run_example: Run, tmp_path: Path) -> None:
    rows = make_rows(200, cases=20, seed=2)
    log = write_log(tmp_path / "log.csv", rows)
    run_example("permits.py", log)

    by_case: dict[str, list[Cells]] = {}
    for row in rows:
        by_case.setdefault(row[CASE], []).append(row)
    kept: dict[str, list[Cells]] = {}
    for stream_id, row in stored_rows(tmp_path / "permits.db"):
        case = stream_id.removeprefix("permit-")
        values = row["data"] | {
            "case:concept:name": case,
            "concept:name": row["activity"],
            "time:timestamp": row["time"],
            "org:resource": row["resource"],
            "lifecycle:transition": row["transition"],
        }
        kept.setdefault(case, []).append([values[name] for name in HEADER])
    assert kept == by_case


# Again, and after a kill


def test_running_it_again_changes_nothing(run_example: Run, log: Path, tmp_path: Path) -> None:
    first = run_example("permits.py", log, "--json")
    stored = stored_rows(tmp_path / "permits.db")
    second = run_example("permits.py", log, "--json")

    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert stored_rows(tmp_path / "permits.db") == stored
    assert second.stderr == "0 rows taken in, 1,500 known already, 0 left out\n"


def test_rows_added_to_the_file_are_taken_in(run_example: Run, tmp_path: Path) -> None:
    rows = make_rows(300, cases=10, seed=3)
    run_example("permits.py", write_log(tmp_path / "log.csv", rows[:200]))
    log = write_log(tmp_path / "log.csv", rows)
    done = run_example("permits.py", log, "--json")

    assert report_of(done) == expected_report(log)
    assert done.stderr == "100 rows taken in, 200 known already, 0 left out\n"


def test_killed_ten_times_and_continued_it_counts_exactly(run_example: Run, tmp_path: Path) -> None:
    rng = random.Random()
    rows = make_rows(5000, cases=300, seed=rng.randrange(10**6))
    log = write_log(tmp_path / "log.csv", rows)
    store = tmp_path / "permits.db"
    counts = [0]
    for kill in range(10):
        # Not at a time but at a number of events, so that every kill comes while rows are being taken in.
        target = counts[-1] + rng.randint(1, (len(rows) - counts[-1]) // (11 - kill))
        with subprocess.Popen(command_of("permits.py", log), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            wait_for_events(store, target, process)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        counts.append(len(stored_rows(store)))
    done = run_example("permits.py", log, "--json")

    assert all(before < after < len(rows) for before, after in zip(counts, counts[1:], strict=False)), counts
    assert report_of(done) == expected_report(log)
    assert done.stderr == f"{len(rows) - counts[-1]:,} rows taken in, {counts[-1]:,} known already, 0 left out\n"
    assert sorted(row["line"] for _, row in stored_rows(store)) == first_lines(rows)
    for case in {row[CASE] for row in rows}:
        expected = [(row[ACTIVITY], row[RESOURCE], row[TIME]) for row in rows if row[CASE] == case]
        found = [row for stream_id, row in stored_rows_of(store, f"permit-{case}")]
        assert [(row["activity"], row["resource"], row["time"]) for row in found] == expected


def stored_rows_of(store: Path, stream_id: str) -> list[tuple[str, dict[str, Any]]]:
    return [found for found in _cached_rows(store) if found[0] == stream_id]


def first_lines(rows: list[Cells]) -> list[int]:
    lines, line = [], 2
    for row in rows:
        lines.append(line)
        line += 1 + sum(cell.count("\n") for cell in row)
    return lines


def wait_for_events(store: Path, number: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
                query = "SELECT seq FROM sqlite_sequence WHERE name = 'journal_events'"
                while process.poll() is None:
                    if (connection.execute(query).fetchone() or (0,))[0] >= number:
                        return
                    time.sleep(0.001)
        except sqlite3.OperationalError:
            time.sleep(0.005)  # No file yet, or no tables in it.
    raise AssertionError(f"it ended, or hung, before there were {number} events")
