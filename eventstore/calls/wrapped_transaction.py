"""WrappedTransaction: a transaction that does what another does, but for its commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eventstore.backend import AppendOutcome, Batch, StoredCheckpoint
from eventstore.contract.sql_transaction import SqlTransaction, Stored, Unread

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection


class WrappedTransaction(ABC):
    """A `SqlTransaction`."""

    def __init__(self, transaction: SqlTransaction) -> None:
        self._transaction = transaction

    @property
    def connection(self) -> AsyncConnection:
        return self._transaction.connection

    @abstractmethod
    async def commit(self, batch: Batch, checkpoints: Sequence[StoredCheckpoint] = ()) -> AppendOutcome: ...

    async def store(self, batches: Sequence[Batch], unread: Sequence[Unread] = ()) -> Stored:
        return await self._transaction.store(batches, unread)

    async def lock_checkpoint(self, name: str, version: int) -> StoredCheckpoint | None:
        return await self._transaction.lock_checkpoint(name, version)

    async def save_checkpoint(self, checkpoint: StoredCheckpoint) -> bool:
        return await self._transaction.save_checkpoint(checkpoint)

    async def delete_checkpoint(self, name: str, version: int, revision: int) -> bool:
        return await self._transaction.delete_checkpoint(name, version, revision)

    async def rollback(self) -> None:
        await self._transaction.rollback()
