"""Recorded events as rows: of one stream, and of the whole log."""

from __future__ import annotations

from typing import Any

from eventstore.cli.escaping import escaped, of_tenant
from eventstore.cli.output import View, json_cell, json_fragment, timestamp
from eventstore.errors import JournalCorrupt
from eventstore.events import RecordedEvent


def event_record(recorded: RecordedEvent) -> dict[str, Any]:
    """An event as an object. Raises `JournalCorrupt` if its payload is no JSON."""
    metadata = _metadata(recorded)
    return {
        "stream_id": recorded.stream_id,
        "version": recorded.version,
        "position": recorded.position,
        "recorded_at": timestamp(recorded.recorded_at),
        "type": recorded.type,
        "schema_version": recorded.schema_version,
        "payload": json_fragment(checked_payload(recorded)),
        "metadata": json_fragment(metadata) if metadata else None,
        "event_id": str(recorded.event_id),
        "batch_id": str(recorded.batch_id),
        "tenant": recorded.tenant,
    }


def checked_payload(recorded: RecordedEvent) -> bytes:
    """The payload as stored. Raises `JournalCorrupt` if it is no JSON any more."""
    try:
        recorded.json()
    except ValueError as error:
        raise JournalCorrupt(
            f"the event at version {recorded.version} is damaged: its payload is no JSON ({error})",
            stream_id=recorded.stream_id,
            version=recorded.version,
        ) from error
    return recorded.payload


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
        of_tenant(recorded.stream_id, recorded.tenant),
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


_EVENT = ("TYPE", "PAYLOAD", "METADATA")
_NUMBERS = frozenset({"POSITION", "VERSION"})

STREAM_EVENTS = View(("VERSION", "POSITION", "TIME", *_EVENT), _of_stream, event_record, 4, _NUMBERS)
LOG_EVENTS = View(("POSITION", "TIME", "STREAM", "VERSION", *_EVENT), _of_log, event_record, 5, _NUMBERS)
