"""GuardedSqlTransaction: a backend's transaction as the store gives it out: its commit always has an outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from eventstore.backend import AppendOutcome, Batch, StoredCheckpoint
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.calls.finishing import finish_then_cancel
from eventstore.calls.resolving import find_out
from eventstore.calls.wrapped_transaction import WrappedTransaction
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import EventStoreError, OutcomeUnknown


class GuardedSqlTransaction(WrappedTransaction):
    """A commit runs in a task of the store's own (one of `commits`), so that it ends when its caller does not wait.

    It is not refused while the breaker is open, because the transaction is: it has to come to an end either way. But
    the breaker learns from it.
    """

    def __init__(
        self,
        transaction: SqlTransaction,
        breaker: CircuitBreaker,
        commits: set[asyncio.Future[AppendOutcome]],
        *,
        resolve_within: float,
    ) -> None:
        super().__init__(transaction)
        self._breaker = breaker
        self._commits = commits
        self._resolve_within = resolve_within

    async def commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint] = ()) -> AppendOutcome:
        task = asyncio.ensure_future(self._commit(batch, checkpoints))
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        return await finish_then_cancel(task)

    async def _commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint]) -> AppendOutcome:
        try:
            outcome = await self._transaction.commit(batch, checkpoints)
        except OutcomeUnknown as error:
            self._breaker.failed(error)
            return await find_out(lambda: self._transaction.commit(batch, checkpoints), within=self._resolve_within)
        except EventStoreError as error:
            self._breaker.failed(error)
            raise
        self._breaker.answered()
        return outcome
