"""The command line: `python -m benchmarks [ROW…]`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import asks, audit, commits, growth, memory, order, projections, replay, report, transfers, trust
from benchmarks.harness import Plan, Ratio, progress

# By their numbers in the table of goals, with the database where there are several; rows 14 and 16 are to come.
ROWS: dict[str, Callable[[Plan], Awaitable[list[Ratio]]]] = {
    "1": commits.on_sqlite,
    "2": commits.one_actor,
    "3": commits.one_hot_actor,
    "4": commits.on_postgres,
    "5": commits.on_redis,
    "6-sqlite": commits.peer_on_sqlite,
    "6-postgres": commits.peer_on_postgres,
    "7-sqlite": commits.latency_on_sqlite,
    "7-postgres": commits.latency_on_postgres,
    "7-redis": commits.latency_on_redis,
    "8": order.against_plain_inserts,
    "9-sqlite": replay.rows_on_sqlite,
    "9-postgres": replay.rows_on_postgres,
    "9-redis": replay.rows_on_redis,
    "10-sqlite": replay.peer_on_sqlite,
    "10-postgres": replay.peer_on_postgres,
    "11": asks.idle,
    "12": asks.mailbox,
    "13": memory.idle_actor,
    "15": growth.journal_size,
    "17-sqlite": trust.owned_on_sqlite,
    "17-postgres": trust.owned_on_postgres,
    "18-sqlite": trust.remembered_on_sqlite,
    "18-postgres": trust.remembered_on_postgres,
    "19-sqlite": transfers.on_sqlite,
    "19-postgres": transfers.on_postgres,
    "19-redis": transfers.on_redis,
    "20-sqlite": projections.delivery_on_sqlite,
    "20-postgres": projections.delivery_on_postgres,
    "21-sqlite": projections.read_model_on_sqlite,
    "21-postgres": projections.read_model_on_postgres,
    "23-sqlite": audit.on_sqlite,
    "23-postgres": audit.on_postgres,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and print the ratios.")
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"which ratios: {', '.join(ROWS)}; 6 is both of 6 (default: all)"
    )
    parser.add_argument("--rounds", type=int, help="rounds of each side (7; 3 with --quick)")
    parser.add_argument("--seconds", type=float, help="length of one side of one round (0.8; 0.25 with --quick)")
    parser.add_argument("--directory", type=Path, help="where the files are made; its disk is what is measured")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="rewrite the table in docs/performance.md")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about two minutes: to see that it runs")
    size.add_argument(
        "--long", action="store_true", help="row 15 with a journal of 10^7 events, row 23 with one of 10^6"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.rows if not _chosen([name])]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if given.write and given.rows:
        parser.error("--write needs all rows: a table is from one run")
    with TemporaryDirectory(prefix="eventstore-benchmarks-", dir=given.directory) as name:
        plan = Plan(
            given.rounds or (3 if given.quick else 7),
            given.seconds or (0.25 if given.quick else 0.8),
            Path(name),
            is_quick=given.quick,
            is_long=given.long,
        )
        facts = report.machine(plan)
        ratios = [ratio for row in _chosen(given.rows or ROWS) for ratio in _measured(row, plan)]
    print((report.as_json if given.json else report.as_text)(ratios, facts))
    if given.write:
        report.write(ratios, facts)
        progress(f"wrote {report.DOCUMENT}")


def _chosen(names: Iterable[str]) -> list[str]:
    """The rows that are named: `6-postgres` is one, `6` is that of every database."""
    return [row for name in names for row in ROWS if row == name or row.startswith(f"{name}-")]


def _measured(row: str, plan: Plan) -> list[Ratio]:
    """One row, with an event loop and a directory of its own."""
    progress(f"row {row}")
    with TemporaryDirectory(dir=plan.directory) as name:
        try:
            return asyncio.run(_run(row, plan._replace(directory=Path(name))))
        except ModuleNotFoundError as error:
            if error.name not in {"eventsourcing", "psycopg"}:
                raise
            progress(f"row {row} is left out: {error.name} is not installed")
            return []


async def _run(row: str, plan: Plan) -> list[Ratio]:
    return await ROWS[row](plan)


if __name__ == "__main__":
    sys.exit(main())
