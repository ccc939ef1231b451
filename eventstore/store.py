"""EventStore: the journal as applications use it. One object, one database, one event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, cast

from eventstore.backend import (
    Appended,
    AppendOutcome,
    Backend,
    Batch,
    Capabilities,
    Claim,
    CommandLookup,
    CommandsFound,
    Durability,
    EventFilter,
    Expected,
    Holder,
    Holding,
    Lease,
    Load,
    Loaded,
    LogPage,
    Moved,
    Owner,
    OwnerInfo,
    Removal,
    Statistics,
    StoredSeal,
    StreamInfo,
    StreamWrite,
)
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.calls.finishing import finish_then_cancel
from eventstore.calls.group_calls import GroupCalls
from eventstore.calls.group_commit import RESOLVE_WITHIN_SECONDS, GroupCommit
from eventstore.calls.guarded_backend import GuardedBackend
from eventstore.calls.guarded_sql import GuardedSqlTransaction
from eventstore.calls.pending_append import PendingAppend, size_of
from eventstore.codec import DEFAULT_MAX_PAYLOAD_BYTES, decode_event, decode_parts, encode_batch
from eventstore.contract.archive import Archive
from eventstore.contract.audit_query import AuditPage, AuditQuery, AuditTotals
from eventstore.contract.checkpoint import Checkpoint
from eventstore.contract.journal_facts import CheckpointKey, StoredCheckpoint
from eventstore.contract.pages import MAX_POSITION, checked_limit, held
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import (
    CapabilityError,
    CopyRefused,
    DefinitionError,
    EventStoreError,
    InvalidArgument,
    JournalCorrupt,
    SnapshotUnusable,
    StoreClosed,
)
from eventstore.events import Event, NewEvent, RecordedEvent, Snapshot, checked_stream_id
from eventstore.opening import open_backend
from eventstore.reading.log_reader import LogReader
from eventstore.reading.paging import every
from eventstore.reading.reading_past import OnDamage
from eventstore.reading.stream_events import stream_events
from eventstore.schemes import backend_factory
from eventstore.snapshots import COMPRESS_FROM_BYTES, pack, unpacked
from eventstore.tenant import NO_TENANT, checked_tenant
from eventstore.truncation import removable
from eventstore.upcasters import UPCASTERS
from eventstore.url import StoreUrl, parse_store_url

_PAGE = 500
_EVERYTHING = EventFilter()
_BEHIND_ALL = 2**62


class Append(NamedTuple):
    """One stream's part of an atomic batch (`EventStore.append_batch`)."""

    stream_id: str
    events: Sequence[Event | NewEvent]
    expected_version: int = Expected.ANY


