"""What is to be stored, and what must be true of the streams for it to be stored."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from eventstore.errors import ConcurrencyError, FencedError


class Expected(IntEnum):
    """Expectations about a stream's version that are not one number."""

    ANY = -1
    STREAM_EXISTS = -2
    NO_STREAM = 0


class ReplicaFields(NamedTuple):
    """What a replicated event is stored with, as in `RecordedEvent`. `clock` is JSON in UTF-8."""

    origin: str
    origin_sequence: int
    clock: bytes
    concurrent: bool


class EncodedEvent(NamedTuple):
    """One event on its way into the journal. `payload` and `metadata` are JSON in UTF-8.

    Ids are the 16 bytes of a UUID. `batch_id` is the id of the first event of the command or append it belongs to.
    `checksum` (`codec.checksum_of`) is 0 or more and below 2**63; it is stored as it is given. So is `replica`, which
    only the events of replicated actors have.
    """

    event_id: bytes
    type: str
    schema_version: int
    payload: bytes
    metadata: bytes | None
    batch_id: bytes
    checksum: int
    replica: ReplicaFields | None = None


class CommandOutcome(NamedTuple):
    """What a command with an id came to, stored in the same commit as its events. `payload` is JSON in UTF-8.

    `fingerprint` (16 bytes) tells the command from others that are sent under its id. `outcome_id` (16 bytes) is this
    one execution's own, so that the identical append, sent again, is told from another execution of the command.
    `issued_at` is the time that a UUIDv7 carries, in milliseconds since 1970; 0 for an id that tells no time.
    """

    command_id: str
    fingerprint: bytes
    outcome_id: bytes
    is_rejection: bool
    payload: bytes
    issued_at: int = 0


class StreamWrite(NamedTuple):
    """Events for one stream, in order, and what must be true of the stream for them to be stored.

    `expected` is the version the stream must have, or an `Expected`. With an `epoch`, the write is refused
    (`FencedError`) once a newer epoch has been claimed; without one, ownership is not checked.
    `commands` are outcomes to remember; a write may consist of them alone. One whose id the stream remembers already
    refuses the batch (`DuplicateCommand`), one older than what the stream has forgotten too (`CommandForgotten`).
    """

    stream_id: str
    expected: int
    events: Sequence[EncodedEvent]
    epoch: int | None = None
    commands: Sequence[CommandOutcome] = ()


Batch = Sequence[StreamWrite]
"""Writes that are stored together or not at all. A stream may occur more than once: the writes follow each other."""


def refusal(write: StreamWrite, version: int, epoch: int) -> ConcurrencyError | FencedError | None:
    """Why a write cannot go into a stream that is at a version and a claimed epoch, or None if it can."""
    if write.epoch is not None and write.epoch < epoch:
        return FencedError(write.stream_id, write.epoch, epoch)
    match write.expected:
        case Expected.ANY:
            return None
        case Expected.STREAM_EXISTS:
            return None if version > 0 else ConcurrencyError(write.stream_id, "STREAM_EXISTS", version)
        case expected:
            return None if version == expected else ConcurrencyError(write.stream_id, expected, version)
