"""Pages of streams and of the log, out of the columns that come of Postgres."""

from __future__ import annotations

from typing import Any

import orjson

from backends.log_columns import LogColumns, optional_texts, rare_of
from backends.page_texts import SEPARATOR, names_of
from backends.records import snapshot_of
from eventstore.backend import NO_EVENTS, EventPage, Load, Loaded
from eventstore.errors import JournalCorrupt


def log_columns(
    tenant: str,
    count: int,
    positions: list[int],
    stream_ids: list[str],
    versions: list[int],
    types: str,
    schema_versions: list[int],
    payloads: str,
    with_metadata: int,
    metadata: str | None,
    event_ids: bytes,
    batch_ids: bytes | None,
    recorded_at: list[int],
    checksums: list[int],
    rare: str | None,
) -> LogColumns:
    """A page as it came. Raises `ValueError` where its texts are not as many as its events."""
    return LogColumns(
        positions,
        stream_ids,
        versions,
        names_of(types, count),
        schema_versions,
        payloads.encode().split(SEPARATOR.encode()),
        None if metadata is None else optional_texts(metadata.encode(), count, with_metadata),
        event_ids,
        batch_ids,
        recorded_at,
        checksums,
        tenant,
        {} if rare is None else rare_of(orjson.loads(rare), positions),
    )


def loaded(
    load: Load,
    head: int,
    truncated: int,
    version: int | None,
    fingerprint: str,
    encoding: str,
    payload: bytes,
    checksum: bytes,
    recorded_at: int,
    epoch: int,
    is_stamped: bool | None,
    *page: Any,
) -> Loaded | JournalCorrupt:
    snapshot = None
    if version is not None:
        snapshot = snapshot_of(load.stream_id, version, fingerprint, encoding, payload, checksum, recorded_at, epoch)
    try:
        events = _events(*page)
        return Loaded(snapshot, events, head, truncated, bool(is_stamped) and len(events) > 0)
    except ValueError:
        return JournalCorrupt(
            f"an event behind version {max(load.after, version or 0)} is damaged: it holds a control character, which "
            "JSON does not; restore it from a copy",
            stream_id=load.stream_id,
        )


def _events(
    count: int,
    first_version: int,
    versions: list[int] | None,
    types: str,
    schema_version: int,
    schema_versions: list[int] | None,
    payloads: str,
    checksums: str,
) -> EventPage:
    """A page that came as strings. Raises `ValueError` if a text in it holds what stands between them."""
    if not count:
        return NO_EVENTS
    joined = payloads.encode()
    return EventPage(
        versions or range(first_version, first_version + count),
        names_of(types, count),
        schema_versions or [schema_version] * count,
        joined.split(SEPARATOR.encode()),
        orjson.loads(f"[{checksums}]"),
        size=len(joined),
    )
