"""ProjectionRunner: brings a projection forward through the log, alone among all that would."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace

from eventstore.backend import LogPage
from eventstore.contract.checkpoint import Checkpoint, DeadLetter, Status, now, partition_of, version_of
from eventstore.contract.record_page import RecordPage
from eventstore.errors import (
    CapabilityError,
    EventStoreError,
    ProjectionStopped,
)
from eventstore.events import RecordedEvent
from eventstore.projections import Projection
from eventstore.read_models.applying import TRANSACTION_SECONDS, Lost, apply_events
from eventstore.read_models.beginning import begin, check_class, check_partitions, check_tenant
from eventstore.read_models.delivering import TROUBLE, Poison
from eventstore.read_models.runner_process import has_ended, new_runner, this_process
from eventstore.reading.reading_ahead import ReadAhead
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# How many events the first batch has, if the projection does not say fewer: nobody knows yet how long they take.
FIRST_BATCH = 500

# Into so many parts a batch is divided that holds an event that cannot be applied, and so is that part in turn.
_PARTS = 16

# How far a projection has come although none of its events was there is stored this often.
_SAVE_EVERY_SECONDS = 1.0

# Who ends a runner waits for no database that does not answer.
_LET_GO_SECONDS = 2.0


class ProjectionRunner:
    """Runs one projection. Any number of runners may be started, in any number of processes: one of them works, the
    others wait until it has not been heard of for `lease_seconds`, by their own clocks, or was seen to have ended.

    That two never apply the same does not rest on the lease: whoever stores how far the projection has come names the
    revision that it has seen, and stores nothing, its read model neither, if somebody else has changed it.

    The partitions of a projection are run each by itself, and at the same time. A runner works on all that are free. Of
    several, whoever has at least two less than another takes one over from that, until they are spread evenly.

    `on_progress` is told after each batch to which position all is applied here, how many events the batch had, and
    where the log ended when it was read.
    """

    def __init__(
        self,
        store: EventStore,
        projection: type[Projection],
        *,
        lease_seconds: float = 10.0,
        poll_seconds: float = 0.5,
        version: int | None = None,
        on_progress: Callable[[int, int, int], None] | None = None,
    ) -> None:
        check_class(projection, "ProjectionRunner takes")
        if projection.needs_connection() and not store.capabilities.user_sql:
            raise CapabilityError(
                f"projection {projection.name!r} has tables, or handlers that take a connection, and "
                f"{store.url.scheme}:// has no SQL: nothing was done; keep its read model elsewhere"
            )
        check_tenant(store, projection)
        self._store = store
        self._projection = projection
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._version = version
        self._on_progress = on_progress
        self._id = new_runner()
        self._name = this_process()
        self._where = projection.where()
        self._partition = 0
        self._size = min(FIRST_BATCH, projection.batch_size)
        self._handlers_seconds = 0.0
        # Of several partitions one at a time looks for what it may take over: each counts what the others have.
        self._taking = asyncio.Lock()
        self._saved_at = 0.0

    async def run(self, *, follow: bool = True) -> None:
        """Apply what the log has, and with `follow` what comes then, until it is cancelled. It gives its lease
        back then. While the database cannot be reached it waits.

        Without `follow` it ends when it has reached the end that the log had when it began; also if another runner has.
        Raises `ProjectionStopped` if the projection is paused, or was while it worked (with `follow` it waits for
        `resume` instead), `PartitionsChanged`, `JournalCorrupt` for a damaged event, `StoreClosed` when the store is
        closed.
        """
        if self._projection.partitions == 1:
            await self._run(follow=follow)
            return
        positions: dict[int, int] = {}
        parts = [self._part(number, positions) for number in range(self._projection.partitions)]
        tasks = [asyncio.create_task(part._run(follow=follow)) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                # One that is cancelled already gives its lease back.
                if not task.cancelling():
                    task.cancel()
            await asyncio.wait(tasks)

    def _part(self, number: int, positions: dict[int, int]) -> ProjectionRunner:
        """The runner of one partition. It counts as this one where others look at who has what."""
        part = copy(self)
        part._partition = number
        on_progress = self._on_progress
        if on_progress is not None:

            def told(position: int, count: int, end: int) -> None:
                positions[number] = position
                on_progress(min(positions.values()), count, end)

            part._on_progress = told
        return part

    async def _run(self, *, follow: bool) -> None:
        try:
            await self._bring_forward(follow=follow)
        except BaseException:
            await self._let_go()
            raise

    async def _let_go(self) -> None:
        """Give the lease back, if it is this runner's and the database answers: so nobody has to wait until it ends."""
        with suppress(EventStoreError, TimeoutError):
            async with asyncio.timeout(_LET_GO_SECONDS):
                checkpoint, _ = await self._current()
                if checkpoint is not None and checkpoint.runner == self._id:
                    # Where a batch of this runner is being stored in this moment, one of the two comes too late.
                    await self._store.save_checkpoint(replace(checkpoint, runner=""))

    async def _bring_forward(self, *, follow: bool) -> None:
        failures = 0
        end: int | None = None
        while True:
            try:
                if not follow and end is None:
                    end = await self._store.end()
                checkpoint = await self._take(end)
                failures = 0
                if checkpoint is None or await self._work(checkpoint, end):
                    return
            except Lost:
                continue
            except TROUBLE as error:
                failures += 1
                pause = min(5.0, 0.05 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
                logger.warning("projection %s waits %.1f s: %s", self._projection.name, pause, error)
                await asyncio.sleep(pause)

    # Whose turn it is

    async def _take(self, end: int | None) -> Checkpoint | None:
        """The checkpoint, once it is this runner's. None if another has come to the end in the meantime."""
        seen, since = -1, time.monotonic()
        while True:
            async with self._taking:
                checkpoint, parts = await self._current()
                if checkpoint is None:
                    if await begin(self._store, self._projection, 1, Status.LIVE):
                        continue
                    # Another runner makes it in this moment, or it is being rebuilt before it was ever run.
                elif checkpoint.pause is not None:
                    if end is not None:
                        raise ProjectionStopped(checkpoint.name, checkpoint.pause)
                elif checkpoint.runner == self._id:
                    # An inline projection, or a command, has changed it: it is this runner's as before.
                    return checkpoint
                else:
                    if checkpoint.revision != seen:
                        seen, since = checkpoint.revision, time.monotonic()
                    is_silent = time.monotonic() - since >= self._lease_seconds
                    is_free = checkpoint.runner == "" or is_silent or has_ended(checkpoint)
                    if is_free:
                        return await self._save(self._mine(checkpoint))
                    if end is None and self._has_less(checkpoint.runner, parts):
                        return await self._take_over(checkpoint)
                    if end is not None and checkpoint.position >= end:
                        return None
            await asyncio.sleep(min(self._poll_seconds, self._lease_seconds / 4))

    async def _current(self) -> tuple[Checkpoint | None, Sequence[Checkpoint]]:
        """The checkpoint of this runner's partition, and of all partitions. Raises `PartitionsChanged`."""
        found = await self._store.checkpoints()
        name = self._projection.name
        if self._version is None:
            parts = version_of(found, name, Status.LIVE)
        else:
            parts = [one for one in found if (one.name, one.version) == (name, self._version)]
            if not parts:
                raise ProjectionStopped(name, f"its version {self._version} is gone")
        check_partitions(self._projection, parts)
        return next((one for one in parts if one.partition == self._partition), None), parts

    def _mine(self, checkpoint: Checkpoint) -> Checkpoint:
        # What it wants is the class's to say, which may have changed: truncation goes by the checkpoint.
        wanted = self._projection
        return replace(checkpoint, runner=self._id, runner_name=self._name, kinds=wanted.kinds, tenants=wanted.tenants)

    def _has_less(self, runner: str, parts: Sequence[Checkpoint]) -> bool:
        """Whether another has so many partitions more that one of them should be taken over."""
        mine = sum(one.runner == self._id for one in parts)
        return sum(one.runner == runner for one in parts) >= mine + 2

    async def _take_over(self, checkpoint: Checkpoint) -> Checkpoint:
        """Take a partition from one who works on it, and notices at the end of the batch."""
        if not self._store.capabilities.user_sql:
            return await self._save(self._mine(checkpoint))
        # Who has seen a revision would be too late again and again: one batch follows the other.
        transaction = await self._store.begin_sql(seconds=TRANSACTION_SECONDS)
        try:
            stored = await transaction.lock_checkpoint(checkpoint.stored_name, checkpoint.version)
            found = None if stored is None else Checkpoint.of(stored)
            if found is None or (found.runner, found.pause) != (checkpoint.runner, None):
                raise Lost
            if not await transaction.save_checkpoint(self._mine(found).stored()):
                raise Lost
            await transaction.commit(())
        finally:
            await transaction.rollback()
        self._saved_at = time.monotonic()
        return self._mine(found).saved()

    async def _save(self, checkpoint: Checkpoint) -> Checkpoint:
        if not await self._store.save_checkpoint(checkpoint):
            raise Lost
        self._saved_at = time.monotonic()
        return checkpoint.saved()

    # Working

    async def _work(self, checkpoint: Checkpoint, end: int | None) -> bool:
        """Apply page after page. Returns True when there is nothing more to do up to an end, if there is one."""
        async with ReadAhead(self._read, after=checkpoint.position) as log:
            while True:
                page = await log.page()
                events = self._own(page.events)
                if events:
                    self._handlers_seconds = 0.0
                    checkpoint = await self._apply(checkpoint, events, log.position)
                    self._adapt(len(page.events), is_behind=not page.is_end)
                    if checkpoint.pause is not None:
                        if end is None and checkpoint.status is Status.LIVE:
                            return False
                        raise ProjectionStopped(checkpoint.name, checkpoint.pause)
                    if self._on_progress is not None:
                        self._on_progress(log.position, len(events), max(page.end, log.position))
                elif self._is_to_be_saved(checkpoint, log.position):
                    checkpoint = await self._save(replace(checkpoint, position=log.position))
                # Who writes faster than this reads would keep it from ending.
                if end is not None and (page.is_end or log.position >= end):
                    await self._save(replace(checkpoint, position=log.position, runner=""))
                    return True
                if page.is_end:
                    await self._store.wait(log.position, min(self._poll_seconds, self._lease_seconds / 4))

    async def _read(self, after: int) -> LogPage:
        return await self._store.read_page(after=after, limit=self._size, where=self._where)

    def _own(self, events: Sequence[RecordedEvent]) -> Sequence[RecordedEvent]:
        """Those of this runner's partition."""
        if self._projection.partitions == 1:
            return events
        page, partitions = RecordPage.of(events), self._projection.partitions
        return page.only([partition_of(stream_id, partitions) == self._partition for stream_id in page.stream_ids])

    def _adapt(self, size: int, *, is_behind: bool) -> None:
        """Choose how many events the next pages have, by how long the handlers took for one of this size. How long the
        database took says nothing: it has others to serve. The page after that one has been asked for already, so it
        is not what was chosen last."""
        seconds, wanted = self._handlers_seconds, self._projection.batch_seconds
        if seconds > wanted:
            self._size = max(1, int(size * wanted / seconds))
        elif is_behind and seconds < wanted / 2:
            self._size = min(max(self._size, 2 * size), self._projection.batch_size)

    def _is_to_be_saved(self, checkpoint: Checkpoint, position: int) -> bool:
        """Whether it is time to tell the others that this runner is there, or where it is."""
        quiet = time.monotonic() - self._saved_at
        return quiet >= self._lease_seconds / 3 or (position > checkpoint.position and quiet >= _SAVE_EVERY_SECONDS)

    async def _apply(self, checkpoint: Checkpoint, events: Sequence[RecordedEvent], position: int) -> Checkpoint:
        try:
            return await self._batch(checkpoint, events, position)
        except Poison:
            # It is found out which one it is: alone, each is to blame for itself. The others go by in larger parts.
            size = -(-len(events) // _PARTS)
            for start in range(0, len(events), size):
                part = events[start : start + size]
                if size == 1:
                    checkpoint = await self._apply_one(checkpoint, part[0])
                else:
                    checkpoint = await self._apply(checkpoint, part, part[-1].position)
                if checkpoint.pause is not None:
                    return checkpoint
            return checkpoint

    async def _apply_one(self, checkpoint: Checkpoint, recorded: RecordedEvent) -> Checkpoint:
        projection = self._projection
        pause = projection.first_pause_seconds
        for attempt in range(1, projection.retries + 2):
            try:
                return await self._batch(checkpoint, [recorded], recorded.position)
            except Poison as poison:
                error = poison.__cause__ or poison
                logger.warning(
                    "projection %s, attempt %d at position %d (%s): %s",
                    projection.name, attempt, recorded.position, recorded.type, _said(error),
                )  # fmt: skip
                if attempt > projection.retries:
                    return await self._give_up(checkpoint, recorded, error, attempt)
            await asyncio.sleep(pause)
            pause *= 2
            if time.monotonic() - self._saved_at >= self._lease_seconds / 3:
                checkpoint = await self._save(checkpoint)
        raise AssertionError("the last attempt gives up")

    async def _give_up(
        self, checkpoint: Checkpoint, recorded: RecordedEvent, error: BaseException, attempts: int
    ) -> Checkpoint:
        projection = self._projection
        at = f"position {recorded.position}, {recorded.type!r} in {recorded.stream_id!r} version {recorded.version}"
        is_full = len(checkpoint.letters) >= projection.max_dead_letters
        if checkpoint.status is Status.BUILDING or projection.on_poison == "pause" or is_full:
            why = f"{at}, could not be applied: {_said(error)}"
            return await self._save(replace(checkpoint, pause=why, runner=""))
        letter = DeadLetter(
            recorded.position,
            recorded.stream_id,
            recorded.version,
            recorded.type,
            _said(error),
            attempts,
            now(),
            recorded.tenant,
        )
        behind = checkpoint.advanced(recorded.position, [recorded.event_id])
        return await self._save(replace(behind, letters=(*checkpoint.letters, letter)))

    async def _batch(self, checkpoint: Checkpoint, events: Sequence[RecordedEvent], position: int) -> Checkpoint:
        """Apply events, and store that they were. Raises `Poison` if they cannot be applied, `Lost` if another
        runner, or a command, has changed the checkpoint."""
        page = RecordPage.of(events)
        behind = checkpoint.behind(position, len(page), page.checksum)
        self._handlers_seconds += await apply_events(self._store, self._projection, behind, page)
        self._saved_at = time.monotonic()
        return behind.saved()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
