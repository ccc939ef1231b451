"""The permits example counts exactly, whatever it is killed by and whatever is in its file."""

from __future__ import annotations

import csv
import io
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
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .conftest import Done, Run, command_of, run_in
from .permit_log import ACTIVITY, CASE, HEADER, Cells, cells, expected_report, make_rows, write_log

WHEN = "2011-10-11 13:45:40.276000+02:00"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log.csv", make_rows(600, cases=60, seed=1))


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


# What it reports, the first time and again


class Runs(NamedTuple):
    """A log taken in, and again; then one without rows. And what was stored after the first run and the last."""

    log: Path
    first: Done
    again: Done
    without_rows: Done
    stored: list[tuple[str, dict[str, Any]]]
    stored_in_the_end: list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("permits")
    log = write_log(folder / "log.csv", make_rows(600, cases=60, seed=1))
    without_rows = write_log(folder / "without_rows.csv", [])
    first = run_in(folder, command_of("permits.py", log, "--json"))
    stored = stored_rows(folder / "permits.db")
    again = run_in(folder, command_of("permits.py", log))
    last = run_in(folder, command_of("permits.py", without_rows, "--json"))
    return Runs(log, first, again, last, stored, stored_rows(folder / "permits.db"))


def test_every_number_is_that_of_the_file(runs: Runs) -> None:
    assert report_of(runs.first) == expected_report(runs.log)
    assert runs.first.stderr == "600 rows taken in, 0 known already, 0 left out\n"


def test_running_it_again_changes_nothing(runs: Runs) -> None:
    assert runs.again.returncode == 0
    assert runs.again.stderr == "0 rows taken in, 600 known already, 0 left out\n"
    assert runs.stored_in_the_end == runs.stored


def test_the_printed_report_has_the_same_numbers(runs: Runs) -> None:
    assert_printed(runs.again.stdout, expected_report(runs.log))


def test_it_reports_from_the_journal_alone(runs: Runs) -> None:
    assert report_of(runs.without_rows) == expected_report(runs.log)


@pytest.mark.skipif("PERMIT_LOG" not in os.environ, reason="PERMIT_LOG names no real event log")
def test_every_number_is_that_of_the_real_file(run_example: Run) -> None:
    path = Path(os.environ["PERMIT_LOG"]).absolute()
    expected = expected_report(path)

    assert report_of(run_example("permits.py", path, "--json")) == expected
    assert_printed(run_example("permits.py", path).stdout, expected)


def assert_printed(text: str, expected: dict[str, Any]) -> None:
    total = expected["handovers"]["total"]
    rows = [(f"{one['activity']}", f"{one['events']:,}") for one in expected["activities"]]
    rows += [(f"{one['case']}", str(timedelta(seconds=one["seconds"]))) for one in expected["longest_cases"]]
    rows += [
        (f"{one['from'] or '(none)'} → {one['to'] or '(none)'}", f"{one['count']:,}")
        for one in expected["handovers"]["pairs"]
    ]

    assert f"{expected['cases']:,} cases, {expected['events']:,} events, {total:,} hand-overs\n" in text
    assert re.findall(r"│ (.*?) +│ +(.*?) │", text) == rows


def test_each_event_keeps_all_columns_as_they_were(runs: Runs) -> None:
    by_case: dict[str, list[Cells]] = {}
    for row in make_rows(600, cases=60, seed=1):
        by_case.setdefault(row[CASE], []).append(row)
    kept: dict[str, list[Cells]] = {}
    for stream_id, row in runs.stored:
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


# More rows, and after a kill


def test_rows_added_to_the_file_are_taken_in(run_example: Run, tmp_path: Path) -> None:
    rows = make_rows(300, cases=10, seed=3)
    run_example("permits.py", write_log(tmp_path / "log.csv", rows[:200]))
    log = write_log(tmp_path / "log.csv", rows)
    done = run_example("permits.py", log, "--json")

    assert report_of(done) == expected_report(log)
    assert done.stderr == "100 rows taken in, 200 known already, 0 left out\n"


