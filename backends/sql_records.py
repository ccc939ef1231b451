"""A row of a SQL database's journal as a record."""

from __future__ import annotations

from backends.records import batch_uuid_of, time_of, uuid_of
from eventstore.codec import damaged, decode_metadata, verify_checksum
from eventstore.events import RecordedEvent


def recorded(
    position: int,
    stream_id: str,
    version: int,
    type_: str,
    schema_version: int,
    payload: str,
    metadata: str | None,
    event_id: bytes,
    batch_id: bytes | None,
    epoch: int,
    recorded_at: int,
    checksum: int,
    tenant: str,
    origin: str | None,
    origin_sequence: int | None,
    clock: str | None,
    concurrent: bool | int | None,
) -> RecordedEvent:
    """The record of a row. Raises `JournalCorrupt`, which names the event, for one that is damaged."""
    try:
        stored = payload.encode()
        notes = None if metadata is None else metadata.encode()
        verify_checksum(checksum, type_, schema_version, stored, notes)
        return RecordedEvent(
            position,
            stream_id,
            version,
            type_,
            schema_version,
            stored,
            decode_metadata(metadata),
            (own := uuid_of(event_id)),
            # Only the first event of a batch has none: it names the batch.
            own if batch_id is None else batch_uuid_of(batch_id),
            epoch,
            time_of(recorded_at),
            checksum,
            tenant,
            origin,
            origin_sequence,
            None if clock is None else clock.encode(),
            bool(concurrent),
            notes,
        )
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise damaged(error, stream_id=stream_id, version=version, position=position, tenant=tenant) from error
