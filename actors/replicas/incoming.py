"""Events of another replica as they come: which of them are new here, and how they are stored."""

from __future__ import annotations

from collections.abc import Sequence

from actors.replicas.convergence import History
from actors.replicas.replicated_recovery import stamp_of
from eventstore.backend import EncodedEvent
from eventstore.codec import checksum_of, encode_metadata
from eventstore.errors import ReplicaRefused, ReplicationError
from eventstore.events import RecordedEvent
from eventstore.stamp import Stamp


class Gap(ReplicationError):
    """An event came before those it was written after. Nothing was lost: they will be fetched first."""


def new_events(
    events: Sequence[RecordedEvent], history: History, *, own: str, stream_id: str
) -> list[tuple[RecordedEvent, Stamp]]:
    """Those that are not in the history of their stream, with their stamps. `own` is this replica.

    Raises `Gap`; and `ReplicaRefused` for a replica, this one included, that others know another way.
    """
    known = history.clock
    new: list[tuple[RecordedEvent, Stamp]] = []
    for recorded in events:
        stamp = stamp_of(recorded)
        origin, sequence, clock, _ = stamp
        if sequence <= known[origin]:
            held = history.find(origin, sequence)
            if held is not None and held.event_id != recorded.event_id.bytes:
                raise ReplicaRefused(origin, f"it wrote two different events as its event {sequence} of {stream_id!r}")
        elif origin == own:
            raise ReplicaRefused(
                own,
                f"others have its event {sequence} of {stream_id!r}, and its own journal ends at event "
                f"{known[own]}: that is an older copy",
            )
        elif sequence == known[origin] + 1 and known.incremented(origin).covers(clock):
            known = known.incremented(origin)
            new.append((recorded, stamp))
        else:
            raise Gap(
                f"{stream_id!r}: event {sequence} of {origin!r} was written after {clock}, and only {known} is here"
            )
    return new


def as_stored(recorded: RecordedEvent, stamp: Stamp, *, concurrent: bool) -> EncodedEvent:
    """An event of another replica as it is stored here: the same, and whether it met something it did not know."""
    metadata = encode_metadata(recorded.metadata)
    type_, schema_version, payload = recorded.type, recorded.schema_version, recorded.payload
    return EncodedEvent(
        recorded.event_id.bytes,
        type_,
        schema_version,
        payload,
        metadata,
        recorded.batch_id.bytes,
        checksum_of(type_, schema_version, payload, metadata),
        stamp.fields(concurrent=concurrent),
    )
