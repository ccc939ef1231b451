"""SqlTransaction: SQL statements of the user's own and a batch of events, in one commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from eventstore.contract.append_outcome import AppendOutcome
from eventstore.contract.event_filter import EventFilter
from eventstore.contract.journal_facts import StoredCheckpoint
from eventstore.contract.pages import LogPage
from eventstore.contract.writes import Batch

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class Unread(NamedTuple):
    """Asks for the events that a filter lets through behind a checkpoint, at most so many."""

    name: str
    version: int
    where: EventFilter
    limit: int


class Stored(NamedTuple):
    """What came of batches, and for each checkpoint that was asked for the events behind it, these batches at their
    end."""

    outcomes: Sequence[AppendOutcome]
    unread: Sequence[tuple[StoredCheckpoint, LogPage]] = ()


class SqlTransaction(Protocol):
    """A transaction that is open on a connection of its own, until `commit`, `rollback`, or until its time is over.

    It belongs to the event loop it was begun in. One task uses it at a time.
    """

    @property
    def connection(self) -> AsyncConnection:
        """Where the user's statements are executed. Savepoints (`begin_nested`) are the user's own; the transaction is
        not: `commit` and `rollback` of the connection are refused with `CapabilityError`, and end nothing.

        A statement raises SQLAlchemy's error, unless the fault is not the statement's: `TransactionExpired`,
        `TransactionConflict` (a deadlock, a serialization failure), `StoreBusy` (a lock that was not to be had),
        `BackendUnavailable`. After one of these nothing was stored, and the transaction can only be rolled back.
        """
        ...

    async def commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint] = ()) -> AppendOutcome:
        """Store the batch, and commit it together with the user's statements and with the checkpoints
        (`save_checkpoint`). If one of these was changed by somebody else, raises `TransactionConflict`.

        With any other outcome than `Appended`, and after any error, all of it is rolled back: the user's statements
        too. So are these where the batch had been stored before (`Appended.is_duplicate`), for they were committed
        with it then. Writes may have no events, and assert a version or bring outcomes of commands alone; no other
        append comes between that check and the commit. Streams are locked only now, in an order that all appends keep.

        Raises what a statement raises; `TransactionRefused` where the database would not commit the user's
        statements. All of these have stored nothing. A caller that is cancelled waits for the outcome, and is
        cancelled then.

        `OutcomeUnknown` says that it was told to commit and did not answer. A backend's transaction is then asked to
        commit the same batch again: it stores nothing, but finds out. It raises `OutcomeUnknown` as long as it cannot,
        and `BackendUnavailable` once it is certain that nothing was stored and nothing will be. The store does that.
        """
        ...

    async def store(self, batches: Sequence[Batch], unread: Sequence[Unread] = ()) -> Stored:
        """Store batches as `Backend.append` does, and leave the transaction open: `commit(())` commits them.

        Before that the checkpoints are locked (`lock_checkpoint`), one after another, and behind it the log is read
        from each, as by `Backend.read_all`; a page's `position` and `end` are those of the last event that was read.

        Called once. From here to the end of the transaction nobody else appends, so that what is read is the whole
        log, these events at its end. A batch that is refused, or was stored before, stores nothing. Raises what a
        statement raises, and `TransactionConflict` where something else has changed a stream meanwhile, or one of the
        checkpoints is not there.
        """
        ...

    async def lock_checkpoint(self, name: str, version: int) -> StoredCheckpoint | None:
        """The checkpoint, if there is one, which nobody else changes until the transaction ends.

        Whoever appends as well does this first (`store`)."""
        ...

    async def save_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        """As `Backend.change_checkpoints` saves one, and it is committed or rolled back with everything else. Who wants
        to save over the same one meanwhile waits for the end of this transaction. Raises what a statement raises."""
        ...

    async def delete_checkpoint(self, name: str, version: int, revision: int) -> bool:
        """As `Backend.change_checkpoints` removes one, in this transaction."""
        ...

    async def rollback(self) -> None:
        """Undo everything that is not committed, and let go of the connection. Doing it again does nothing."""
        ...
