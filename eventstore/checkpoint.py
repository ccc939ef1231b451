"""Checkpoint: how far a projection has come, what it has applied, who runs it, and what it could not apply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

import orjson

from eventstore.backend import StoredCheckpoint
from eventstore.errors import JournalCorrupt

NOTHING = bytes(16)

_MOST_MARKS = 64


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
    """One version of a projection's read model, as it was read. Changes are made of copies, and saved."""

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

    @classmethod
    def of(cls, stored: StoredCheckpoint) -> Checkpoint:
        """A checkpoint out of the database. Raises `JournalCorrupt` if its state is not of this version."""
        name, version, revision, position, events, checksum, state = stored
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
            )
        except (ValueError, KeyError, TypeError) as error:
            raise JournalCorrupt(f"the checkpoint of projection {name!r} version {version} is damaged") from error

    def stored(self) -> StoredCheckpoint:
        """As the database keeps it."""
        state = {
            "status": self.status,
            "runner": self.runner,
            "runner_name": self.runner_name,
            "pause": self.pause,
            "kinds": self.kinds,
            "tenants": self.tenants,
            "letters": [list(letter) for letter in self.letters],
            "marks": [[mark.position, mark.events, mark.checksum.hex()] for mark in self.marks],
            "updated_at": now(),
        }
        numbers = (self.revision, self.position, self.events, self.checksum)
        return StoredCheckpoint(self.name, self.version, *numbers, orjson.dumps(state))

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


def added(checksum: bytes, event_ids: Iterable[UUID]) -> bytes:
    """The checksum with more events in it: the exclusive or of all ids. The same id twice takes itself out again."""
    total = int.from_bytes(checksum)
    for event_id in event_ids:
        total ^= event_id.int
    return total.to_bytes(16)


def _combined(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one) ^ int.from_bytes(other)).to_bytes(16)
