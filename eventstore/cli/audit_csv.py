"""Events as CSV, and as the columns that a spreadsheet and a Parquet file have."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from io import StringIO, TextIOWrapper
from typing import Any

import orjson

from eventstore.cli.escaping import escaped, printable_json
from eventstore.cli.output import flush, timestamp, write
from eventstore.cli.recorded import checked_payload
from eventstore.events import Metadata, RecordedEvent

COLUMNS = (
    "position", "recorded_at", "tenant", "stream_id", "version", "type", "schema_version", "user", "correlation_id",
    "causation_id", "command_id", "tags", "values", "event_id", "batch_id", "epoch", "origin", "payload",
)  # fmt: skip

_JSON = frozenset({"tags", "values", "payload"})

# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NOTHING = Metadata()


class CsvRows:
    """Rows of CSV with a header, in UTF-8. A text that a spreadsheet would run as a formula has a quote in front.

    A file or a pipe gets every character as it is stored; on a terminal those are escaped that could command it.
    """

    def __init__(self) -> None:
        self._has_header = False
        self._is_shown = sys.stdout.isatty()

    def add(self, row: RecordedEvent) -> None:
        if not self._has_header:
            self._begin()
        cells = cells_of(row)
        tags = orjson.dumps(cells["tags"]).decode() if cells["tags"] else None
        self._write({**cells, "recorded_at": timestamp(row.recorded_at), "tags": tags})

    def flush(self) -> None:
        if not self._has_header:
            self._begin()
        flush()

    def _begin(self) -> None:
        self._has_header = True
        stream: object = sys.stdout
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", newline="")
        self._write({column: column for column in COLUMNS})

    def _write(self, cells: Mapping[str, Any]) -> None:
        shown = ((name, _printable(name, cell)) for name, cell in cells.items()) if self._is_shown else cells.items()
        line = StringIO(newline="")
        csv.writer(line, lineterminator="\n" if self._is_shown else "\r\n").writerow([_safe(cell) for _, cell in shown])
        write(line.getvalue())


def cells_of(row: RecordedEvent) -> Mapping[str, Any]:
    """What stands in each of the columns, in their order."""
    metadata = row.metadata or _NOTHING
    cells = (
        row.position,
        row.recorded_at,
        row.tenant,
        row.stream_id,
        row.version,
        row.type,
        row.schema_version,
        metadata.user,
        metadata.correlation_id,
        metadata.causation_id,
        metadata.command_id,
        metadata.tags,
        _values_json(metadata),
        str(row.event_id),
        str(row.batch_id),
        row.epoch,
        row.origin,
        checked_payload(row).decode(),
    )
    return dict(zip(COLUMNS, cells, strict=True))


def _values_json(metadata: Metadata) -> str | None:
    """The application's own metadata as JSON."""
    if not metadata.values:
        return None
    return metadata.model_dump_json(include={"values"})[len('{"values":') : -1]


def _printable(column: str, cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    return printable_json(cell) if column in _JSON else escaped(cell)


def _safe(cell: str | int | None) -> str | int:
    match cell:
        case None:
            return ""
        case str() if cell.startswith(_FORMULA):
            return f"'{cell}"
        case _:
            return cell
