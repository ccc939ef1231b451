"""ReplicatedCell: a live actor that other replicas change as well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from actors.actor import PersistentActor
from actors.cells.cell import Cell
from actors.cells.cell_runtime import CellRuntime
from actors.cells.commit import Commit
from actors.cells.mailbox import Hold
from actors.cells.phase import Phase
from actors.handlers import unhandled
from actors.handling import Handling, deciding
from actors.replaying.unfoldable import UNFOLDABLE, unfoldable
from actors.replicas.convergence import Entry, History
from actors.replicas.incoming import as_stored, new_events
from actors.replicas.membership import Membership
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_recovery import (
    Found,
    extend,
    newer_entries,
    pack_base,
    read_history,
)
from actors.told_error import told_error
from eventstore.backend import CommandOutcome, EncodedEvent, StreamWrite
from eventstore.codec import encode_event
from eventstore.errors import (
    ConcurrencyError,
    EventStoreError,
    FencedError,
    RecoveryError,
    TransactionError,
)
from eventstore.events import Event, RecordedEvent, Snapshot
from eventstore.stamp import Stamp, time_after
from eventstore.store import EventStore
from eventstore.vector_clock import EMPTY, VectorClock


class ReplicatedCell(Cell):
    """Its events carry a stamp, and its state is that of its `history`, which events of other replicas are merged into.

    `heard` is what each other replica knows of the stream, as far as it was heard of.
    """

    __slots__ = ("_durable", "_membership", "_saver", "_waiting", "heard", "history")

    version: int
    _durable: int

    def __init__(
        self,
        runtime: CellRuntime,
        cls: type[PersistentActor[Any]],
        stream_id: str,
        *,
        membership: Membership,
        saver: Callable[[Cell, Snapshot], None],
    ) -> None:
        super().__init__(runtime, cls, stream_id)
        self._membership = membership
        self._saver = saver
        self._durable = 0
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self.heard: dict[str, VectorClock] = {}
        self.history: History

    @property
    def _replicated(self) -> ReplicatedActor[Any]:
        return cast("ReplicatedActor[Any]", self.actor)

    # Recovery

    async def rebuild(self, store: EventStore, *, reaching: Sequence[Stamp] = ()) -> PersistentActor[Any]:
        """Bring the actor to what the journal says, from its initial state."""
        phase = self.phase
        actor = self.start_anew()
        if phase in (Phase.HANDLING, Phase.HELD):
            self.phase = phase
        found = await read_history(
            store, self._replicated, self, reaching=reaching, page_timeout=self._membership.page_timeout
        )
        self.history = found.history
        self._durable = self.version
        self._hear_all(found)
        return actor

    def _hear_all(self, found: Found) -> None:
        for replica, clock in found.heard.items():
            self.hear(replica, clock)
        for entry in found.history.entries:
            self.hear(entry.stamp.origin, entry.stamp.clock)

    async def catch_up_with(self, store: EventStore) -> None:
        """Bring the live actor to what another process of this replica has stored meanwhile. Raises `RecoveryError`."""
        try:
            await self._catch_up_with(store)
        except UNFOLDABLE as error:
            raise unfoldable(self.stream_id, error) from error

    async def _catch_up_with(self, store: EventStore) -> None:
        entries = await newer_entries(store, self.history, self, page_timeout=self._membership.page_timeout)
        if entries:
            # One that was broken off before may have put the first of them in their places already.
            new = [entry for entry in entries if not self.history.knows(entry.stamp)]
            if not self.history.reaches(entry.stamp for entry in new):
                await self.rebuild(store)
                return
            await extend(self.history, new)
            self.version += len(entries)
            self._durable = self.version
            for entry in entries:
                self.hear(entry.stamp.origin, entry.stamp.clock)

    # Events of this replica

    def stage(self, events: tuple[Event, ...]) -> Awaitable[None]:
        """As for every actor, and each event gets its stamp. Those of one command have one time, so that nothing comes
        between them on any replica."""
        if not self._is_deciding or (self._decision is not None and deciding.get() is not self._decision):
            raise self._no_handler()
        if self._failure is not None:
            raise self._failure
        if (refused := self._membership.refusal) is not None:
            raise refused
        commits = self._runtime.commits
        if commits.is_refusing and (refusal := commits.refusal()) is not None:
            self._refusal = refusal
            raise refusal
        staged = [] if self._staged is None else self._staged
        added = self._stamped(events, staged)
        # From here on the state differs from the journal until the events are stored.
        self._is_touched = True
        self._is_deciding = False
        try:
            for event, (encoded, stamp) in zip(events, added, strict=True):
                self.version += 1
                self.history.append(_entry(encoded, stamp, self.version), event)
        except BaseException as error:
            self._failure = told_error(error, self.stream_id)
            raise
        self._is_deciding = True
        staged.extend(encoded for encoded, _ in added)
        self._staged = staged
        return self

    def _stamped(
        self, events: tuple[Event, ...], staged: Sequence[EncodedEvent]
    ) -> Sequence[tuple[EncodedEvent, Stamp]]:
        history, replica = self.history, self._membership.replica
        time = history.latest if staged else time_after(history.latest, self._membership.wall)
        clock = history.clock
        batch_id = staged[0].batch_id if staged else None
        metadata = self._notes()
        added: list[tuple[EncodedEvent, Stamp]] = []
        for event in events:
            if event.__class__ not in self.cls.handlers.events:
                raise unhandled(self.cls, event)
            clock = clock.incremented(replica)
            stamp = Stamp(replica, clock[replica], clock, time)
            encoded = encode_event(
                event,
                metadata,
                limit=self._runtime.max_payload_bytes,
                batch_id=batch_id,
                replica=stamp.fields(concurrent=False),
            )
            batch_id = encoded.batch_id
            added.append((encoded, stamp))
        return added

    def outcome_known(self, stored: Commit | None) -> None:
        """What this replica has written is durable: the others may fetch it."""
        if stored is not None:
            self._durable = max(self._durable, stored.version + len(stored.events))
            is_due, stored.snapshot = stored.snapshot is not None, None
            self._settle(is_due=is_due)
        super().outcome_known(stored)

    def stored(self, before: int, outcome: CommandOutcome | None) -> None:
        """A transaction's part, or a merge, is durable."""
        policy = self.cls.snapshot_policy
        self._durable = self.version
        is_due = False
        try:
            is_due = policy.is_due(self.actor.state, before, self.version)
        except Exception as error:
            # It is only an optimisation, and a policy of the user's own may fail in any way.
            self._runtime.loop.call_exception_handler({"message": "a snapshot policy failed", "exception": error})
        self._pipeline.sent_version = self.version
        if outcome is not None:
            self._remember(outcome)
            self._runtime.command_remembered(self, outcome)
        self._settle(is_due=is_due)

    # Events of others

    def hear(self, replica: str, clock: VectorClock) -> None:
        """Another replica is known to know so much of the stream."""
        if replica != self._membership.replica:
            known = self.heard.get(replica)
            self.heard[replica] = clock if known is None else known.merge(clock)

    def heard_more(self) -> None:
        """Let those go on who waited for what is known now."""
        for future, is_reached in self._waiting.items():
            if not future.done() and is_reached():
                future.set_result(None)
        if hasattr(self, "history"):
            self._settle(is_due=False)

    async def until(self, is_reached: Callable[[], bool]) -> None:
        """Wait until something is known of the stream. The caller has the deadline."""
        if not is_reached():
            future: asyncio.Future[None] = self._runtime.new_reply()
            self._waiting[future] = is_reached
            try:
                await future
            finally:
                del self._waiting[future]

    @property
    def others(self) -> Sequence[str]:
        """The other replicas that take part."""
        return self._membership.others

    @property
    def clock(self) -> VectorClock:
        """What is known here, stored or on its way; nothing while there is no history."""
        return self.history.clock if hasattr(self, "history") else EMPTY

    @property
    def certain_clock(self) -> VectorClock | None:
        """What of other replicas is stored here. None while that is not certain: it is being merged or recovered."""
        is_certain = self.phase in (Phase.LIVE, Phase.HANDLING) and not self.is_spoilt
        return self.history.clock if is_certain else None

    async def stored_clock(self, age: int) -> VectorClock:
        """What is stored here once all is that was decided before. Raises why the actor cannot serve."""
        await self._be_held(age)
        clock = self.history.clock
        self.release()
        return clock

    def differs(self, events: Sequence[RecordedEvent], stamps: Sequence[Stamp]) -> bool:
        """Whether others than those that are known here came under their numbers."""
        held = (self.history.find(stamp.origin, stamp.sequence) for stamp in stamps)
        return any(
            entry is not None and entry.event_id != recorded.event_id.bytes
            for entry, recorded in zip(held, events, strict=True)
        )

    def known_by(self, clock: VectorClock) -> list[str]:
        """The replicas that are known to know all that a clock does. The first is this one."""
        others = [name for name in self._membership.others if name in self.heard and self.heard[name].covers(clock)]
        return [self._membership.replica, *others]

    async def merge(self, store: EventStore, events: Sequence[RecordedEvent], age: int) -> int:
        """Store what is new of another replica's log, in its order, and put it in its place. Returns how much was new.

        The actor serves nobody meanwhile. Raises `Gap`, `ReplicaRefused`, or why it cannot be stored now: then it is as
        before.
        """
        await self._be_held(age)
        failure: EventStoreError | None = None
        try:
            has_own = self._has_own(events)
            await self.catch_up(is_fresh=has_own)
            if has_own and self.epoch is not None:
                failure = TransactionError(f"{self.stream_id!r}: it was not found out whether it is owned elsewhere")
                await self._be_owner(store)
                failure = None
            new = self._new(events)
            if new:
                failure = TransactionError(f"{self.stream_id!r}: what was to be merged was not stored")
                if not self.history.reaches(stamp for _, stamp in new):
                    await self.rebuild(store, reaching=[stamp for _, stamp in new])
                    # Another process of this replica may have stored some of it meanwhile.
                    new = self._new(events)
                if new:
                    await self._store_merged(store, new)
                failure = None
            return len(new)
        except FencedError as error:
            failure = error
            raise
        finally:
            self._staged = None
            self._is_touched = False
            self.release(failure)

    async def _be_held(self, age: int) -> None:
        with self.queued(Hold(self._runtime.new_reply(), Handling(), age)) as granted:
            await granted

    async def _store_merged(self, store: EventStore, new: Sequence[tuple[RecordedEvent, Stamp]]) -> None:
        before = self.version
        known = self.history.clock
        encoded: list[EncodedEvent] = []
        entries: list[Entry] = []
        for recorded, stamp in new:
            event = as_stored(recorded, stamp, concurrent=not stamp.clock.covers(known))
            known = known.merge(stamp.clock)
            encoded.append(event)
            entries.append(_entry(event, stamp, before + len(encoded)))
        self.version += len(encoded)
        await extend(self.history, entries)
        encoded += self._afterthought()
        appended = await store.append_writes([StreamWrite(self.stream_id, before, encoded, self.epoch)])
        if appended.versions != (self.version,):
            # Another process of this replica has stored the very same events, behind others that are not known here.
            raise ConcurrencyError(self.stream_id, before, appended.versions[0])
        for _, stamp in new:
            self.hear(stamp.origin, stamp.clock)
        self.stored(before, None)

    def _has_own(self, events: Sequence[RecordedEvent]) -> bool:
        """Whether events came back that this replica has written, as it seems, and this process does not know: another
        process of it has, if they are in the journal."""
        own = self._membership.replica
        known = self.history.clock[own]
        return any(recorded.origin == own and (recorded.origin_sequence or 0) > known for recorded in events)

    async def _be_owner(self, store: EventStore) -> None:
        """Raise `ConcurrencyError` if another process has taken the stream over and written to it. An owner does not
        look before it serves, so it is this that tells."""
        before = self.version
        await self.catch_up_with(store)
        if self.version != before:
            raise ConcurrencyError(self.stream_id, before, self.version)

    def _new(self, events: Sequence[RecordedEvent]) -> list[tuple[RecordedEvent, Stamp]]:
        return new_events(events, self.history, own=self._membership.replica, stream_id=self.stream_id)

    def _afterthought(self) -> list[EncodedEvent]:
        """What the actor persists about what was merged."""
        actor = self._replicated
        if not (actor.has_afterthought and self._membership.is_first):
            return []
        error: BaseException | None = None
        self._metadata = self._identity = None
        self._is_deciding = True
        try:
            actor.after_merge()
        except BaseException as raised:
            error = told_error(raised, self.stream_id)
        staged, failure = self.end_decision(error)
        if failure is not None:
            if not isinstance(failure, Exception):
                raise failure
            raise _afterthought_failed(self.stream_id, failure) from failure
        return staged

    # Snapshots

    def _settle(self, *, is_due: bool) -> None:
        if not hasattr(self, "history") or self._failure is not None or self.phase is Phase.STOPPED:
            return
        known = self.history.clock
        for name in self._membership.others:
            known = known.meet(self.heard.get(name, EMPTY))
        base = self.history.settle(known, through=self._durable, is_forced=is_due)
        if is_due and base.version and base.state is not None:
            self._saver(self, pack_base(self._replicated, self.stream_id, base, self.heard))

    def snapshot_on_passivation(self) -> bytes | None:
        """The snapshot of a replicated actor holds more than its state, and is saved here."""
        if self.cls.snapshot_policy.on_passivation and self.version:
            self._settle(is_due=True)
        return None

    # Life cycle

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being done or waited for, so that the actor may leave memory."""
        return super().is_idle and all(future.done() for future in self._waiting)

    def _let_go(self) -> None:
        super()._let_go()
        if hasattr(self, "history"):
            del self.history


def _afterthought_failed(stream_id: str, error: Exception) -> RecoveryError:
    return RecoveryError(
        stream_id, f"after_merge raised {type(error).__name__} when events of other replicas were merged: {error}"
    )


def _entry(event: EncodedEvent, stamp: Stamp, version: int) -> Entry:
    return Entry(
        stamp.key, stamp, event.event_id, version, event.type, event.schema_version, event.payload, event.checksum
    )
