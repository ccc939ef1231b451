"""Recorded events as rows: of one stream, and of the whole log."""

from __future__ import annotations

from typing import Any

from eventstore.cli.escaping import escaped
from eventstore.cli.output import View, json_cell, json_fragment, timestamp
from eventstore.events import RecordedEvent


def _record(recorded: RecordedEvent) -> dict[str, Any]:
    metadata = _metadata(recorded)
    return {
        "stream_id": recorded.stream_id,
        "version": recorded.version,
        "position": recorded.position,
        "recorded_at": timestamp(recorded.recorded_at),
        "type": recorded.type,
        "schema_version": recorded.schema_version,
        "payload": json_fragment(recorded.payload),
        "metadata": json_fragment(metadata) if metadata else None,
        "event_id": str(recorded.event_id),
        "batch_id": str(recorded.batch_id),
    }


def _of_stream(recorded: RecordedEvent) -> tuple[str, ...]:
    return (
        str(recorded.version),
        str(recorded.position),
        timestamp(recorded.recorded_at),
        escaped(recorded.type),
        json_cell(recorded.payload),
        json_cell(_metadata(recorded)),
    )


def _of_log(recorded: RecordedEvent) -> tuple[str, ...]:
    return (
        str(recorded.position),
        timestamp(recorded.recorded_at),
        escaped(recorded.stream_id),
        str(recorded.version),
        escaped(recorded.type),
        json_cell(recorded.payload),
        json_cell(_metadata(recorded)),
    )


def _metadata(recorded: RecordedEvent) -> bytes:
    """The metadata that is set, as JSON; nothing if there is none."""
    if recorded.metadata is None:
        return b""
    return recorded.metadata.model_dump_json(exclude_defaults=True).encode()


_NUMBERS = frozenset({"POSITION", "VERSION"})

STREAM_EVENTS = View(("VERSION", "POSITION", "TIME", "TYPE", "PAYLOAD", "METADATA"), _of_stream, _record, _NUMBERS)
LOG_EVENTS = View(("POSITION", "TIME", "STREAM", "VERSION", "TYPE", "PAYLOAD", "METADATA"), _of_log, _record, _NUMBERS)
