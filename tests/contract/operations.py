"""Operations: what can be asked of a journal, as data, so that every database can be asked the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from eventstore.backend import Batch, Claim, CommandLookup, EventFilter, Load, Owner, StoredSnapshot


class AppendGroup(NamedTuple):
    batches: Sequence[Batch]


class FindCommands(NamedTuple):
    lookups: Sequence[CommandLookup]


class ForgetCommands(NamedTuple):
    stream_id: str
    keep: int
    before: datetime | None


class RenewLease(NamedTuple):
    """Begin a lease, or let it run on. It does not run out while the operations last."""

    owner: Owner
    report: bytes


class EndLease(NamedTuple):
    owner: Owner


class ClaimMany(NamedTuple):
    claims: Sequence[Claim]


class Release(NamedTuple):
    owner: bytes
    epochs: Mapping[str, int]


class ListOwners(NamedTuple):
    """Ask who holds a lease."""


class ListHoldings(NamedTuple):
    page_size: int


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


class ReadMoved(NamedTuple):
    """Which streams have moved, part by part until the end of the log."""

    after_event: int
    part_size: int


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
    epoch: int | None


class Wait(NamedTuple):
    """Wait a moment for what is newer than so many events."""

    after_event: int


class Count(NamedTuple):
    """Ask for the statistics."""


class Reopen(NamedTuple):
    """Close the store, and open another one on the same journal."""


Operation = (
    AppendGroup
    | FindCommands
    | ForgetCommands
    | RenewLease
    | EndLease
    | ClaimMany
    | Release
    | ListOwners
    | ListHoldings
    | LoadMany
    | ReadStream
    | ReadLog
    | ReadMoved
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
