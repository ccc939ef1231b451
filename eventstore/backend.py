"""The contract a database keeps for the store: bytes in, bytes out, whole meanings instead of SQL.

Rules that hold for every method: no connection, cursor or transaction outlives a call; a driver's own errors never
leave the backend (they become the errors of `eventstore.errors`, chained); a cancelled call leaves nothing open.
`backends.conformance` is this contract as tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

from eventstore.errors import ConcurrencyError, DuplicateEventError, FencedError, JournalCorrupt
from eventstore.events import RecordedEvent


class Expected(IntEnum):
    """Expectations about a stream's version that are not one number."""

    ANY = -1
    STREAM_EXISTS = -2
    NO_STREAM = 0


class EncodedEvent(NamedTuple):
    """One event on its way into the journal. `payload` and `metadata` are JSON in UTF-8.

    Ids are the 16 bytes of a UUID. `batch_id` is the id of the first event of the command or append it belongs to.
    """

    event_id: bytes
    type: str
    schema_version: int
    payload: bytes
    metadata: bytes | None
    batch_id: bytes


class StreamWrite(NamedTuple):
    """Events for one stream, in order, and what must be true of the stream for them to be stored.

    `expected` is the version the stream must have, or an `Expected`. With an `epoch`, the write is refused
    (`FencedError`) once a newer epoch has been claimed; without one, ownership is not checked.
    """

    stream_id: str
    expected: int
    events: Sequence[EncodedEvent]
    epoch: int | None = None


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


class Appended(NamedTuple):
    """Where a batch was stored.

    `position` is that of its last event, 0 if it had none. `versions` gives, for every write in order, the stream's
    version after it. `is_duplicate` says that the identical batch had been stored before: the numbers are the
    original ones.
    """

    position: int
    versions: tuple[int, ...]
    is_duplicate: bool = False


AppendOutcome = Appended | ConcurrencyError | FencedError | DuplicateEventError
"""One batch's own outcome: stored, or the error that says why nothing of it was."""


class EventFilter(NamedTuple):
    """Which events of the whole log are wanted: each field that is set must match; within a field, any value.

    `kinds` are the parts of stream ids before the first dash; `types` are stored event names.
    """

    kinds: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    stream_ids: tuple[str, ...] = ()


class LogPage(NamedTuple):
    """Part of the whole log, in position order.

    `position` is how far the log has been looked through: the next page starts after it, even when the filter let
    nothing pass. `is_end` says that there was no more when the page was read, and `end` where the log ended then.
    """

    events: Sequence[RecordedEvent]
    position: int
    is_end: bool
    end: int


class StreamPage(NamedTuple):
    """Part of one stream. `version` is the stream's version when the page was read, whatever the range was; 0 if
    the stream does not exist. `truncated` is the version up to which events were removed."""

    events: Sequence[RecordedEvent]
    version: int
    truncated: int


class StoredSnapshot(NamedTuple):
    """A packed snapshot. `payload` is in `encoding`; `checksum` covers the payload and all that names it."""

    stream_id: str
    version: int
    fingerprint: str
    encoding: str
    payload: bytes
    checksum: bytes
    recorded_at: datetime
    epoch: int = 0


class Load(NamedTuple):
    """A wish to rebuild one stream's state: the newest snapshot above version `after`, then events behind it.

    With `use_snapshot` False, or where there is none, events start after `after`. At most `limit` events come.
    """

    stream_id: str
    after: int = 0
    use_snapshot: bool = True
    limit: int = 1000


class Loaded(NamedTuple):
    """What a `Load` found, at one moment: a snapshot, then the first events after it.

    `events` are (version, type, schema version, payload): no more than replay needs. `version` is the stream's own.
    """

    snapshot: StoredSnapshot | None
    events: Sequence[tuple[int, str, int, str | bytes]]
    version: int
    truncated: int


class StreamInfo(NamedTuple):
    """A stream, its version, and the version up to which its events were removed."""

    stream_id: str
    version: int
    truncated: int


class Durability(Enum):
    """What an acknowledged append survives."""

    POWER_LOSS = "power-loss"
    PROCESS_CRASH = "process-crash"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. What it cannot, it refuses with `CapabilityError`; it never pretends.

    `creates_schema`: a new, empty database gets its journal by itself. `survives_restart`: what is stored can be
    opened again.
    """

    creates_schema: bool
    survives_restart: bool


class Statistics(NamedTuple):
    """Counts for `eventstore doctor`.

    `last_position` is the last that was given to an event, visible or not; `read_all` tells how far the log is settled.
    """

    streams: int
    events: int
    snapshots: int
    last_position: int
    size_bytes: int


class Backend(Protocol):
    """A database as a journal. Instances are made by a factory that takes a `StoreUrl` and opens nothing."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def durability(self) -> Durability:
        """What is promised; checked against the live database by `open`."""
        ...

    @property
    def database(self) -> str:
        """The database's name and version, as `open` found it, such as "PostgreSQL 18.6"; before that the name."""
        ...

    @property
    def schema_revision(self) -> str | None:
        """The revision of the journal's tables, once open. None where there are none."""
        ...

    async def open(self) -> None:
        """Connect and check. Raises `SchemaMissing` where there is no journal, `SchemaError` where it is another
        version's, `DurabilityError` where the durability asked for is not to be had."""
        ...

    async def close(self) -> None:
        """Let go of everything. Appends in flight are finished first. Closing twice does nothing."""
        ...

    def append(self, batches: Sequence[Batch]) -> Awaitable[Sequence[AppendOutcome]]:
        """Store several independent batches in one durable commit, in order, each with its own outcome.

        A batch that is refused takes nothing of its neighbours with it, and leaves neither a hole in a stream nor a
        row. Once the awaitable is done the stored ones have the backend's durability. Raising means that the whole
        group has one outcome: `OutcomeUnknown`, or any other error for certainly not stored.
        Within a batch nothing is stored unless every write is. A batch whose events are all stored already, as one
        batch and with the same ids in the same streams, is answered with its original place.
        """
        ...

    async def claim(self, stream_id: str) -> int:
        """Take the stream's next writer epoch, above all earlier ones. Older epochs are fenced from then on."""
        ...

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        """Serve many recoveries in one round trip. Each answer is what one moment of its stream held, or why that
        stream, and it alone, cannot be read."""
        ...

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        """At most `limit` events with after < version <= through, rising, or falling if `backwards`."""
        ...

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        """At most `limit` events with position > after, rising.

        Once this has returned an event, no event with a lower position ever appears later, in any process.
        """
        ...

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        """The position after which the last `count` matching events stand; 0 if there are no more than these."""
        ...

    async def streams(self, *, after: str, limit: int, kind: str | None) -> Sequence[StreamInfo]:
        """Streams in the order of their ids' UTF-8 bytes, after the id `after`, each once.

        A stream that has only a snapshot is one of them.
        """
        ...

    async def wait(self, after: int, timeout: float) -> None:
        """Return when an event after the position may exist, at the latest after `timeout` seconds.

        It may return early. It is a hint: readers must read to know.
        """
        ...

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> None:
        """Store a snapshot, replacing one of the same version, and remove all but the newest `keep`."""
        ...

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        """The newest snapshots of at most version `through`, newest first."""
        ...

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        """Remove snapshots of at most version `through` (all if None). Returns how many."""
        ...

    async def truncate(self, stream_id: str, through: int, *, reason: str) -> int:
        """Remove the events up to a version, and record that it was done. Returns how many were removed.

        Versions and positions are never used again. Above the stream's version it is clipped to it.
        """
        ...

    async def statistics(self) -> Statistics: ...
