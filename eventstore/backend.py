"""The contract a database keeps for the store: bytes in, bytes out, whole meanings instead of SQL.

Rules that hold for every method: no connection, cursor or transaction outlives a call; a driver's own errors never
leave the backend (they become the errors of `eventstore.errors`, chained); a cancelled call leaves nothing open.
`backends.conformance` is this contract as tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, overload

from eventstore.errors import (
    CommandForgotten,
    ConcurrencyError,
    DuplicateCommand,
    DuplicateEventError,
    FencedError,
    JournalCorrupt,
)
from eventstore.events import RecordedEvent

if TYPE_CHECKING:
    from eventstore.archive import Archive
    from eventstore.audit_query import AuditPage, AuditQuery, AuditTotals
    from eventstore.sql_transaction import SqlTransaction


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


class Appended(NamedTuple):
    """Where a batch was stored.

    `position` is that of its last event, 0 if it had none. `versions` gives, for every write in order, the stream's
    version after it. `is_duplicate` says that the identical batch had been stored before: the numbers are the
    original ones.
    """

    position: int
    versions: tuple[int, ...]
    is_duplicate: bool = False


def stored_by(batches: Sequence[Batch], outcomes: Sequence[object]) -> Batch:
    """All writes that an append has just stored, as one batch: not those that were refused, or stored before."""
    return [
        write
        for batch, outcome in zip(batches, outcomes, strict=True)
        if isinstance(outcome, Appended) and not outcome.is_duplicate
        for write in batch
    ]


AppendOutcome = Appended | ConcurrencyError | FencedError | DuplicateEventError | DuplicateCommand | CommandForgotten
"""One batch's own outcome: stored, or the error that says why nothing of it was."""


class EventFilter(NamedTuple):
    """Which events of the whole log are wanted: each field that is set must match; within a field, any value.

    `kinds` are the parts of stream ids before the first dash; `types` are stored event names. `tenants` is for the
    store without a tenant, which sees those of all; "" stands for its own. A tenant's store sees its own alone,
    whatever is asked for.
    """

    kinds: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    stream_ids: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()


class LogPage(NamedTuple):
    """Part of the whole log, in position order.

    The `events` may be a `RecordPage`, which makes records when they are looked at; all were checked before. `position`
    is how far the log has been looked through: the next page starts after it, even when the filter let nothing pass.
    `is_end` says that there was no more when the page was read, and `end` where the log ended then.
    """

    events: Sequence[RecordedEvent]
    position: int
    is_end: bool
    end: int


class Moved(NamedTuple):
    """Which streams got events in a part of the log that ends at `position`, and their versions at the newest of these.

    `is_end` says that the log had no more when it was looked at.
    """

    versions: Mapping[str, int]
    position: int
    is_end: bool


class StreamPage(NamedTuple):
    """Part of one stream. `version` is the stream's version when the page was read, whatever the range was; 0 if
    the stream does not exist. `truncated` is the version up to which events were removed."""

    events: Sequence[RecordedEvent]
    version: int
    truncated: int


class StoredSnapshot(NamedTuple):
    """A packed snapshot. `payload` is in `encoding`; `checksum` covers the payload and all that names it.

    With an `epoch` above 0 it is refused once a newer one has been claimed.
    """

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


ReplayedEvent = tuple[int, str, int, bytes, int]
"""What replay needs of an event: version, type, schema version, payload, checksum."""


class EventPage(Sequence[ReplayedEvent]):
    """Events of one stream, in its order, by column: looking at a column as a whole costs a fraction of looking at each
    event.

    Raises `ValueError` for columns that are not of one length.
    """

    __slots__ = ("checksums", "payloads", "schema_versions", "types", "versions")

    def __init__(
        self,
        versions: list[int],
        types: list[str],
        schema_versions: list[int],
        payloads: list[bytes],
        checksums: list[int],
    ) -> None:
        if not len(versions) == len(types) == len(schema_versions) == len(payloads) == len(checksums):
            raise ValueError("the columns are not of one length")
        self.versions = versions
        self.types = types
        self.schema_versions = schema_versions
        self.payloads = payloads
        self.checksums = checksums

    @classmethod
    def of(cls, events: Iterable[ReplayedEvent]) -> Self:
        """The same events, by column."""
        columns = [list(column) for column in zip(*events, strict=True)]
        return cls(*columns) if columns else cls([], [], [], [], [])

    def __len__(self) -> int:
        return len(self.versions)

    def __iter__(self) -> Iterator[ReplayedEvent]:
        return zip(self.versions, self.types, self.schema_versions, self.payloads, self.checksums, strict=True)

    @overload
    def __getitem__(self, index: int) -> ReplayedEvent: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> ReplayedEvent | Self:
        if isinstance(index, slice):
            return self.__class__(
                self.versions[index],
                self.types[index],
                self.schema_versions[index],
                self.payloads[index],
                self.checksums[index],
            )
        return (
            self.versions[index],
            self.types[index],
            self.schema_versions[index],
            self.payloads[index],
            self.checksums[index],
        )


