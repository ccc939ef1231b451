"""Events as CSV, and as the columns that a spreadsheet and a Parquet file have."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping
from io import StringIO, TextIOWrapper
from typing import Any

import orjson

from eventstore.cli.output import flush, timestamp, write
from eventstore.cli.recorded import checked_payload
from eventstore.events import Metadata, RecordedEvent

COLUMNS = (
    "position", "recorded_at", "tenant", "stream_id", "version", "type", "schema_version", "user", "correlation_id",
    "causation_id", "command_id", "tags", "values", "event_id", "batch_id", "epoch", "origin", "payload",
)  # fmt: skip

# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NOTHING = Metadata()


class CsvRows:
    """Rows of CSV with a header, in UTF-8. A text that a spreadsheet would run as a formula has a quote in front."""

    def __init__(self) -> None:
        self._has_header = False

    def add(self, row: RecordedEvent) -> None:
        if not self._has_header:
            self._begin()
        cells = cells_of(row)
        tags = orjson.dumps(cells["tags"]).decode() if cells["tags"] else None
        self._write({**cells, "recorded_at": timestamp(row.recorded_at), "tags": tags}.values())

    def flush(self) -> None:
        if not self._has_header:
            self._begin()
        flush()

    def _begin(self) -> None:
        self._has_header = True
        stream: object = sys.stdout
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", newline="")
        self._write(COLUMNS)

    def _write(self, cells: Iterable[Any]) -> None:
        line = StringIO(newline="")
        csv.writer(line).writerow([_safe(cell) for cell in cells])
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


def _safe(cell: str | int | None) -> str | int:
    match cell:
        case None:
            return ""
        case str() if cell.startswith(_FORMULA):
            return f"'{cell}"
        case _:
            return cell
