"""What the permit log and the file of the journal say, by the plainest means: `csv`, `json` and `sqlite3`."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

Row = dict[str, str]


class PermitLog:
    """The CSV. `cases` has the rows of each case, in the order of the file."""

    def __init__(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))
        self.cases: dict[str, list[Row]] = {}
        for row in self.rows:
            self.cases.setdefault(row["case:concept:name"], []).append(row)

    def progress(self, case: str, steps: int | None = None, *, adjusting: tuple[str, ...] = ("T03",)) -> dict[str, Any]:
        """What the page's `Permit` knows of a case after so many steps."""
        rows = self.cases[case][:steps]
        return {
            "steps": len(rows),
            "activity": rows[-1]["concept:name"] if rows else "",
            "resource": rows[-1]["org:resource"] if rows else "",
            "handovers": sum(one["org:resource"] != other["org:resource"] for one, other in pairwise(rows)),
            "adjusted": sum(row["concept:name"][:3] in adjusting for row in rows),
        }

    def handovers(self) -> int:
        """How often a case went from one resource to another."""
        return sum(self.progress(case)["handovers"] for case in self.cases)


class JournalFile:
    """A journal's SQLite file, read by plain SQL."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(sql, values).fetchall()

    def value(self, sql: str, *values: Any) -> Any:
        return self.rows(sql, *values)[0][0]

    def events(self, where: str = "1 = 1", *values: Any) -> list[dict[str, Any]]:
        """Events in the order of the log, with all that is stored of them."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            found = connection.execute(
                f"""SELECT e.*, s.stream_id, s.tenant, s.kind
                FROM journal_events e JOIN journal_streams s ON s.id = e.stream WHERE {where} ORDER BY e.position""",
                values,
            ).fetchall()
        return [dict(row) for row in found]

    def stream(self, stream_id: str) -> list[dict[str, Any]]:
        return self.events("s.stream_id = ?", stream_id)


def moment(microseconds: int) -> str:
    """A stored time as it is shown."""
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
    return f"{time:%Y-%m-%dT%H:%M:%S.%f}Z"


def user_of(event: dict[str, Any]) -> str:
    return json.loads(event["metadata"] or "{}").get("user", "")


def table(answer: str) -> list[list[str]]:
    return [line.split("\t") for line in answer.splitlines()]


def fields(answer: str) -> dict[str, str]:
    """Lines of a name and what it is, with room between them."""
    pairs = [line.split("  ", 1) for line in answer.splitlines() if "  " in line]
    return {name: value.strip() for name, value in pairs}


def option(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1]


def shown_uuid(data: bytes) -> str:
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
