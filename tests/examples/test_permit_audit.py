"""What an audit says of a real journal is what the event log says that it was made of."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from eventstore import EventFilter, EventStore
from eventstore.audit import AuditQuery, find, totals
from eventstore.contract.json_condition import JsonCondition, Operator

from .conftest import Run
from .permit_log import permit_log

Row = dict[str, str]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return permit_log(tmp_path, 1200, cases=90, seed=7)


async def test_what_an_audit_finds_and_counts_is_what_the_log_says(run_example: Run, url: str, log: Path) -> None:
    assert run_example("permits.py", log, "--store", url).returncode == 0
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    activity = Counter(row["concept:name"] for row in rows).most_common(1)[0][0]
    resource = Counter(row["org:resource"] for row in rows).most_common(4)[3][0]
    case, times = rows[7]["case:concept:name"], sorted(row["time:timestamp"] for row in rows)
    middle = times[len(times) // 2]

    def at(pointer: tuple[str, ...], operator: Operator, value: str) -> AuditQuery:
        return AuditQuery(payload=(JsonCondition(("row", *pointer), operator, value),))

    questions: list[tuple[AuditQuery, Callable[[Row], bool]]] = [
        (AuditQuery(EventFilter(kinds=("permit",))), lambda row: True),
        (AuditQuery(EventFilter(stream_ids=(f"permit-{case}",))), lambda row: row["case:concept:name"] == case),
        (at(("activity",), Operator.EQUAL, activity), lambda row: row["concept:name"] == activity),
        (at(("activity",), Operator.UNEQUAL, activity), lambda row: row["concept:name"] != activity),
        (at(("resource",), Operator.EQUAL, resource), lambda row: row["org:resource"] == resource),
        (at(("resource",), Operator.CONTAINS, "ource0"), lambda row: "ource0" in row["org:resource"]),
        (at(("time",), Operator.GREATER_OR_EQUAL, middle), lambda row: row["time:timestamp"] >= middle),
        (at(("data", "org:group"), Operator.LESS, "Group 3"), lambda row: row["org:group"] < "Group 3"),
        (
            AuditQuery(
                EventFilter(kinds=("permit",)),
                payload=(
                    JsonCondition.parse(f'/row/activity="{activity}"'),
                    JsonCondition.parse(f"/row/time<{middle}"),
                ),
            ),
            lambda row: row["concept:name"] == activity and row["time:timestamp"] < middle,
        ),
        (at(("activity",), Operator.EQUAL, "no such thing"), lambda row: False),
    ]
    async with EventStore.open(url, create=False) as store:
        for query, is_wanted in questions:
            found: Counter[tuple[str, ...]] = Counter()
            async for recorded in find(store, query):
                stored = recorded.json()["row"]
                case_id = recorded.stream_id.removeprefix("permit-")
                found[case_id, stored["activity"], stored["time"], stored["resource"]] += 1
            names = ("case:concept:name", "concept:name", "time:timestamp", "org:resource")
            assert found == Counter(tuple(row[name] for name in names) for row in rows if is_wanted(row)), query
        everything = await totals(store, AuditQuery(EventFilter(kinds=("permit",))), top=5)
    cases = Counter(f"permit-{row['case:concept:name']}" for row in rows)
    assert everything.events == len(rows)
    assert [tuple(count) for count in everything.streams] == sorted(
        cases.items(), key=lambda item: (-item[1], item[0])
    )[:5]
