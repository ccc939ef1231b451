"""The contract of copies: a journal's records as they are stored, to be stored anew in another one, and its fence.

What a backend keeps for itself only (leases and owners, the rows of read models, checkpoints) is no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from eventstore.contract.loading import StoredSnapshot
from eventstore.contract.writes import CommandOutcome, EncodedEvent

StreamKey = tuple[str, str]
"""A stream of whichever tenant: the tenant, "" for none, and the stream's id."""


class ArchivedEvent(NamedTuple):
    """An event with all that the journal has added to it. `recorded_at` is in microseconds since 1970."""

    position: int
    tenant: str
    stream_id: str
    version: int
    event: EncodedEvent
    epoch: int
    recorded_at: int

    @property
    def key(self) -> StreamKey:
        return self.tenant, self.stream_id


class ArchivePage(NamedTuple):
    """Part of the log, of every tenant. `position` and `is_end` are as in `LogPage`; at the end, `position` is the last
    that was ever given to an event, stored or not.

    `truncated` tells for each stream of the page up to which version events were removed.
    """

    events: Sequence[ArchivedEvent]
    truncated: Mapping[StreamKey, int]
    position: int
    is_end: bool


class ArchivedCommand(NamedTuple):
    """A remembered outcome with all that the journal has added to it."""

    outcome: CommandOutcome
    version: int
    recorded_at: int


class ArchivedStream(NamedTuple):
    """What is to be known of a stream besides its events. `number` is the backend's own, and rises with new streams.

    `oldest` and `newest` are the ids of the remembered commands that were stored first and last, "" where there is
    none. `snapshots` has the version and the time (`recorded_at`) of each, by version.
    """

    number: int
    tenant: str
    stream_id: str
    version: int
    truncated: int
    epoch: int
    forgotten: int
    commands: int
    oldest: str
    newest: str
    snapshots: tuple[tuple[int, int], ...]

    @property
    def key(self) -> StreamKey:
        return self.tenant, self.stream_id


class StreamRecords(NamedTuple):
    """What a stream shall have, besides its events.

    Events up to `truncated` are removed. `commands` are added behind those that are remembered; with `replaces` these
    are removed first. `snapshots` take the place of all that there are; None leaves them.
    """

    tenant: str
    stream_id: str
    truncated: int
    epoch: int
    forgotten: int
    commands: Sequence[ArchivedCommand] = ()
    replaces: bool = False
    snapshots: Sequence[StoredSnapshot] | None = None

    @property
    def key(self) -> StreamKey:
        return self.tenant, self.stream_id


class Fence(NamedTuple):
    """Why nothing may be added to a journal any more, and since when."""

    reason: str
    fenced_at: datetime


class Archive(Protocol):
    """A journal's records, of every tenant. `Backend.archive` gives it."""

    async def identity(self) -> str:
        """What tells this journal from every other one: two archives that give the same are of one journal, however
        each store was addressed, or one is a physical copy of the other's database."""
        ...

    async def events(self, *, after: int, limit: int) -> ArchivePage:
        """The next events of the log, settled as `Backend.read_all` has it. Checksums are the caller's to verify."""
        ...

    async def streams(self, *, after: int, limit: int) -> Sequence[ArchivedStream]:
        """Every stream that the journal knows of, one that was only claimed too, by number, after a number."""
        ...

    async def last_stream(self) -> int:
        """The greatest number that a stream has by now; 0 if there is none."""
        ...

    async def find(self, keys: Sequence[StreamKey]) -> Mapping[StreamKey, ArchivedStream]:
        """Those of the streams that the journal knows of."""
        ...

    async def commands(self, number: int, *, after: str, limit: int) -> Sequence[ArchivedCommand]:
        """Outcomes that the stream of this number remembers, in the order in which they were stored: behind the one of
        the command `after`; from the first where that is "", or not remembered."""
        ...

    async def snapshots(self, number: int) -> Sequence[StoredSnapshot]:
        """Every snapshot of the stream of this number, by version."""
        ...

    async def copied(self) -> int | None:
        """Up to which position of another journal this one is a copy; None if it is none."""
        ...

    async def restore_events(self, *, after: int, page: ArchivePage) -> None:
        """Store a page of another journal's log at its own positions, and with it that this journal is a copy up to
        `page.position`. What is appended later goes on behind that. One durable commit.

        A stream whose next version is not the one that follows has lost those between by truncation, and is truncated
        so here; where `page.truncated` says otherwise, `JournalCorrupt` is raised.
        Raises `CopyRefused`, and nothing is stored, unless this journal is a copy up to `after`, and no more is in it;
        for a page from the beginning, unless it is empty.
        """
        ...

    async def restore_streams(self, records: Sequence[StreamRecords]) -> None:
        """Give streams what they shall have besides their events, in one durable commit; on Redis each in its own."""
        ...

    async def fence(self, reason: str) -> Fence:
        """Refuse from now on, in every process, all that would add to the journal: appends with `StoreFenced` as their
        outcome (one that could not be stored anyway may say why), whatever else a copy holds by raising it. Returns the
        fence, which is the first one's if there was one already.

        Appends that are under way are waited for: they are stored before this returns, or refused. A batch that is
        stored is still answered with its original place. Reading goes on, and so do checkpoints and leases.
        """
        ...

    async def fenced(self) -> Fence | None: ...