class EventStore:
    """A journal: streams of events, one order over all of them, snapshots.

        async with EventStore.open("sqlite:///shop.db") as store:
            await store.append("order-1", [Placed(item="book")], expected_version=0)
            async for recorded in store.read("order-1"):
                print(recorded.version, store.decode(recorded))

    It belongs to the event loop it was entered in.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        url: StoreUrl,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
        create: bool = True,
        resolve_within: float = RESOLVE_WITHIN_SECONDS,
    ) -> None:
        self._backend = backend
        self._url = url
        self._creates = create
        self.max_payload_bytes = max_payload_bytes
        self._resolve_within = resolve_within
        self._guarded: GuardedBackend | None = None
        self._commits: GroupCommit | None = None
        self._calls: GroupCalls | None = None
        self._is_appended_through = False
        self._sql_commits: set[asyncio.Future[AppendOutcome]] = set()
        self._pid = 0

    @classmethod
    def open(
        cls,
        url: str,
        *,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
        create: bool = True,
        resolve_within: float = RESOLVE_WITHIN_SECONDS,
        tenant: str | None = None,
    ) -> Self:
        """The store a URL names; enter it with `async with`. Nothing is opened before that.

        With a `tenant` it is about the streams of this one alone, and shows nothing of the others (docs/tenants.md).
        Without, it addresses the streams of no tenant, and what it shows of the whole log is everybody's.

        With `create=False` a journal that is not there is never made: entering raises `SchemaMissing`. It is for tools
        that look at a store, where a mistyped URL must not become a new, empty one. An append that the database did not
        answer is sent again for `resolve_within` seconds before it is reported as `OutcomeUnknown`.

        Raises `InvalidStoreUrl` for a URL that no backend understands, `InvalidTenant` for what is no tenant's name,
        and `CapabilityError` where the backend knows no tenants.
        """
        parsed = replace(parse_store_url(url), tenant=NO_TENANT if tenant is None else checked_tenant(tenant))
        backend = backend_factory(parsed.scheme)(parsed)
        # One that overlooked the tenant would mix up everybody's streams.
        if parsed.tenant and not backend.capabilities.tenants:
            raise CapabilityError(f"{parsed.scheme}:// knows no tenants: nothing was opened")
        return cls(
            backend, url=parsed, max_payload_bytes=max_payload_bytes, create=create, resolve_within=resolve_within
        )

    async def __aenter__(self) -> Self:
        """Connect. A new, empty embedded database gets its journal, unless the store was opened with `create=False`;
        no other schema is ever changed here.

        Raises `SchemaError`, `DurabilityError` or `BackendUnavailable`; `UpcasterError` if upcasters lead nowhere.
        """
        if self._commits is not None:
            raise StoreClosed("this store is already open: enter it once")
        UPCASTERS.check()
        await open_backend(self._backend, self._url, creates=self._creates)
        self._pid = os.getpid()
        breaker = CircuitBreaker()
        self._guarded = GuardedBackend(self._backend, breaker)
        self._commits = GroupCommit(
            self._backend.append, breaker, removed=self._removed, resolve_within=self._resolve_within
        )
        self._calls = GroupCalls(self._guarded, breaker)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Refuse new work, wait for the appends in flight, let go of the database. Closing twice does nothing.

        A caller that is cancelled waits until that is done, and is cancelled then. In the child of a fork it lets go of
        nothing, because connections and threads are the parent's: what is opened here no longer is, and that is all.
        """
        if self._commits is None or self._calls is None:
            return
        commits, calls = self._commits, self._calls
        self._commits = self._calls = self._guarded = None
        if self.is_forked:
            return
        await finish_then_cancel(asyncio.ensure_future(self._let_go(commits, calls)))

    async def _let_go(self, commits: GroupCommit, calls: GroupCalls) -> None:
        try:
            await commits.close()
            for group_call in calls:
                await group_call.close()
            if self._sql_commits:
                await asyncio.wait(self._sql_commits)
        finally:
            await self._backend.close()

    @property
    def is_forked(self) -> bool:
        """Whether this is the child of a fork, and the store was opened by its parent. For the actor runtime."""
        return self._pid not in (0, os.getpid())

    @property
    def url(self) -> StoreUrl:
        """The store's URL; printing it shows no secret."""
        return self._url

    @property
    def tenant(self) -> str:
        """Whose streams the store is about; "" if it was opened without a tenant."""
        return self._backend.tenant

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can do."""
        return self._backend.capabilities

    @property
    def durability(self) -> Durability:
        """What an acknowledged append survives."""
        return self._backend.durability

    @property
    def database(self) -> str:
        """The database's name and version, such as "SQLite 3.40.1"."""
        return self._backend.database

    @property
    def schema_revision(self) -> str | None:
        """The revision of the journal's tables; None for a backend without any."""
        return self._backend.schema_revision

    # Writing

    def append(
        self, stream_id: str, events: Iterable[Event | NewEvent], *, expected_version: int = Expected.ANY
    ) -> Coroutine[Any, Any, Appended]:
        """Store every event, in order and as one batch, or none.

        The events are read at the call, not when it is awaited. `expected_version` is the version the stream must
        have (0: no stream yet), or an `Expected`. Appending the identical events (same ids) again stores nothing and
        returns their original place.

        A caller that is cancelled waits until the outcome is known and is cancelled then: the events may be stored.

        Raises `ConcurrencyError`, `DuplicateEventError`, `CodecError`, `InvalidStreamId`, `BackendUnavailable`
        (nothing stored) or `OutcomeUnknown` (append the same events again).
        """
        if isinstance(events, (Event, NewEvent)):
            # Both can be iterated over, which gives their fields.
            raise InvalidArgument(f"append takes several events: give a list, [{type(events).__qualname__}(…)]")
        return self.append_batch([Append(stream_id, tuple(events), expected_version)])

    def append_batch(self, appends: Iterable[Append]) -> Coroutine[Any, Any, Appended]:
        """Store the events of several streams together, or none. They stand in the log in the order given.

        Raises as `append` does; the error names the stream that refused.
        """
        writes: list[StreamWrite] = []
        batch_id: bytes | None = None
        for stream_id, events, expected_version in appends:
            encoded = encode_batch(events, limit=self.max_payload_bytes, batch_id=batch_id)
            batch_id = batch_id or (encoded[0].batch_id if encoded else None)
            # A plain -1 is a slip, such as `len(history) - 1`, and must not mean `Expected.ANY`.
            given = cast("object", expected_version)
            if not isinstance(given, int) or (given < 0 and not isinstance(given, Expected)):
                raise InvalidArgument(
                    f"expected_version is the version that {stream_id!r} must have, 0 or more, or an Expected, not "
                    f"{expected_version!r}"
                )
            writes.append(StreamWrite(checked_stream_id(stream_id), int(expected_version), encoded))
        return self.append_writes(writes)

    async def append_writes(self, writes: list[StreamWrite]) -> Appended:
        """Store events that are encoded already, together, or none. For the actor runtime. Raises as `append` does."""
        outcome = await self._outcome_of(writes)
        if isinstance(outcome, Appended):
            return outcome
        try:
            raise outcome
        finally:
            # The error keeps this frame. If that kept the error too, both would stay, with all the events, until the
            # garbage collector comes.
            del outcome

    async def _removed(self, stream_ids: Sequence[str]) -> Mapping[str, int]:
        # Past the breaker, which may be open while an outcome is unknown.
        loads = [Load(stream_id, use_snapshot=False, limit=0) for stream_id in stream_ids]
        found: dict[str, int] = {}
        for stream_id, loaded in zip(stream_ids, await self._backend.load(loads), strict=True):
            if isinstance(loaded, JournalCorrupt):
                raise loaded
            found[stream_id] = loaded.truncated
        return found

    async def _outcome_of(self, writes: list[StreamWrite]) -> AppendOutcome | EventStoreError:
        commits = self._open_commits
        loop = asyncio.get_running_loop()
        if loop is not commits.loop:
            raise _elsewhere()
        while commits.is_full:
            await commits.room()
        outcome: asyncio.Future[AppendOutcome | EventStoreError] = loop.create_future()

        def settle(_: PendingAppend, result: AppendOutcome | EventStoreError) -> None:
            outcome.set_result(result)

        commits.submit(PendingAppend(writes, size_of(writes), settle))
        return await finish_then_cancel(outcome)

    async def begin_sql(self, *, seconds: float) -> SqlTransaction:
        """Begin a transaction for SQL statements of the user's own and one batch of events, in one commit.

        It may hold others up, so it is rolled back by itself after `seconds`. On SQLite everybody who writes waits for
        it, and it gets at most four fifths of the `busy_timeout`. Raises `CapabilityError` where
        `capabilities.user_sql` is off.
        """
        transaction = await self._open.begin_sql(seconds=seconds)
        breaker = self._open_commits.breaker
        return GuardedSqlTransaction(transaction, breaker, self._sql_commits, resolve_within=self._resolve_within)

    def append_through(
        self,
        append: Callable[[Backend, Sequence[Batch]], Awaitable[Sequence[AppendOutcome | EventStoreError]]] | None,
    ) -> None:
        """Have every group of appends stored by something that is given the backend; by the backend itself again with
        None. For inline projections.

        Raises `DefinitionError` where something else does it already.
        """
        if append is not None and self._is_appended_through:
            raise DefinitionError("this store has inline projections already: give it all of them at once")
        self._is_appended_through = append is not None
        if append is not None:
            self._open_commits.append_by(partial(append, self._backend))
        elif self._commits is not None:
            self._commits.append_by(self._backend.append)

    @property
    def commits(self) -> GroupCommit:
        """The queue of appends. For the actor runtime."""
        return self._open_commits

    async def claim(self, stream_id: str) -> int:
        """Take the stream's next writer epoch, whoever owns it: whoever writes with an older one is refused from then
        on, with `FencedError`."""
        (epoch,) = await self._open.claim([Claim(checked_stream_id(stream_id))])
        if isinstance(epoch, Holder):
            raise JournalCorrupt("the backend refused an unconditional claim", stream_id=stream_id)
        return epoch

    async def truncate(
        self, stream_id: str, through: int, *, reason: str, epoch: int | None = None, fingerprint: str | None = None
    ) -> int:
        """Remove a stream's events up to a version, and record that and why. Returns how many were removed.

        The stream keeps its version: the next event gets the next number. A state that is to be rebuilt afterwards
        needs a snapshot at or above `through`. The outcomes of commands up to that version are forgotten with them.

        With an `epoch` it raises `FencedError` once a newer one has been claimed. Raises `TruncationRefused` for the
        stream of a replicated actor, `ProjectionBehind` while a projection of that kind of streams has not passed the
        events, one of the tenant's or one of the store without a tenant, and `DeadLetterWaits` while it has one of them
        among its dead letters: nothing was removed then. With a `fingerprint`, the schema of the state that is folded
        from the stream, it raises `RetentionRefused` where, at that moment, no snapshot of that schema is there from
        which the state can be rebuilt afterwards.
        """
        checked_stream_id(stream_id)
        last = await removable(self._open, stream_id, through)
        return await self._open.truncate(stream_id, last, reason=reason, epoch=epoch, fingerprint=fingerprint)

    # Commands that are remembered

    async def find_command(self, lookup: CommandLookup) -> CommandsFound:
        """What a stream remembers of a command, in one trip shared with everyone who asks at the moment."""
        checked_stream_id(lookup.stream_id)
        return await self._open_calls.commands.ask(lookup)

    async def forget_commands(self, stream_id: str, *, keep: int = 0, before: datetime | None = None) -> int:
        """Forget the outcomes of commands that are not among the newest `keep` and, with `before` (aware), were stored
        before that. Returns how many. From then on such a command is answered with `CommandForgotten` if its id is a
        UUIDv7, which tells its age; any other would be handled again."""
        return await self._open.forget_commands(checked_stream_id(stream_id), keep=held(keep), before=before)

    # Ownership

    def lease(self, owner: Owner) -> Lease:
        """A lease for a process that is to own streams, to be used in another thread's event loop."""
        return self._open.lease(owner)

    async def claim_as(self, claim: Claim) -> int | Holder:
        """Take a stream's next writer epoch for an owner, in one trip shared with everyone who claims at the moment.
        Returns who holds it if that is somebody else. Raises `LeaseLost`."""
        checked_stream_id(claim.stream_id)
        return await self._open_calls.claims.ask(claim)

    async def release(self, owner: bytes, epochs: Mapping[str, int]) -> None:
        """Let others claim streams that the owner holds with these epochs."""
        await self._open.release(owner, epochs)

    async def owners(self) -> Sequence[OwnerInfo]:
        """Every process that holds a lease, or held one lately."""
        return await self._open.owners()

    def holdings(self, *, page_size: int = _PAGE) -> AsyncGenerator[Holding, None]:
        """Every stream that was claimed for an owner and not released, in the order of the ids' bytes."""
        return every(
            lambda after: self._open.holdings(after=after, limit=page_size),
            after="",
            key=lambda holding: holding.stream_id,
            page_size=page_size,
        )

    # Reading

    def read(
        self,
        stream_id: str,
        *,
        after: int = 0,
        through: int | None = None,
        limit: int | None = None,
        backwards: bool = False,
        page_size: int = _PAGE,
    ) -> AsyncGenerator[RecordedEvent, None]:
        """The events of one stream with after < version <= through, in version order, or falling if `backwards`.

        An unknown stream has none. What is appended meanwhile may or may not come, and what a truncation removes
        meanwhile does not, where it was not read yet: a version that does not follow the one before it tells that
        those between were removed. `limit` bounds the count.
        """
        return stream_events(
            lambda after, through, limit: self._open.read_stream(
                stream_id, after=after, through=through, limit=limit, backwards=backwards
            ),
            stream_id,
            after=after,
            through=through,
            limit=limit,
            backwards=backwards,
            page_size=page_size,
        )

    async def version(self, stream_id: str) -> int:
        """The stream's version: that of its newest event, also after truncation. 0 for an unknown stream."""
        page = await self._open.read_stream(
            checked_stream_id(stream_id), after=0, through=None, limit=0, backwards=False
        )
        return page.version

    async def head(self, stream_id: str) -> Loaded:
        """How far a stream has come, and up to which version it was truncated; neither events nor a snapshot."""
        return await self.load(Load(stream_id, use_snapshot=False, limit=0))

    def read_all(
        self,
        *,
        after: int = 0,
        last: int | None = None,
        limit: int | None = None,
        where: EventFilter = _EVERYTHING,
        page_size: int = _PAGE,
        on_damage: OnDamage | None = None,
    ) -> AsyncGenerator[RecordedEvent, None]:
        """The events of the whole log after a position, in position order, up to its end at that moment: those of the
        store's tenant, or of all if it was opened without one (`EventFilter.tenants` chooses some).

        What is removed meanwhile, before its page was read, does not come. `last` starts so that only the last so many
        matching events come. `limit` bounds the count. An event that is damaged ends the reading with
        `JournalCorrupt`; with `on_damage` it is passed over, after that was called with the error, which names stream,
        version and position.
        """
        log = LogReader(self.read_page, self._start_of_last, self.wait, on_damage)
        return log.up_to_now(after=after, last=last, limit=limit, where=where, page_size=page_size)

    async def read_page(self, *, after: int = 0, limit: int = _PAGE, where: EventFilter = _EVERYTHING) -> LogPage:
        """One page of the log: for readers that keep their own position (`LogPage.position`)."""
        checked_limit(limit)
        return await self._open.read_all(after=held(after), limit=held(limit), where=where)

    async def end(self) -> int:
        """Where the log ends, whosever the last event is: what is appended from now on stands behind it."""
        # From the first event on it would be looked for one of this tenant's.
        return (await self._open.read_all(after=_BEHIND_ALL, limit=1, where=_EVERYTHING)).end

    async def audit_page(
        self, query: AuditQuery, *, cursor: int | None = None, limit: int = _PAGE, backwards: bool = False
    ) -> AuditPage:
        """One page of what matches a query, rising behind a position, or falling before one. `eventstore.audit` has
        the questions that are made of these."""
        return await self._open.audit_page(query, cursor=cursor, limit=limit, backwards=backwards)

    async def audit_totals(self, query: AuditQuery, *, top: int) -> AuditTotals | None:
        """What the database itself can count of what matches. For `eventstore.audit.totals`."""
        return await self._open.audit_totals(query, top=top)

    async def moved(self, *, after: int, limit: int = 50_000) -> Moved:
        """Which of the store's own streams got events in the next `limit` positions of the log, and how far they are:
        for those who want to know what to look at again, and not what happened."""
        after = held(after)
        return await self._open.moved(after=after, limit=held(min(limit, MAX_POSITION - after)))

    async def wait(self, after: int, timeout: float) -> None:
        """Return when an event after the position may exist, at the latest after `timeout` seconds. It is a hint."""
        await self._open.wait(after, timeout)

    def subscribe(
        self,
        *,
        after: int = 0,
        last: int | None = None,
        where: EventFilter = _EVERYTHING,
        page_size: int = _PAGE,
        poll_seconds: float = 0.5,
        on_damage: OnDamage | None = None,
    ) -> AsyncGenerator[RecordedEvent, None]:
        """Every event after a position, once and in position order, and then every new one as it comes.

        It never ends by itself: while the database cannot be reached it tries again. Appends through this store
        are seen at once, those of other processes within `poll_seconds`. Keep `position` of the last event you
        have dealt with, and continue with `after=` that. Raises `StoreClosed` when the store is closed. A damaged
        event ends it with `JournalCorrupt`, or is passed over, as in `read_all`.
        """
        log = LogReader(self.read_page, self._start_of_last, self.wait, on_damage)
        return log.follow(after=after, last=last, where=where, page_size=page_size, poll_seconds=poll_seconds)

    async def _start_of_last(self, count: int, where: EventFilter) -> int:
        return await self._open.start_of_last(count, where)

    def decode(self, recorded: RecordedEvent) -> Event:
        """The event of a record, as its class has it now: older versions are read through their upcasters.

        Raises `UnknownEventType` or `EventDecodeError`, the latter too for one that an upcaster has split
        (`decode_parts`).
        """
        return decode_event(recorded)

    def decode_parts(self, recorded: RecordedEvent) -> Sequence[Event]:
        """The event of a record as it is today: several, in order, if an upcaster has split it.

        Raises `UnknownEventType` or `EventDecodeError`.
        """
        return decode_parts(recorded)

    async def streams(
        self, *, kind: str | None = None, tenants: Iterable[str] | None = None, page_size: int = _PAGE
    ) -> AsyncGenerator[StreamInfo, None]:
        """Every stream once, in the order of the ids' bytes; of one kind if given.

        They are the store's own. Opened without a tenant, it lists those of any `tenants`, one after the other; ""
        stands for its own.
        """
        for tenant in (self.tenant,) if tenants is None else tenants:
            if tenant:
                checked_tenant(tenant)
            async for info in self._streams_of(tenant, kind, page_size):
                yield info

    def _streams_of(self, tenant: str, kind: str | None, page_size: int) -> AsyncGenerator[StreamInfo, None]:
        return every(
            lambda after: self._open.streams(after=after, limit=page_size, kind=kind, tenant=tenant),
            after="",
            key=lambda info: info.stream_id,
            page_size=page_size,
        )

    def tenants(self, *, page_size: int = _PAGE) -> AsyncGenerator[str, None]:
        """Every tenant that has a stream, in the order of the names' bytes; "" first, for the streams of no tenant. A
        store with a tenant knows itself alone."""
        return every(
            lambda after: self._open.tenants(after=after, limit=page_size),
            after=cast("str | None", None),
            key=lambda tenant: tenant,
            page_size=page_size,
        )

    async def load(self, load: Load) -> Loaded:
        """What rebuilding one state needs, in one trip shared with everyone who asks at the moment."""
        checked_stream_id(load.stream_id)
        return await self._open_calls.loads.ask(load)

    # Projections

    async def checkpoints(self, *, shared: bool = False) -> Sequence[Checkpoint]:
        """How far every projection has come, in each version of its read model. With `shared`, those of the store
        without a tenant, whosever this one is."""
        return [Checkpoint.of(stored) for stored in await self._open.checkpoints(shared=shared)]

    async def stored_checkpoints(self) -> Sequence[StoredCheckpoint]:
        """The same as the database has them, damaged ones too."""
        return await self._open.checkpoints()

    async def save_checkpoint(self, checkpoint: Checkpoint) -> bool:
        """Save a checkpoint in place of the one it was made of. False if that has been changed since: nothing was done
        then."""
        return await self.change_checkpoints([checkpoint])

    async def change_checkpoints(self, saving: Sequence[Checkpoint], removing: Sequence[CheckpointKey] = ()) -> bool:
        """Save checkpoints, and forget others, in one step. False if one of them has been changed since it was read:
        nothing was done then."""
        return await self._open.change_checkpoints([each.stored() for each in saving], removing)

    # Seals (docs/tamper-evidence.md). They are of the whole journal: a store with a tenant raises `CapabilityError`.

    def removals(self, *, after: int = 0, page_size: int = _PAGE) -> AsyncGenerator[Removal, None]:
        """Every truncation of the journal, in the order in which they were done, behind the one with a number."""
        return every(
            lambda after: self._whole.removals(after=after, limit=page_size),
            after=after,
            key=lambda removal: removal.number,
            page_size=page_size,
        )

    async def add_seal(self, seal: StoredSeal) -> bool:
        """Store the next seal. False, and nothing was done, if its number is not the next: another one was faster."""
        return await self._whole.add_seal(seal)

    async def newest_seal(self) -> StoredSeal | None:
        """The seal with the greatest number."""
        found = await self._whole.seals(after=0, limit=1, backwards=True)
        return found[0] if found else None

    async def seal_after(self, number: int) -> StoredSeal | None:
        """The first seal with a greater number than this. With its list of leaves it is large."""
        found = await self._whole.seals(after=number, limit=1, backwards=False)
        return found[0] if found else None

    async def seals(self, *, after: int = 0) -> AsyncGenerator[StoredSeal, None]:
        """Every seal, by number, after one. They are large, and come one at a time."""
        while (found := await self.seal_after(after)) is not None:
            yield found
            after = found.number

    async def statistics(self) -> Statistics:
        """Counts of what the whole journal holds, whoever's it is."""
        return await self._open.statistics()

    # Snapshots

    async def save_snapshot(self, snapshot: Snapshot, *, keep: int = 2, epoch: int | None = None) -> bool:
        """Store a state, and remove all but the newest `keep`. One of the same version is replaced.

        Where the events that a snapshot stands for were removed, the newest of each other schema stays too, and is not
        replaced, for the code that has that schema. Returns whether the state is there now: not where one of these
        stands, nor where `keep` newer ones do.

        Raises `PayloadTooLarge`; with an `epoch`, `FencedError` once a newer one has been claimed. A snapshot is only
        an optimisation: a failure here loses nothing.
        """
        checked_stream_id(snapshot.stream_id)
        if len(snapshot.data) < COMPRESS_FROM_BYTES:
            # It takes less time than the way to a thread and back.
            stored = pack(snapshot, limit=self.max_snapshot_bytes)
        else:
            stored = await asyncio.to_thread(pack, snapshot, limit=self.max_snapshot_bytes)
        return await self._open.save_snapshot(stored._replace(epoch=epoch or 0), keep=keep)

    async def snapshots(
        self, stream_id: str, *, through: int | None = None, limit: int = 10
    ) -> Sequence[Snapshot | SnapshotUnusable]:
        """The newest snapshots of at most version `through`, newest first. A damaged one is given as its error."""
        checked_limit(limit)
        newest = None if through is None else held(through)
        stored = await self._open.read_snapshots(checked_stream_id(stream_id), through=newest, limit=held(limit))
        return [unpacked(packed, limit=self.max_snapshot_bytes) for packed in stored]

    async def delete_snapshots(self, stream_id: str, *, through: int | None = None) -> int:
        """Remove snapshots of at most version `through`, all if None. Returns how many."""
        newest = None if through is None else held(through)
        return await self._open.delete_snapshots(checked_stream_id(stream_id), through=newest)

    def archive(self) -> Archive:
        """The journal's records as they are stored, and its fence: for tools that copy whole journals. Raises
        `CapabilityError` where `capabilities.archive` is off, and `CopyRefused` where the store was opened for a
        tenant: the records are everybody's."""
        if self.tenant:
            raise CopyRefused(
                f"this store was opened for tenant {self.tenant!r}, and a journal is copied and fenced whole: nothing "
                "was done; open it without a tenant"
            )
        return self._open.archive()

    async def identity(self) -> str:
        """What tells this store's journal from every other one, however it was addressed and whichever tenant's it is
        (`Archive.identity`). Raises `CapabilityError` where `capabilities.archive` is off."""
        return await self._open.archive().identity()

    @property
    def max_snapshot_bytes(self) -> int:
        """The limit on a state's JSON: sixteen times that of an event."""
        return 16 * self.max_payload_bytes

    @property
    def _open(self) -> Backend:
        if self._guarded is None:
            raise _closed()
        return self._guarded

    @property
    def _whole(self) -> Backend:
        if self.tenant:
            raise CapabilityError(
                "seals and the record of truncations are of the whole journal, and this store was opened for a tenant: "
                "nothing was done; open it without one"
            )
        return self._open

    @property
    def _open_calls(self) -> GroupCalls:
        if self._calls is None:
            raise _closed()
        # Somebody asks already, it may be in vain: who joins him here would wait for ever.
        if asyncio.get_running_loop() is not self._open_commits.loop or self.is_forked:
            raise _elsewhere()
        return self._calls

    @property
    def _open_commits(self) -> GroupCommit:
        if self._commits is None:
            raise _closed()
        return self._commits


def _elsewhere() -> StoreClosed:
    return StoreClosed(
        "this store was opened in another event loop, or before a fork: nothing was done; open one in each"
    )


def _closed() -> StoreClosed:
    return StoreClosed("the store is not open: use it inside `async with EventStore.open(url) as store`")
