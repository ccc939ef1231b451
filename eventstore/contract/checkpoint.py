"""Checkpoint: how far a projection has come, what it has applied, who runs it, and what it could not apply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

import orjson

from eventstore.contract.journal_facts import CheckpointKey, StoredCheckpoint
from eventstore.errors import JournalCorrupt

NOTHING = bytes(16)

_MOST_MARKS = 64

# Between a projection's name and a partition's number. No name has a character that cannot be printed.
_PARTITION = "\x1f"


def partition_of(stream_id: str, partitions: int) -> int:
    """To which of so many partitions a stream belongs: everywhere and always the same."""
    return crc32(stream_id.encode()) % partitions


def projection_of(stored_name: str) -> str:
    """The projection that a checkpoint is of, whichever partition's."""
    return stored_name.partition(_PARTITION)[0]


def now() -> str:
    """The time for people: nothing rests on it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Status(StrEnum):
    """What a version of a read model is."""

    LIVE = "live"
    BUILDING = "building"


class DeadLetter(NamedTuple):
    """An event that could not be applied, and what was raised at the last attempt."""

    position: int
    stream_id: str
    version: int
    type: str
    error: str
    attempts: int
    parked_at: str
    tenant: str = ""


class Mark(NamedTuple):
    """The sums as they were at a position on the way."""

    position: int
    events: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One version of a projection's read model, or of one partition of it, as it was read. Changes are made of copies,
    and saved."""

    name: str
    version: int
    status: Status = Status.LIVE
    revision: int = 0
    position: int = 0
    events: int = 0
    checksum: bytes = NOTHING
    runner: str = ""
    runner_name: str = ""
    pause: str | None = None
    """Why it is paused; None if it is not."""
    kinds: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    letters: tuple[DeadLetter, ...] = ()
    marks: tuple[Mark, ...] = ()
    updated_at: str = field(default_factory=now)
    partition: int = 0
    partitions: int = 1
    tables: tuple[str, ...] = ()
    """Which tables were made for this version; none where that was before it was noted."""
    made_by: str = ""
    """A fingerprint of the code that this version was begun with."""

    @property
    def stored_name(self) -> str:
        """The name that the database keeps it under: each partition has a checkpoint of its own."""
        return self.name if self.partitions == 1 else f"{self.name}{_PARTITION}{self.partition}"

    @property
    def key(self) -> CheckpointKey:
        """Names it as it was read."""
        return CheckpointKey(self.stored_name, self.version, self.revision)

    def has(self, stream_id: str) -> bool:
        """Whether a stream's events belong to it."""
        return self.partitions == 1 or partition_of(stream_id, self.partitions) == self.partition

    @classmethod
    def of(cls, stored: StoredCheckpoint) -> Checkpoint:
        """A checkpoint out of the database. Raises `JournalCorrupt` if its state is not of this version."""
        stored_name, version, revision, position, events, checksum, state = stored
        name, _, partition = stored_name.partition(_PARTITION)
        try:
            fields = orjson.loads(state)
            return cls(
                name,
                version,
                Status(fields["status"]),
                revision,
                position,
                events,
                checksum,
                fields["runner"],
                fields["runner_name"],
                fields["pause"],
                tuple(fields["kinds"]),
                tuple(fields["tenants"]),
                tuple(DeadLetter(*letter) for letter in fields["letters"]),
                tuple(Mark(at, count, bytes.fromhex(sums)) for at, count, sums in fields["marks"]),
                fields["updated_at"],
                int(partition or 0),
                fields["partitions"],
                tuple(fields.get("tables", ())),
                fields.get("made_by", ""),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise JournalCorrupt(
                f"the checkpoint of projection {name!r} version {version} is damaged: forget it with `eventstore "
                f"projections forget URL {name}`, and rebuild the projection"
            ) from error

    def stored(self) -> StoredCheckpoint:
        """As the database keeps it."""
        state = {
            "status": self.status,
            "runner": self.runner,
            "runner_name": self.runner_name,
            "pause": self.pause,
            "kinds": self.kinds,
            "tenants": self.tenants,
            "partitions": self.partitions,
            "tables": self.tables,
            "made_by": self.made_by,
            "letters": [list(letter) for letter in self.letters],
            "marks": [[mark.position, mark.events, mark.checksum.hex()] for mark in self.marks],
            "updated_at": now(),
        }
        numbers = (self.revision, self.position, self.events, self.checksum)
        return StoredCheckpoint(self.stored_name, self.version, *numbers, orjson.dumps(state))

    def wants(self, tenant: str, kind: str) -> bool:
        """Whether events of a tenant's streams of a kind may be among those that it is given."""
        return (not self.tenants or tenant in self.tenants) and (not self.kinds or kind in self.kinds)

    def saved(self) -> Checkpoint:
        """As it is once it was saved."""
        return replace(self, revision=self.revision + 1)

    def advanced(self, position: int, event_ids: Sequence[UUID]) -> Checkpoint:
        """Behind events that were applied."""
        return self.behind(position, len(event_ids), added(NOTHING, event_ids))

    def behind(self, position: int, count: int, checksum: bytes) -> Checkpoint:
        """The same for so many events, with the exclusive or of their ids."""
        events, checksum = self.events + count, _combined(self.checksum, checksum)
        marks = self.marks
        last = marks[-1].events if marks else 0
        if count and events - last >= max(1, last // _MOST_MARKS):
            # What was looked at long ago is told less finely, so that the number of marks is bounded.
            kept = marks if len(marks) < _MOST_MARKS else (*marks[:-2:2], marks[-1])
            marks = (*kept, Mark(position, events, checksum))
        return replace(self, position=position, events=events, checksum=checksum, marks=marks)


def version_of(found: Iterable[Checkpoint], name: str, status: Status) -> list[Checkpoint]:
    """The checkpoints of a projection's version that is live, or being built: one for each partition, in order."""
    of_status = [one for one in found if one.name == name and one.status is status]
    newest = max((one.version for one in of_status), default=0)
    return sorted((one for one in of_status if one.version == newest), key=lambda one: one.partition)


def added(checksum: bytes, event_ids: Iterable[UUID]) -> bytes:
    """The checksum with more events in it: the exclusive or of all ids. The same id twice takes itself out again."""
    total = int.from_bytes(checksum)
    for event_id in event_ids:
        total ^= event_id.int
    return total.to_bytes(16)


def _combined(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(16)