NO_EVENTS = EventPage([], [], [], [], [])


class Loaded(NamedTuple):
    """What a `Load` found, at one moment: a snapshot, then the first events after it.

    Replay compares payload and checksum of each. `version` is the stream's own.
    """

    snapshot: StoredSnapshot | None
    events: EventPage
    version: int
    truncated: int


class CommandLookup(NamedTuple):
    """A question for one stream's remembered commands: the outcome of one id, and with `recent` above 0 which ids
    there are, at most so many of them."""

    stream_id: str
    command_id: str
    recent: int = 0


class StoredCommand(NamedTuple):
    """A remembered outcome. `version` is that of the stream after the write it came with."""

    command_id: str
    fingerprint: bytes
    outcome_id: bytes
    is_rejection: bool
    payload: bytes
    version: int
    recorded_at: datetime


class CommandsFound(NamedTuple):
    """The answer to a `CommandLookup`, as one moment of the stream held it.

    Every remembered id that is greater than `known_above`, in the order of UTF-8 bytes, is in `recent`: "" says that
    these are all, None that nothing is known but the outcome itself. A command that was issued up to `forgotten`
    (`CommandOutcome.issued_at`) may have had an outcome that is no longer remembered; 0 says that none is.
    """

    outcome: StoredCommand | None
    recent: Sequence[str]
    known_above: str | None
    forgotten: int


class Owner(NamedTuple):
    """A process that may own streams. `id` is 16 bytes, new for each start; `name` is for people.

    Its lease runs out `seconds` after it was last renewed, by the database's clock.
    """

    id: bytes
    name: str
    seconds: float


class Claim(NamedTuple):
    """A wish to write to a stream alone, from its next epoch on.

    An `owner` gets it if nobody else with a lease that runs has it, or if that one's lease was renewed `lapsed` times
    and no more: who watched that for the length of the lease has seen it run out, whatever the database's clock says.
    Without an owner the epoch is raised unconditionally, and nobody owns the stream then.
    """

    stream_id: str
    owner: bytes | None = None
    lapsed: int | None = None


class Holder(NamedTuple):
    """Who owns a stream that was claimed in vain. `remaining` are the seconds until the lease runs out."""

    owner: bytes
    name: str
    renewals: int
    seconds: float
    remaining: float


class OwnerInfo(NamedTuple):
    """A process as its lease describes it. `remaining` seconds below 0 say for how long the lease has run out.

    `report` is what it says about itself, as JSON.
    """

    id: bytes
    name: str
    renewals: int
    remaining: float
    report: bytes


class Holding(NamedTuple):
    """A stream that an owner has claimed and not released. The owner's lease may have run out, or be gone."""

    stream_id: str
    epoch: int
    owner: bytes


class StreamInfo(NamedTuple):
    """A stream, its version, the version up to which its events were removed, and whose it is."""

    stream_id: str
    version: int
    truncated: int
    tenant: str = ""


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


