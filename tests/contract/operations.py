"""Operations: what can be asked of a journal, as data, so that every database can be asked the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eventstore.backend import Batch, EventFilter, Load, StoredSnapshot


class AppendGroup(NamedTuple):
    batches: Sequence[Batch]


class Claim(NamedTuple):
    stream_id: str


class LoadMany(NamedTuple):
    loads: Sequence[Load]


class ReadStream(NamedTuple):
    stream_id: str
    after: int
    through: int | None
    limit: int
    backwards: bool


class ReadLog(NamedTuple):
    """Pages of the log, until its end. The place to begin at counts events: positions may have holes."""

    after_event: int
    page_size: int
    where: EventFilter


class ReadLast(NamedTuple):
    count: int
    where: EventFilter


class ListStreams(NamedTuple):
    page_size: int
    kind: str | None


class SaveSnapshot(NamedTuple):
    snapshot: StoredSnapshot
    keep: int


class ReadSnapshots(NamedTuple):
    stream_id: str
    through: int | None
    limit: int


class DeleteSnapshots(NamedTuple):
    stream_id: str
    through: int | None


class Truncate(NamedTuple):
    stream_id: str
    through: int
    reason: str


class Wait(NamedTuple):
    """Wait a moment for what is newer than so many events."""

    after_event: int


class Count(NamedTuple):
    """Ask for the statistics."""


class Reopen(NamedTuple):
    """Close the store, and open another one on the same journal."""


Operation = (
    AppendGroup
    | Claim
    | LoadMany
    | ReadStream
    | ReadLog
    | ReadLast
    | ListStreams
    | SaveSnapshot
    | ReadSnapshots
    | DeleteSnapshots
    | Truncate
    | Wait
    | Count
    | Reopen
)