def test_killed_ten_times_and_continued_it_counts_exactly(run_example: Run, tmp_path: Path) -> None:
    rows = make_rows(2500, cases=150, seed=random.randrange(10**6))
    log, store = write_log(tmp_path / "log.csv", rows), tmp_path / "permits.db"
    counts = [0]
    for _ in range(10):
        with subprocess.Popen(command_of("permits.py", log), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            # Not after a time but after so many events, so that every kill comes while rows are being taken in.
            wait_for_events(store, counts[-1] + random.randint(1, 150), process)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        counts.append(len(stored_rows(store)))

    assert all(before < after for before, after in pairwise(counts)), counts
    assert counts[-1] < len(rows), counts

    done = run_example("permits.py", log, "--json")

    assert report_of(done) == expected_report(log)
    assert done.stderr == f"{len(rows) - counts[-1]:,} rows taken in, {counts[-1]:,} known already, 0 left out\n"
    taken: dict[str, list[tuple[int, str]]] = {}
    for stream_id, row in stored_rows(store):
        taken.setdefault(stream_id, []).append((row["line"], row["activity"]))
    in_file: dict[str, list[tuple[int, str]]] = {}
    for line, row in zip(first_lines(rows), rows, strict=True):
        in_file.setdefault(f"permit-{row[CASE]}", []).append((line, row[ACTIVITY]))
    assert taken == in_file


def first_lines(rows: list[Cells]) -> list[int]:
    """The line that each row starts in. The header is line 1."""
    lines: list[int] = []
    line = 2
    for row in rows:
        lines.append(line)
        line += 1 + sum(cell.count("\n") for cell in row)
    return lines


def wait_for_events(store: Path, number: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
                query = "SELECT max(position) FROM journal_events"
                while process.poll() is None:
                    if (connection.execute(query).fetchone()[0] or 0) >= number:
                        return
                    time.sleep(0.001)
        except sqlite3.OperationalError:
            time.sleep(0.005)  # No file yet, or no tables in it.
    raise AssertionError(f"it ended, or hung, before there were {number} events")


def test_interrupted_it_says_so_and_can_be_continued(run_example: Run, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", make_rows(2000, cases=200, seed=4))
    with subprocess.Popen(
        command_of("permits.py", log), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_events(tmp_path / "permits.db", 100, process)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=120)
    assert (process.returncode, *output) == (130, "", "Interrupted. Run it again, and it goes on from here.\n")
    assert 100 <= len(stored_rows(tmp_path / "permits.db")) < 2000

    assert report_of(run_example("permits.py", log, "--json")) == expected_report(log)


# Rows that cannot be taken in

GOOD = cells("case-1", "T01", "Resource01", WHEN)


MALFORMED = [
    (cells("", "T01", "Resource01", WHEN), "it has no case"),
    (cells("  ", "T01", "Resource01", WHEN), "it has no case"),
    (cells("case-1", "T01", "Resource01", "yesterday"), "it has no valid timestamp: 'yesterday'"),
    (cells("case-1", "T01", "Resource01", ""), "it has no valid timestamp: ''"),
    (cells("case-1", "T01", "Resource01", "2011-13-11 13:45:40+02:00"), "it has no valid timestamp"),
    (cells("case-1", "T01", "Resource01", "2011-10-11 13:45:40"), "its timestamp has no UTC offset"),
    (GOOD[:-1], "it has 8 columns, the header has 9"),
    ([*GOOD, ""], "it has 10 columns, the header has 9"),
    (["case-1"], "it has 1 columns, the header has 9"),
    (cells("a\0b", "T01", "Resource01", WHEN), "NUL"),
    (cells("c" * 1025, "T01", "Resource01", WHEN), "at most 1024 bytes"),
]


def test_malformed_rows_are_named_and_the_others_go_in(run_example: Run, tmp_path: Path) -> None:
    rows = [row for bad, _ in MALFORMED for row in (GOOD, bad)]
    done = run_example("permits.py", write_log(tmp_path / "log.csv", [*rows, GOOD]), "--json")

    *named, summary = done.stderr.splitlines()
    assert summary == f"{len(MALFORMED) + 1} rows taken in, 0 known already, {len(MALFORMED)} left out"
    assert report_of(done, code=1)["events"] == len(MALFORMED) + 1
    messages = dict(line.split(" is left out: ") for line in named)
    assert list(messages) == [f"line {3 + 2 * number}" for number in range(len(MALFORMED))]
    for message, (_, problem) in zip(messages.values(), MALFORMED, strict=True):
        assert problem in message


def test_the_line_named_is_that_of_the_file_where_cells_have_several_lines(run_example: Run, tmp_path: Path) -> None:
    long = cells("case-1", "T01", "Resource01", WHEN, note="one\ntwo\r\n\nfour")
    text = csv_text([long, GOOD]) + "\n\n" + csv_text([GOOD[:3], long[:4], GOOD])
    (tmp_path / "log.csv").write_text(csv_text([HEADER]) + text, newline="")
    done = run_example("permits.py", "log.csv", "--json")

    # Line 1 is the header, 2 to 5 the long row, 6 a good one, 7 and 8 are empty.
    assert done.stderr.splitlines() == [
        "line 9 is left out: it has 3 columns, the header has 9",
        "line 10 is left out: it has 4 columns, the header has 9",
        "3 rows taken in, 0 known already, 2 left out",
    ]
    assert [row["line"] for _, row in stored_rows(tmp_path / "permits.db")] == [2, 6, 14]


@pytest.mark.parametrize("bad", ['Internet,"case-1,no end', 'Internet,"case-1" and more,x', '"'])
def test_a_quote_in_the_wrong_place_costs_its_own_row_alone(run_example: Run, tmp_path: Path, bad: str) -> None:
    good = [cells(f"case-{number}", "T, 01", "Resource01", WHEN) for number in range(60)]
    (tmp_path / "log.csv").write_text(csv_text([HEADER, *good[:10]]) + f"{bad}\n" + csv_text(good[10:]))
    done = run_example("permits.py", "log.csv", "--json")

    assert report_of(done, code=1)["events"] == 60
    assert done.stderr.startswith("line 12 is left out: it is no CSV: ")
    assert done.stderr.count("left out") == 2


def test_a_row_that_is_not_utf_8_is_left_out(run_example: Run, tmp_path: Path) -> None:
    good = csv_text([GOOD]).encode()
    (tmp_path / "log.csv").write_bytes(csv_text([HEADER]).encode() + good + good.replace(b"T01", b"T\xff1") + good)
    done = run_example("permits.py", "log.csv", "--json")

    assert report_of(done, code=1)["events"] == 2
    assert done.stderr.startswith("line 3 is left out: it is not UTF-8\n")


def test_what_stands_in_the_file_cannot_command_the_terminal(run_example: Run, tmp_path: Path) -> None:
    evil = "\x1b[2J[bold]\x07:smile:"
    log = write_log(
        tmp_path / "log.csv", [cells(evil, evil, evil, WHEN), cells(evil, evil, "", WHEN), cells(evil, "", "", evil)]
    )
    done = run_example("permits.py", log)

    assert done.returncode == 1
    assert r"\x1b[2J[bold]\x07:smile:" in done.stdout
    assert r"no valid timestamp: '\x1b[2J[bold]\x07:smile:'" in done.stderr
    assert not {"\x1b", "\x07"} & {*done.stdout, *done.stderr}


def test_a_file_that_has_changed_is_not_mixed_with_what_it_was(run_example: Run, tmp_path: Path) -> None:
    rows = make_rows(50, cases=5, seed=5)
    run_example("permits.py", write_log(tmp_path / "log.csv", rows))
    stored = stored_rows(tmp_path / "permits.db")
    done = run_example("permits.py", write_log(tmp_path / "log.csv", rows[1:]))

    assert done.returncode == 2
    assert "another row from this line: the file has changed, use a new store" in done.stderr
    assert stored_rows(tmp_path / "permits.db") == stored


def test_a_row_that_was_mended_too_late_is_named_not_forgotten(run_example: Run, tmp_path: Path) -> None:
    run_example("permits.py", write_log(tmp_path / "log.csv", [GOOD, GOOD[:-1], GOOD]))
    done = run_example("permits.py", write_log(tmp_path / "log.csv", [GOOD, GOOD, GOOD]))

    assert done.returncode == 1
    assert done.stderr.startswith("line 3 is left out: case 'case-1' has later rows already")


# A file or a store that cannot be used


USELESS = [
    (b"", "its header lacks case:concept:name, concept:name"),
    (b"\n", "its header lacks case:concept:name"),
    (b"a,b\n1,2\n", "its header lacks case:concept:name"),
    (",".join(name for name in HEADER if name != "org:resource").encode(), "its header lacks org:resource"),
    (",".join([*HEADER, HEADER[0]]).encode(), "its header has a column twice"),
    (",".join(HEADER).encode("utf-16"), "it is not UTF-8 text"),
    (b"SQLite format 3\0" + bytes(range(256)) * 100, "it is not UTF-8 text"),
    (b"\x7fELF\xff\xfe", "it is not UTF-8 text"),
    (b"x" * 3_000_000, "line 1 has more than 1,048,576 bytes"),
    (b'"' + b"x" * 500_000, "its header is no CSV: field larger than field limit"),
]


def test_a_file_that_is_no_event_log_is_refused(run_code: Run, tmp_path: Path) -> None:
    for number, (content, _) in enumerate(USELESS):
        (tmp_path / f"{number}.csv").write_bytes(content)
    # In one process, because starting it takes longer than all the rest.
    code = f"""
import sys, permits
for number in range({len(USELESS)}):
    sys.argv = ["permits.py", f"{{number}}.csv"]
    assert permits.main() == 2
"""
    done = run_code(code)

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    messages = done.stderr.splitlines()
    for number, (message, (_, problem)) in enumerate(zip(messages, USELESS, strict=True)):
        assert message.startswith(f"{number}.csv cannot be used: {problem}")
    assert not (tmp_path / "permits.db").exists()


def test_a_file_that_cannot_be_opened_is_refused(run_example: Run, tmp_path: Path) -> None:
    missing, folder = run_example("permits.py", "missing.csv"), run_example("permits.py", tmp_path)

    assert (missing.returncode, folder.returncode) == (2, 2)
    assert missing.stderr == "missing.csv cannot be used: No such file or directory\n"
    assert folder.stderr == f"{tmp_path} cannot be used: Is a directory\n"
    assert not (tmp_path / "permits.db").exists()


def test_a_header_with_a_byte_order_mark_and_windows_lines_is_one(run_example: Run, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", [GOOD, GOOD])
    log.write_bytes(b"\xef\xbb\xbf" + log.read_bytes().replace(b"\n", b"\r\n"))

    assert report_of(run_example("permits.py", log, "--json"))["events"] == 2


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite:///nowhere/permits.db", "does not exist"),
        ("sqlite:///log.csv", "SQLite"),
        ("permits.db", "a store URL starts with its scheme"),
        ("carrier-pigeon://loft", "no backend is installed"),
    ],
)
def test_a_store_that_cannot_be_used_is_another_error(run_example: Run, log: Path, url: str, problem: str) -> None:
    before = log.read_bytes()
    done = run_example("permits.py", log, "--store", url)

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("The store failed: ")
    assert problem in done.stderr
    assert log.read_bytes() == before


def test_a_store_that_fails_half_way_is_an_error_and_can_be_continued(run_example: Run, tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", make_rows(2000, cases=200, seed=6))
    url = "sqlite:///permits.db?busy_timeout=0.2"
    with subprocess.Popen(
        command_of("permits.py", log, "--store", url), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_events(tmp_path / "permits.db", 100, process)
        with closing(sqlite3.connect(tmp_path / "permits.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            _, errors = process.communicate(timeout=120)
            other.execute("ROLLBACK")
    assert process.returncode == 3
    assert errors.startswith("The store failed: another process")

    assert report_of(run_example("permits.py", log, "--json")) == expected_report(log)


def test_a_reader_that_has_seen_enough_is_no_error(log: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command_of("permits.py", log), cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (0, "600 rows taken in, 0 known already, 0 left out\n")


def test_progress_is_shown_on_a_terminal_alone(run_example: Run, log: Path, tmp_path: Path) -> None:
    assert "taking in" not in run_example("permits.py", log).stderr

    terminal, other_end = pty.openpty()
    subprocess.run(
        command_of("permits.py", log),
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=other_end,
        check=True,
    )
    os.close(other_end)
    shown = b""
    try:
        while data := os.read(terminal, 65536):
            shown += data
    except OSError:
        pass  # The other end is closed, and all is read.
    os.close(terminal)
    assert b"taking in" in shown
    assert b"100%" in shown


def csv_text(rows: list[Cells]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