class Durability(Enum):
    """What an acknowledged append survives."""

    POWER_LOSS = "power-loss"
    PROCESS_CRASH = "process-crash"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do. What it cannot, it refuses with `CapabilityError`; it never pretends.

    `creates_schema`: a new, empty database gets its journal by itself. `survives_restart`: what is stored can be
    opened again. `user_sql`: the user's own SQL statements can be committed together with a batch. `tenants`: an
    instance can be one tenant's; without it, it is asked for none. `archive`: records can be read and stored as they
    are, and the journal can be fenced.
    """

    creates_schema: bool
    survives_restart: bool
    user_sql: bool = False
    tenants: bool = False
    archive: bool = False


class Statistics(NamedTuple):
    """Counts for `eventstore doctor`, of the whole journal.

    `last_position` is the last that was given to an event, visible or not; `read_all` tells how far the log is settled.
    """

    streams: int
    events: int
    snapshots: int
    last_position: int
    size_bytes: int


class Lease(Protocol):
    """One owner's lease, on a connection of its own. It is used in another thread's event loop than the backend's, so
    that a loop that is kept busy does not let it run out. It is ended before the backend is closed."""

    async def renew(self, report: bytes) -> None:
        """Begin the lease, or let it run anew from now. Raises as every call does; then it runs on as it was."""
        ...

    async def end(self) -> None:
        """Give up the lease, and with it every stream the owner holds, listed or not. Then let go of the connection."""
        ...


class Backend(Protocol):
    """A database as a journal. Instances are made by a factory that takes a `StoreUrl` and opens nothing.

    An instance is one tenant's: the one that the `StoreUrl` names. Stream ids, and the ids of owners and of
    projections, are that tenant's own: under the same id another one has another thing, which this instance neither
    finds nor changes. Positions and event ids are the whole journal's: an id that any tenant has used is refused
    (`DuplicateEventError`).
    """

    @property
    def tenant(self) -> str:
        """Whose it is; "" for the store without a tenant, whose `read_all` shows the events of all."""
        ...

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
        batch and with the same ids in the same streams, is answered with its original place; so is one without events
        whose commands are all stored already with the same outcome ids. Else its writes are looked at in their order:
        the owner first, then the commands, then the version.
        """
        ...

    async def begin_sql(self, *, seconds: float) -> SqlTransaction:
        """Begin a transaction for the user's own statements and one batch. It is rolled back by itself after `seconds`.

        A backend may give it less where others would otherwise not wait that long for what it holds up. Raises
        `CapabilityError` where `capabilities.user_sql` is off. A cancelled call leaves nothing open.
        """
        ...

    def archive(self) -> Archive:
        """The journal's records as they are stored, for copies, and its fence. Raises `CapabilityError` where
        `capabilities.archive` is off."""
        ...

    async def find_commands(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        """Answer many questions about remembered commands in one round trip. What was appended before is found.

        Where what a stream remembers cannot be read, the answers about that stream, and they alone, say why."""
        ...

    async def forget_commands(self, stream_id: str, *, keep: int, before: datetime | None) -> int:
        """Forget the outcomes that are not among the newest `keep` and, with `before`, were recorded before it.

        Returns how many. The greatest time at which one of them was issued is remembered (`CommandsFound.forgotten`);
        an id that carries a later time than the outcome was recorded at counts with the latter.
        """
        ...

    def lease(self, owner: Owner) -> Lease:
        """A lease for an owner. Nothing is done before it is renewed."""
        ...

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int | Holder]:
        """Take streams' next writer epochs, above all earlier ones, in one round trip. Older epochs are fenced from
        then on. Each answer is the epoch, or who holds the stream. A stream occurs once.

        Raises `LeaseLost` where an owner that claims has no lease that runs: nothing was claimed then.
        """
        ...

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        """Let others claim streams, those that the owner still holds with these epochs. The epochs stay."""
        ...

    async def owners(self) -> Sequence[OwnerInfo]:
        """Every process with a lease, or with one that ran out and was neither ended nor removed yet, by name."""
        ...

    async def holdings(self, *, after: str, limit: int) -> Sequence[Holding]:
        """Streams that were claimed by an owner and not released, in the order of their ids' bytes, after an id."""
        ...

    async def load(self, loads: Sequence[Load]) -> Sequence[Loaded | JournalCorrupt]:
        """Serve many recoveries in one round trip. Each answer is what one moment of its stream held, or why that
        stream, and it alone, cannot be read."""
        ...

    async def read_stream(
        self, stream_id: str, *, after: int, through: int | None, limit: int, backwards: bool
    ) -> StreamPage:
        """At most `limit` events with after < version <= through, rising, or falling if `backwards`.

        Raises `JournalCorrupt`, with stream, version and position, for an event that does not match its checksum
        (`codec.verify_checksum`).
        """
        ...

    async def read_all(self, *, after: int, limit: int, where: EventFilter) -> LogPage:
        """At most `limit` events with position > after, rising: a tenant's own, or those of all tenants.

        Once this has returned an event, no event with a lower position ever appears later, in any process.
        Raises as `read_stream` does.
        """
        ...

    async def audit_page(self, query: AuditQuery, *, cursor: int | None, limit: int, backwards: bool) -> AuditPage:
        """At most `limit` events that match, rising, or falling if `backwards`: with position > cursor, or < cursor.

        What is final is as in `read_all`. A call ends after a bounded part of the log; a page may be empty, and is at
        the end only where it says so. A backend that has nothing better answers with `audit_scan.scanned_page`.
        """
        ...

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        """The sums over what matches, with the `top` most frequent types, streams and users. None where the database
        cannot tell for this query: it is counted from the pages then."""
        ...

    async def moved(self, *, after: int, limit: int) -> Moved:
        """Which of the tenant's streams have events in the next `limit` positions after one. The position is settled,
        as in `read_all`.

        Events that were truncated since may be missing.
        """
        ...

    async def start_of_last(self, count: int, where: EventFilter) -> int:
        """The position after which the last `count` matching events stand; 0 if there are no more than these."""
        ...

    async def streams(
        self, *, after: str, limit: int, kind: str | None, tenant: str | None = None
    ) -> Sequence[StreamInfo]:
        """Streams in the order of their ids' UTF-8 bytes, after the id `after`, each once.

        A stream that has only a snapshot is one of them. They are the backend's own tenant's. The backend without a
        tenant lists those of any `tenant`; to the others, another one than their own has none.
        """
        ...

    async def tenants(self, *, after: str | None, limit: int) -> Sequence[str]:
        """The tenants that have streams, in the order of their names' bytes, after one. None: from the first on, which
        is "". A tenant's backend knows itself alone.
        """
        ...

    async def wait(self, after: int, timeout: float) -> None:
        """Return when an event after the position may exist, at the latest after `timeout` seconds.

        It may return early. It is a hint: readers must read to know.
        """
        ...

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> None:
        """Store a snapshot, replacing one of the same version, and remove all but the newest `keep`.

        Raises `FencedError`.
        """
        ...

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        """The newest snapshots of at most version `through`, newest first."""
        ...

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        """Remove snapshots of at most version `through` (all if None). Returns how many."""
        ...

    async def truncate(self, stream_id: str, through: int, *, reason: str, epoch: int | None = None) -> int:
        """Remove the events up to a version, and record that it was done. Returns how many were removed.

        Versions and positions are never used again. Above the stream's version it is clipped to it. The outcomes of
        commands up to that version are forgotten with them. With an `epoch` it raises `FencedError` once a newer one
        has been claimed.
        """
        ...

    async def checkpoints(self, *, shared: bool = False) -> Sequence[StoredCheckpoint]:
        """Every checkpoint of this tenant's, by the bytes of its name and by its version.

        With `shared` those of the store without a tenant instead, whose projections are given every tenant's events.
        """
        ...

    async def save_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        """Store a checkpoint in place of the one that has its revision, which is raised by one; with revision 0, if
        there is none. False, and nothing was done, if that is not so. Of several who replace one revision one succeeds.

        With `capabilities.user_sql`, a transaction can do the same (`SqlTransaction.save_checkpoint`).
        """
        ...

    async def delete_checkpoint(self, name: str, version: int, revision: int) -> bool:
        """Remove a checkpoint if it has this revision. Returns whether it had."""
        ...

    async def removals(self, *, after: int, limit: int) -> Sequence[Removal]:
        """The truncations of the whole journal, by number, after one.

        Once this has returned one, none with a lower number ever appears later, in any process.
        """
        ...

    async def add_seal(self, seal: StoredSeal) -> bool:
        """Store a seal whose number is one more than the greatest that is stored, from 1. False, and nothing was done,
        if it is not: of several who add the same number one succeeds. A seal is never changed or removed.
        """
        ...

    async def seals(self, *, after: int, limit: int, backwards: bool) -> Sequence[StoredSeal]:
        """At most `limit` seals with number > after, rising, or the newest first if `backwards`.

        Numbers, and what the seals hold, are given as they are found: whoever verifies has to see what is missing. What
        is not a seal any more is given with empty bytes.
        """
        ...

    async def statistics(self) -> Statistics: ...
