"""InlineProjections: read models that are written in the transaction that stores their events."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from eventstore.backend import Appended, AppendOutcome, Backend, Batch, StoredCheckpoint
from eventstore.calls.wrapped_transaction import WrappedTransaction
from eventstore.contract.checkpoint import Checkpoint, Status, version_of
from eventstore.contract.record_page import RecordPage
from eventstore.contract.sql_transaction import SqlTransaction, Unread
from eventstore.errors import (
    CapabilityError,
    DefinitionError,
    EventStoreError,
    OutcomeUnknown,
    ProjectionError,
    ProjectionFailed,
    ProjectionStopped,
    StoreBusy,
    TransactionConflict,
    TransactionError,
    TransactionRefused,
)
from eventstore.events import RecordedEvent, stream_kind
from eventstore.projections import Projection
from eventstore.read_models.applying import TRANSACTION_SECONDS
from eventstore.read_models.beginning import check_class
from eventstore.read_models.delivering import Poison, handle_events
from eventstore.read_models.projection_runner import ProjectionRunner
from eventstore.store import EventStore

# So many positions that others have stored are looked through while everybody who appends waits. More are caught up
# with before.
_MOST_BEHIND = 1000

# How often a group begins anew because others are in its way, or a projection has to catch up.
_ROUNDS = 8


class InlineProjections:
    """Applies projections in each transaction that appends events of their kinds through a store.

    A group of appends is one transaction. It locks the projection's checkpoint, keeps everybody else from appending,
    stores its events, and applies all that the log has behind the checkpoint: its own, and before them what others have
    stored who do not apply the projection. So the read model gets each event once and in the order of the log, whoever
    stores it, and runners and rebuilds may work beside it.

    Raises `CapabilityError` for a store without SQL.
    """

    def __init__(self, store: EventStore, projections: Sequence[type[Projection]]) -> None:
        if not store.capabilities.user_sql:
            raise CapabilityError(
                f"{store.url.scheme}:// has no SQL, so no read model can be written together with events: run "
                "projections beside it (ProjectionRunner), or use Postgres or SQLite"
            )
        for projection in projections:
            check_class(projection, "an inline projection is")
        names = [projection.name for projection in projections]
        if len(set(names)) < len(names):
            raise DefinitionError(f"inline projections with one name would share a read model: {', '.join(names)}")
        for projection in projections:
            if projection.partitions > 1:
                raise DefinitionError(
                    f"{projection.__qualname__} has {projection.partitions} partitions, and an inline projection gets "
                    "events in the order of the log, one commit after the other: leave partitions=… out"
                )
        self._store = store
        # Everybody locks checkpoints in the same order.
        self._projections = sorted(projections, key=lambda projection: projection.name)
        self._filters = {projection.name: projection.where() for projection in projections}
        self._versions: dict[str, int] = {}

    async def open(self) -> None:
        """Bring every projection to the end of the log, and apply it in all appends from now on.

        The first time that may take long; `eventstore projections run` does it beforehand. One that is paused refuses
        the appends of its kinds. Raises what `ProjectionRunner.run` raises besides, and `DefinitionError` for a store
        that has inline projections already.
        """
        for projection in self._projections:
            with suppress(ProjectionStopped):
                await self._catch_up(projection)
        self._store.append_through(self.append)

    def close(self) -> None:
        """Apply them no more."""
        self._store.append_through(None)

    def within(self, transaction: SqlTransaction) -> SqlTransaction:
        """A transaction that applies them at its commit."""
        return _InlineTransaction(transaction, self)

    async def append(self, backend: Backend, batches: Sequence[Batch]) -> Sequence[AppendOutcome | EventStoreError]:
        """Store a group as `Backend.append` does. A batch whose events cannot be applied is refused with
        `ProjectionFailed`, one of a projection that is paused with `ProjectionStopped`; the others are stored each in a
        transaction of its own then."""
        concerned = self.concerned(batches)
        if not concerned:
            return await backend.append(batches)
        try:
            return await self._append(backend, concerned, batches)
        except ProjectionError as error:
            if len(batches) == 1:
                return [error]
        outcomes: list[AppendOutcome | EventStoreError] = []
        for batch in batches:
            try:
                outcomes += await self._append(backend, self.concerned([batch]), [batch])
            except ProjectionError as error:
                outcomes.append(error)
            except EventStoreError as error:
                # Of those before it some are stored, so the group has no outcome; they are found when it comes again.
                raise OutcomeUnknown(f"a group of appends was broken off between two of them: {error}") from error
        return outcomes

    def concerned(self, batches: Sequence[Batch]) -> list[type[Projection]]:
        """The projections of the kinds of streams that events come to. Types and tags do not matter here: a checkpoint
        that stands behind every event of its kinds lets these be truncated."""
        kinds = {stream_kind(write.stream_id) for batch in batches for write in batch if write.events}
        return [one for one in self._projections if kinds and (not one.kinds or not kinds.isdisjoint(one.kinds))]

    async def _append(
        self, backend: Backend, projections: Sequence[type[Projection]], batches: Sequence[Batch]
    ) -> Sequence[AppendOutcome]:
        if not projections:
            return await backend.append(batches)
        for number in range(1, _ROUNDS + 1):
            transaction = await backend.begin_sql(seconds=TRANSACTION_SECONDS)
            try:
                outcomes, applied = await self.store_and_apply(transaction, projections, batches)
                if applied is not None:
                    await self.commit(transaction, applied)
                return outcomes
            except Behind as behind:
                late = behind.late
            except TransactionConflict:
                if number == _ROUNDS:
                    raise
                continue
            finally:
                await transaction.rollback()
            await self._catch_up(late)
        raise StoreBusy("others stored more events every time than an inline projection can catch up with in a commit")

    async def store_and_apply(
        self, transaction: SqlTransaction, projections: Sequence[type[Projection]], batches: Sequence[Batch]
    ) -> tuple[Sequence[AppendOutcome], Sequence[StoredCheckpoint] | None]:
        """Store batches in a transaction, and apply the projections. It is to be committed with their checkpoints then,
        or rolled back; None instead of them: nothing was stored.

        Raises `Behind`, `ProjectionFailed`, `ProjectionStopped`, and what a statement raises."""
        # As many positions hold no more events, so that one page has them all.
        limit = _MOST_BEHIND + sum(len(write.events) for batch in batches for write in batch)
        unread = [Unread(one.name, await self._version(one), self._filters[one.name], limit) for one in projections]
        try:
            outcomes, found = await transaction.store(batches, unread)
        except TransactionConflict:
            # A rebuild may have put another version in the place of one.
            self._versions.clear()
            raise
        is_stored = False
        new: set[bytes] = set()
        end = 0
        for batch, outcome in zip(batches, outcomes, strict=True):
            if isinstance(outcome, Appended) and not outcome.is_duplicate:
                is_stored = True
                new.update(event.event_id for write in batch for event in write.events)
                end = max(end, outcome.position)
        if not new:
            # Beside events that were refused there may be the outcome of a command that has none.
            return outcomes, () if is_stored else None
        applied: list[StoredCheckpoint] = []
        for projection, (stored, page) in zip(projections, found, strict=True):
            checkpoint = Checkpoint.of(stored)
            if checkpoint.status is not Status.LIVE:
                self._versions.clear()
                raise TransactionConflict(f"projection {projection.name!r} is being rebuilt: nothing was stored")
            applied.append(await _apply(transaction, projection, checkpoint, page.events, new, end=end, limit=limit))
        return outcomes, applied

    async def commit(self, transaction: SqlTransaction, applied: Sequence[StoredCheckpoint]) -> None:
        """Commit what was stored and applied."""
        try:
            await transaction.commit((), applied)
        except (TransactionRefused, TransactionError) as error:
            # A constraint that is looked at only now, or handlers that took too long.
            raise ProjectionFailed(", ".join(one.name for one in applied), error) from error

    async def _version(self, projection: type[Projection]) -> int:
        """Which version is live, as far as is known."""
        name = projection.name
        if name not in self._versions:
            live = version_of(await self._store.checkpoints(), name, Status.LIVE)
            if not live:
                raise Behind(projection)
            self._versions[name] = live[0].version
        return self._versions[name]

    async def catch_up_with(self, behind: Behind) -> None:
        """Bring a projection forward that was too far behind."""
        await self._catch_up(behind.late)

    async def _catch_up(self, projection: type[Projection]) -> None:
        await ProjectionRunner(self._store, projection).run(follow=False)


async def _apply(
    transaction: SqlTransaction,
    projection: type[Projection],
    checkpoint: Checkpoint,
    unread: Sequence[RecordedEvent],
    new: set[bytes],
    *,
    end: int,
    limit: int,
) -> StoredCheckpoint:
    """Apply what the log has behind a checkpoint, up to its end, which the new events are. Returns it as it is to be
    saved."""
    if checkpoint.pause is not None:
        raise ProjectionStopped(checkpoint.name, f"{checkpoint.pause}; it is inline, so nothing was stored")
    if end - checkpoint.position > limit:
        raise Behind(projection)
    page = RecordPage.of(unread)
    behind = checkpoint.behind(end, len(page), page.checksum)
    try:
        if page:
            await handle_events(projection, behind, page, transaction.connection)
    except Poison as poison:
        if any(recorded.event_id.bytes not in new for recorded in page):
            # It may be an event that somebody else has stored. A runner finds out, and does with it what is to be done.
            raise Behind(projection) from poison
        cause = poison.__cause__ or poison
        raise ProjectionFailed(projection.name, cause) from cause
    return behind.stored()


class Behind(ProjectionError):
    """The projection has to catch up first: nothing was stored."""

    def __init__(self, late: type[Projection]) -> None:
        super().__init__(f"projection {late.name!r} has to catch up first: nothing was stored")
        self.late = late


class _InlineTransaction(WrappedTransaction):
    """A transaction with statements of the user's own. Its commit stores a batch and applies the projections."""

    def __init__(self, transaction: SqlTransaction, inline: InlineProjections) -> None:
        super().__init__(transaction)
        self._inline = inline

    async def commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint] = ()) -> AppendOutcome:
        concerned = self._inline.concerned([batch])
        if not concerned:
            return await self._transaction.commit(batch, checkpoints)
        try:
            (outcome,), applied = await self._inline.store_and_apply(self._transaction, concerned, [batch])
            if applied is not None:
                await self._inline.commit(self._transaction, [*applied, *checkpoints])
            return outcome
        except Behind as behind:
            # It holds what the user's statements have locked, and they must not be run again from here.
            await self._transaction.rollback()
            await self._inline.catch_up_with(behind)
            raise TransactionConflict(f"{behind}; run the transaction again") from behind
