"""The history that `examples/permits.py` has stored, read by code that has changed three times since."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from eventstore import EventStore
from tests.examples.permit_log import make_rows, write_log

ROOT = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "project"

Program = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Runs a program in a process of its own, and gives what it printed."""

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The real event log if PERMIT_LOG names it, else one with all that it has."""
    if named := os.environ.get("PERMIT_LOG"):
        return Path(named).absolute()
    return write_log(tmp_path / "log.csv", make_rows(300, cases=25, seed=11))


@pytest.fixture(params=["sqlite", "postgres", "redis", "memory"])
def history(request: pytest.FixtureRequest, log: Path, program: Program, tmp_path: Path) -> list[str]:
    """A journal that the example has filled: its URL, and for memory another from which it is to be put there."""
    match request.param:
        case "sqlite" | "memory":
            url = f"sqlite:///{tmp_path}/permits.db"
        case server:
            url = request.getfixturevalue(f"{server}_url")
    program(ROOT / "examples" / "permits.py", log, "--store", url)
    return [url] if request.param != "memory" else ["memory://", url]


def expected(log: Path) -> dict[str, Any]:
    """What the file says, by the plainest means."""
    cases: dict[str, Any] = {}
    lines = 1
    with log.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader)
        before = reader.line_num
        for cells in reader:
            row = dict(zip(header, cells, strict=True))
            lines, before = before + 1, reader.line_num
            case = cases.setdefault(row["case:concept:name"], {"done": [], "handled": []})
            at = round(datetime.fromisoformat(row["time:timestamp"]).timestamp() * 1000)
            case["done"].append([lines, row["concept:name"], at])
            case["handled"].append([lines, row["org:resource"]])
    return cases


def test_every_way_of_reading_finds_what_the_file_says(history: list[str], log: Path, program: Program) -> None:
    found = json.loads(program("read_everywhere.py", *history))
    wanted = expected(log)

    assert {how: of == wanted for how, of in found.items()} == dict.fromkeys(found, True)
    assert len(found) == 8


def test_the_command_line_reads_it_too_and_changes_nothing(tmp_path: Path, log: Path, program: Program) -> None:
    url = f"sqlite:///{tmp_path}/permits.db"
    program(ROOT / "examples" / "permits.py", log, "--store", url)
    before = asyncio.run(stored(url))
    cli = ("-m", "eventstore.cli")

    program(*cli, "rebuild", "snapshots", url, "permits_today:PermitCase", "--all")
    shown = {
        key: json.loads(program(*cli, "show", url, "permits_today:PermitCase", key, "--json"))["state"]
        for key in list(expected(log))[:2]
    }
    assert shown == {key: expected(log)[key] for key in shown}
    case, wanted = next(iter(expected(log).items()))
    query = (*cli, "audit", "query", url, "--stream", f"permit-{case}", "--decode", "permits_today", "--json")
    decoded = [json.loads(line) for line in program(*query).splitlines()]
    steps, handled = (
        [one["payload"] for one in decoded if one["type"] == name] for name in ("permit.step-done", "permit.handled-by")
    )
    assert [[one["line"], one["step"], one["at"]] for one in steps] == wanted["done"]
    assert [one["resource"] for one in handled] == [resource for _, resource in wanted["handled"]]
    assert "no differences" in program(*cli, "replay", url, "permits_today:PermitCase")
    assert asyncio.run(stored(url)) == before


async def stored(url: str) -> list[tuple[str, int, str, int, bytes]]:
    async with EventStore.open(url) as store:
        return [(r.stream_id, r.version, r.type, r.schema_version, r.payload) async for r in store.read_all()]
