"""What a journal holds besides events and states, as it is stored, and in numbers."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class StreamInfo(NamedTuple):
    """A stream, its version, the version up to which its events were removed, and whose it is."""

    stream_id: str
    version: int
    truncated: int
    tenant: str = ""


class CheckpointKey(NamedTuple):
    """Names a checkpoint as somebody has seen it: once it has another revision, it is another one."""

    name: str
    version: int
    revision: int


class StoredCheckpoint(NamedTuple):
    """How far a projection has come through the log, in one version of its read model. Each tenant has its own.

    `events` counts what it has applied, and `checksum` (16 bytes) is the exclusive or of their ids. `state` is JSON in
    UTF-8. `revision` counts the changes, from 1.
    """

    name: str
    version: int
    revision: int
    position: int
    events: int
    checksum: bytes
    state: bytes

    @property
    def key(self) -> CheckpointKey:
        """Names it with the revision that it has."""
        return CheckpointKey(self.name, self.version, self.revision)


class Removal(NamedTuple):
    """One truncation, as it was recorded in the step that removed the events.

    `number` rises from each to the next, with holes. Up to version `through` nothing is left of the stream; `removed`
    events went this time.
    """

    number: int
    stream_id: str
    through: int
    removed: int
    reason: str
    recorded_at: datetime
    tenant: str = ""


class StoredSeal(NamedTuple):
    """A seal over part of the log (docs/tamper-evidence.md). To the backend all but the number is bytes."""

    number: int
    statement: bytes
    signature: bytes
    leaves: bytes
    removals: bytes


class Statistics(NamedTuple):
    """Counts for `eventstore doctor`, of the whole journal.

    `last_position` is the last that was given to an event, visible or not; `read_all` tells how far the log is settled.
    """

    streams: int
    events: int
    snapshots: int
    last_position: int
    size_bytes: int
