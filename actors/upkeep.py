"""Upkeep: what is written for live actors beside their commits: snapshots, and that old commands are forgotten.

Nobody waits for it and nothing is lost without it, so its failures are logged; the next occasion will do as well.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from actors.cells.living_cell import LivingCell
from actors.owned_tasks import OwnedTasks
from actors.retention import CommandRetention
from eventstore.backend import CommandOutcome
from eventstore.errors import EventStoreError
from eventstore.events import Snapshot
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# One in so many remembered commands has the oldest of its actor forgotten.
_FORGOTTEN_EVERY = 64


class Upkeep:
    """At most one save and one forgetting for each actor at a time: while one is under way, the next is left out."""

    def __init__(self, store: EventStore, tasks: OwnedTasks) -> None:
        self._store = store
        self._tasks = tasks
        self._saving: dict[str, asyncio.Task[None]] = {}
        self._forgetting: set[str] = set()

    @property
    def saves(self) -> list[asyncio.Task[None]]:
        """The saves under way."""
        return list(self._saving.values())

    def save(self, cell: LivingCell, version: int, data: bytes) -> None:
        """Store a state."""
        if cell.stream_id not in self._saving:
            self.save_packed(cell, new_snapshot(cell.stream_id, version, cell.cls.state_type.fingerprint, data))

    def save_packed(self, cell: LivingCell, snapshot: Snapshot) -> None:
        """The same for a state that is a snapshot already."""
        if cell.stream_id not in self._saving:
            work = self._save(snapshot, keep=cell.cls.snapshot_policy.keep, epoch=cell.epoch)
            self._saving[cell.stream_id] = self._tasks.start(work)

    async def _save(self, snapshot: Snapshot, *, keep: int, epoch: int | None) -> None:
        stream_id = snapshot.stream_id
        try:
            await self._store.save_snapshot(snapshot, keep=keep, epoch=epoch)
        except EventStoreError:
            logger.exception("%s: the snapshot at version %d was not saved", stream_id, snapshot.version)
        finally:
            self._saving.pop(stream_id, None)

    def command_remembered(self, cell: LivingCell, outcome: CommandOutcome) -> None:
        """From time to time, have the oldest forgotten. Chance says when, so that nothing need be counted."""
        retention = cell.cls.command_retention
        if retention is None or outcome.outcome_id[-1] % _FORGOTTEN_EVERY or cell.stream_id in self._forgetting:
            return
        self._forgetting.add(cell.stream_id)
        self._tasks.start(self._forget_commands(cell.stream_id, retention))

    async def _forget_commands(self, stream_id: str, retention: CommandRetention) -> None:
        before = None if retention.seconds is None else datetime.now(UTC) - timedelta(seconds=retention.seconds)
        try:
            await self._store.forget_commands(stream_id, keep=retention.count or 0, before=before)
        except EventStoreError:
            logger.exception("%s: the oldest commands were not forgotten", stream_id)
        finally:
            self._forgetting.discard(stream_id)
