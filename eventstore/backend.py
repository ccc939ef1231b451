"""The contract a database keeps for the store: bytes in, bytes out, whole meanings instead of SQL.

Rules that hold for every method: no connection, cursor or transaction outlives a call; a driver's own errors never
leave the backend (they become the errors of `eventstore.errors`, chained); a cancelled call leaves nothing open.
`backends.conformance` is this contract as tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from eventstore.contract.append_outcome import Appended, AppendOutcome, stored_by
from eventstore.contract.archive import Archive
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals
from eventstore.contract.capabilities import Capabilities, Durability
from eventstore.contract.event_filter import EventFilter
from eventstore.contract.journal_facts import (
    CheckpointKey,
    Removal,
    Statistics,
    StoredCheckpoint,
    StoredSeal,
    StreamInfo,
)
from eventstore.contract.loading import NO_EVENTS, EventPage, Load, Loaded, ReplayedEvent, StoredSnapshot
from eventstore.contract.owner import Claim, Holder, Holding, Lease, Owner, OwnerInfo
from eventstore.contract.pages import LogPage, Moved, StreamPage
from eventstore.contract.remembered_command import CommandLookup, CommandsFound, StoredCommand
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.contract.writes import (
    Batch,
    CommandOutcome,
    EncodedEvent,
    Expected,
    ReplicaFields,
    StreamWrite,
    refusal,
)
from eventstore.errors import JournalCorrupt

__all__ = [
    "NO_EVENTS",
    "AppendOutcome",
    "Appended",
    "Backend",
    "Batch",
    "Capabilities",
    "CheckpointKey",
    "Claim",
    "CommandLookup",
    "CommandOutcome",
    "CommandsFound",
    "Durability",
    "EncodedEvent",
    "EventFilter",
    "EventPage",
    "Expected",
    "Holder",
    "Holding",
    "Lease",
    "Load",
    "Loaded",
    "LogPage",
    "Moved",
    "Owner",
    "OwnerInfo",
    "Removal",
    "ReplayedEvent",
    "ReplicaFields",
    "Statistics",
    "StoredCheckpoint",
    "StoredCommand",
    "StoredSeal",
    "StoredSnapshot",
    "StreamInfo",
    "StreamPage",
    "StreamWrite",
    "refusal",
    "stored_by",
]


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

    async def save_snapshot(self, snapshot: StoredSnapshot, *, keep: int) -> bool:
        """Store a snapshot, replacing one of the same version, and remove all but the newest `keep`. Returns whether it
        is there then.

        Where events were removed, the newest snapshot of each fingerprint stays that is at or above the last of them,
        and is not replaced by one of another fingerprint: other code could not rebuild its state without it.

        Raises `FencedError`.
        """
        ...

    async def read_snapshots(self, stream_id: str, *, through: int | None, limit: int) -> Sequence[StoredSnapshot]:
        """The newest snapshots of at most version `through`, newest first."""
        ...

    async def delete_snapshots(self, stream_id: str, *, through: int | None) -> int:
        """Remove snapshots of at most version `through` (all if None). Returns how many."""
        ...

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        """Remove the events up to a version, and record that it was done. Returns how many were removed.

        Versions and positions are never used again. Above the stream's version it is clipped to it. The outcomes of
        commands up to that version are forgotten with them. With an `epoch` it raises `FencedError` once a newer one
        has been claimed. Raises `ProjectionBehind`, by `passed_events.check_passed`, while a checkpoint of this
        tenant's or of the store without one has not passed the last event that would go, or has one that would among
        its dead letters (`DeadLetterWaits`): in the same step, so that none that is begun or put back meanwhile loses
        one. With a `fingerprint` it raises `RetentionRefused`, in that step too, unless a snapshot of this schema is
        there, of the version of the last event that would go or a later one.
        """
        ...

    async def checkpoints(self, *, shared: bool = False) -> Sequence[StoredCheckpoint]:
        """Every checkpoint of this tenant's, by the bytes of its name and by its version.

        With `shared` those of the store without a tenant instead, whose projections are given every tenant's events.
        """
        ...

    async def change_checkpoints(
        self, saving: Sequence[StoredCheckpoint], removing: Sequence[CheckpointKey] = ()
    ) -> bool:
        """In one step, store checkpoints, each in place of the one that has its revision, which is raised by one, or
        with revision 0, if there is none; and remove others. A name and a version stand there once.

        False, and nothing was done, if one of them has another revision, or is not there. Of several who change one
        revision one succeeds. With `capabilities.user_sql`, a transaction can do the same
        (`SqlTransaction.save_checkpoint`, `delete_checkpoint`).
        """
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
