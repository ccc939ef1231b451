"""Event logs for the tests of `examples/permits.py`, and what their reports must say, counted straight from the CSV."""

from __future__ import annotations

import csv
import os
import random
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

HEADER = [
    "case:channel",
    "case:concept:name",
    "case:group",
    "concept:instance",
    "concept:name",
    "lifecycle:transition",
    "org:group",
    "org:resource",
    "time:timestamp",
]
CASE, ACTIVITY, RESOURCE, TIME = 1, 4, 7, 8

Cells = list[str]


def cells(case: str, activity: str, resource: str, time: str, note: str = "") -> Cells:
    return ["Internet", case, note, "task-1", activity, "complete", "Group 1", resource, time]


def make_rows(count: int, *, cases: int, seed: int) -> list[Cells]:
    """Rows with all that real logs have: no order of time, cases mixed, equal rows, quotes, newlines, any letters."""
    rng = random.Random(seed)
    activities = [f"T{number:02d} step, {number}" for number in range(15)]
    resources = [f"Resource{number:02d}" for number in range(9)] + ["", "Zoë Ω", "[bold]admin[/bold]"]
    notes = ["", "plain", 'with "quotes", and a comma', "two\nlines", "three\r\n\nlines"]
    rows: list[Cells] = []
    for _ in range(count):
        if rows and rng.random() < 0.03:
            rows.append(list(rng.choice(rows)))  # Entirely equal to an earlier one.
            continue
        offset = timezone(timedelta(minutes=rng.choice([-300, 0, 60, 120, 345])))
        moment = datetime(2011, 1, 1, tzinfo=UTC) + timedelta(
            days=rng.randrange(300), microseconds=rng.choice([0, 1, 788000])
        )
        time = moment.astimezone(offset).isoformat(sep=rng.choice("T "))
        case = f"case-{rng.randrange(cases)}"
        rows.append(cells(case, rng.choice(activities), rng.choice(resources), time, rng.choice(notes)))
    return rows


def write_log(path: Path, rows: list[Cells]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows)
    return path


def permit_log(folder: Path, count: int, *, cases: int, seed: int) -> Path:
    """The real event log if PERMIT_LOG names it, else one with all that it has."""
    if named := os.environ.get("PERMIT_LOG"):
        return Path(named).absolute()
    return write_log(folder / "log.csv", make_rows(count, cases=cases, seed=seed))


def expected_report(path: Path) -> dict[str, Any]:
    """The report on a log without malformed rows, by the plainest means: all of it in memory, sorted and counted."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        cases.setdefault(row["case:concept:name"], []).append(row)
    times = {
        case: sorted(datetime.fromisoformat(row["time:timestamp"]) for row in found) for case, found in cases.items()
    }
    seconds = {case: (found[-1] - found[0]).total_seconds() for case, found in times.items()}
    handovers = Counter(
        (one["org:resource"], other["org:resource"])
        for found in cases.values()
        for one, other in pairwise(found)
        if one["org:resource"] != other["org:resource"]
    )
    activities = Counter(row["concept:name"] for row in rows)
    return {
        "cases": len(cases),
        "events": len(rows),
        "activities": [{"activity": name, "events": n} for name, n in most(activities)],
        "longest_cases": [{"case": case, "seconds": n} for case, n in most(seconds)],
        "handovers": {
            "total": sum(handovers.values()),
            "pairs": [{"from": one, "to": other, "count": n} for (one, other), n in most(handovers)],
        },
    }


def most(numbers: dict[Any, Any]) -> list[tuple[Any, Any]]:
    return sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[:10]
