"""ProjectionRunner: brings a projection forward through the log, alone among all that would."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from eventstore import read_model_tables
from eventstore.backend import Appended, LogPage
from eventstore.checkpoint import Checkpoint, DeadLetter, Status, now
from eventstore.codec import decode_parts, decode_together
from eventstore.collector import collector_paused
from eventstore.errors import (
    BackendUnavailable,
    CapabilityError,
    DefinitionError,
    JournalCorrupt,
    OutcomeUnknown,
    ProjectionError,
    ProjectionStopped,
    StoreClosed,
)
from eventstore.events import Event, RecordedEvent
from eventstore.projections import Projection
from eventstore.reading_ahead import ReadAhead
from eventstore.record_page import RecordPage
from eventstore.store import EventStore

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

logger = logging.getLogger(__name__)

TRANSACTION_SECONDS = 30.0

# The database's own troubles: nothing is known to be wrong with an event.
_TROUBLE = (BackendUnavailable, OutcomeUnknown)

# How far a projection has come although none of its events was there is stored this often.
_SAVE_EVERY_SECONDS = 1.0

_WITH_CONNECTION = 3

_P = TypeVar("_P", bound=Projection)


class ProjectionRunner:
    """Runs one projection. Any number of runners may be started, in any number of processes: one of them works, the
    others wait until it has not been heard of for `lease_seconds`, by their own clocks, or was seen to have ended.

    That two never apply the same does not rest on the lease: whoever stores how far the projection has come names the
    revision that it has seen, and stores nothing, its read model neither, if somebody else has changed it.
    `on_progress` is told the position, and how many events were applied, after each batch.
    """

    def __init__(
        self,
        store: EventStore,
        projection: type[Projection],
        *,
        lease_seconds: float = 10.0,
        poll_seconds: float = 0.5,
        version: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if projection.needs_connection() and not store.capabilities.user_sql:
            raise CapabilityError(
                f"projection {projection.name!r} has tables, or handlers that take a connection, and "
                f"{store.url.scheme}:// has no SQL: nothing was done; keep its read model elsewhere"
            )
        _check_tenant(store, projection)
        self._store = store
        self._projection = projection
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._version = version
        self._on_progress = on_progress
        self._id = uuid4().hex
        self._name = f"{platform.node()}:{os.getpid()}"
        self._where = projection.where()
        self._saved_at = 0.0

    async def run(self, *, follow: bool = True) -> None:
        """Apply what the log has, and with `follow` what comes then, until it is cancelled. While the database cannot
        be reached it waits.

        Without `follow` it ends when it has reached the end that the log had when it began; also if another runner has.
        Raises `ProjectionStopped` if the projection is paused, or was while it worked (with `follow` it waits for
        `resume` instead), `JournalCorrupt` for a damaged event, `StoreClosed` when the store is closed.
        """
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
            except _TROUBLE as error:
                failures += 1
                pause = min(5.0, 0.05 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311
                logger.warning("projection %s waits %.1f s: %s", self._projection.name, pause, error)
                await asyncio.sleep(pause)

    # Whose turn it is

    async def _take(self, end: int | None) -> Checkpoint | None:
        """The checkpoint, once it is this runner's. None if another has come to the end in the meantime."""
        seen, since = -1, time.monotonic()
        while True:
            checkpoint = await self._current()
            if checkpoint is None:
                if not await begin(self._store, self._projection, 1, Status.LIVE):
                    # Another runner makes it in this moment, or it is being rebuilt before it was ever run.
                    await asyncio.sleep(self._poll_seconds)
                continue
            if checkpoint.pause is not None:
                if end is not None:
                    raise ProjectionStopped(checkpoint.name, checkpoint.pause)
                await asyncio.sleep(self._poll_seconds)
                continue
            if checkpoint.revision != seen:
                seen, since = checkpoint.revision, time.monotonic()
            is_free = checkpoint.runner in ("", self._id) or time.monotonic() - since >= self._lease_seconds
            if is_free or _has_ended(checkpoint.runner_name):
                return await self._save(replace(checkpoint, runner=self._id, runner_name=self._name))
            if end is not None and checkpoint.position >= end:
                return None
            await asyncio.sleep(min(self._poll_seconds, self._lease_seconds / 4))

    async def _current(self) -> Checkpoint | None:
        found = [one for one in await self._store.checkpoints() if one.name == self._projection.name]
        if self._version is not None:
            chosen = [one for one in found if one.version == self._version]
            if not chosen:
                raise ProjectionStopped(self._projection.name, f"its version {self._version} is gone")
            return chosen[0]
        # Where there are no transactions, there are two for a moment when a rebuild takes its place.
        return next((one for one in reversed(found) if one.status is Status.LIVE), None)

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
                if page.events:
                    checkpoint = await self._apply(checkpoint, page.events, log.position)
                    if checkpoint.pause is not None:
                        if end is None and checkpoint.status is Status.LIVE:
                            return False
                        raise ProjectionStopped(checkpoint.name, checkpoint.pause)
                    if self._on_progress is not None:
                        self._on_progress(log.position, len(page.events))
                elif self._is_to_be_saved(checkpoint, log.position):
                    checkpoint = await self._save(replace(checkpoint, position=log.position))
                # Who writes faster than this reads would keep it from ending.
                if end is not None and (page.is_end or log.position >= end):
                    await self._save(replace(checkpoint, position=log.position, runner=""))
                    return True
                if page.is_end:
                    await self._store.wait(log.position, min(self._poll_seconds, self._lease_seconds / 4))

    async def _read(self, after: int) -> LogPage:
        return await self._store.read_page(after=after, limit=self._projection.batch_size, where=self._where)

    def _is_to_be_saved(self, checkpoint: Checkpoint, position: int) -> bool:
        """Whether it is time to tell the others that this runner is there, or where it is."""
        quiet = time.monotonic() - self._saved_at
        return quiet >= self._lease_seconds / 3 or (position > checkpoint.position and quiet >= _SAVE_EVERY_SECONDS)

    async def _apply(self, checkpoint: Checkpoint, events: Sequence[RecordedEvent], position: int) -> Checkpoint:
        try:
            return await self._batch(checkpoint, events, position)
        except Poison:
            # It is found out which one it is: alone, each is to blame for itself.
            for recorded in events:
                checkpoint = await self._apply_one(checkpoint, recorded)
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
        await apply_events(self._store, self._projection, behind, page)
        self._saved_at = time.monotonic()
        return behind.saved()


def _check_tenant(store: EventStore, projection: type[Projection]) -> None:
    if not store.tenant:
        return
    if projection.tenants and store.tenant not in projection.tenants:
        raise DefinitionError(
            f"projection {projection.name!r} is of the tenants {', '.join(projection.tenants)}, and the store is "
            f"{store.tenant}'s: nothing was done"
        )
    if projection.tables:
        # Each tenant would have a checkpoint of its own, and all the same tables: one's rebuild drops what others have.
        raise DefinitionError(
            f"projection {projection.name!r} has tables, which all tenants would share: run it on a store that was "
            f'opened without a tenant, of tenants=("{store.tenant}",) if it is to have no others\' events'
        )


async def begin(store: EventStore, projection: type[Projection], version: int, status: Status) -> bool:
    """Make a version of a read model, with nothing in it. False if it is there already."""
    _check_tenant(store, projection)
    checkpoint = Checkpoint(projection.name, version, status, kinds=projection.kinds, tenants=projection.tenants)
    made = new(projection, checkpoint)
    building = version if made.is_building else None
    if not store.capabilities.user_sql:
        await made.prepare(None)
        return await store.save_checkpoint(checkpoint)
    transaction = await store.begin_sql(seconds=TRANSACTION_SECONDS)
    try:
        # First of all: of two who begin at once the second waits here, and finds that it is there.
        if not await transaction.save_checkpoint(checkpoint.stored()):
            return False
        await transaction.connection.run_sync(read_model_tables.create, projection.tables, building=building)
        await made.prepare(transaction.connection)
        await transaction.commit(())
        return True
    finally:
        await transaction.rollback()


async def apply_events(
    store: EventStore, projection: type[Projection], checkpoint: Checkpoint, events: Sequence[RecordedEvent]
) -> None:
    """Apply events, and save the checkpoint that is behind them, in one transaction where the store has such.

    Raises `Poison` and `Lost`; then nothing was done. Without a transaction the events were applied, and come again.
    """
    if not store.capabilities.user_sql:
        # What the handlers do cannot be undone. So who has lost his turn had better see it before.
        stored = [
            one for one in await store.checkpoints() if (one.name, one.version) == (checkpoint.name, checkpoint.version)
        ]
        if [one.revision for one in stored] != [checkpoint.revision]:
            raise Lost
        await handle_events(projection, checkpoint, events, None)
        if not await store.save_checkpoint(checkpoint):
            raise Lost
        return
    transaction = await store.begin_sql(seconds=TRANSACTION_SECONDS)
    try:
        # Before anything else. Another runner that has done so already is waited for, and then nothing is done here.
        if not await transaction.save_checkpoint(checkpoint.stored()):
            raise Lost
        await handle_events(projection, checkpoint, events, transaction.connection)
        try:
            outcome = await transaction.commit(())
        except _TROUBLE:
            raise
        except Exception as error:
            # A constraint that is looked at when it is committed, or handlers that took too long.
            raise Poison from error
        if not isinstance(outcome, Appended):
            raise JournalCorrupt(f"a transaction without events was answered with {outcome!r}")
    finally:
        await transaction.rollback()


async def handle_events(
    projection: type[Projection],
    checkpoint: Checkpoint,
    events: Sequence[RecordedEvent],
    connection: AsyncConnection | None,
) -> None:
    """Hand events to the handlers of a version. Raises `Poison` for one that cannot be applied."""
    made = new(projection, checkpoint)
    page = RecordPage.of(events)
    try:
        if _is_plain(projection):
            is_done = _handled_together(made, page)
        elif is_done := (decoded := decode_together(page)) is not None:
            for event, recorded in zip(decoded, page, strict=True):
                await _handle(made, event, recorded, connection)
        if not is_done:
            for recorded in events:
                for event in decode_parts(recorded):
                    await _handle(made, event, recorded, connection)
        await made.flush(connection)
    except (*_TROUBLE, StoreClosed):
        raise
    except Exception as error:
        raise Poison from error


def _is_plain(projection: type[Projection]) -> bool:
    """Whether its handlers await nothing and do without the connection."""
    handlers = projection.handlers.values()
    return not any(handler.is_async or handler.takes == _WITH_CONNECTION for handler in handlers)


def _handled_together(made: Projection, page: RecordPage) -> bool:
    """Decode all events of a page, and hand them to plain handlers. False, and nothing was done, if something is wrong
    with an event, or older code has stored one.

    What is made here dies here, so the garbage collector need not see it: it would look through the whole program every
    forty pages, which took a third of the time.
    """
    handlers = made.handlers
    every = handlers.get(Event)
    with collector_paused():
        events = decode_together(page)
        if events is None:
            return False
        chosen = {cls: handlers.get(cls, every) for cls in set(map(type, events))}
        wanted = [handler for handler in chosen.values() if handler is not None]
        if all(handler.takes == 1 for handler in wanted):
            for event in events:
                if (handler := chosen[event.__class__]) is not None:
                    handler.handle(made, event)
        elif len(chosen) == len(wanted) == 1:
            handle = wanted[0].handle
            for event, recorded in zip(events, page, strict=True):
                handle(made, event, recorded)
        else:
            for event, recorded in zip(events, page, strict=True):
                handler = chosen[event.__class__]
                if handler is None:
                    continue
                if handler.takes == 1:
                    handler.handle(made, event)
                else:
                    handler.handle(made, event, recorded)
        return True


async def _handle(made: Projection, event: Event, recorded: RecordedEvent, connection: AsyncConnection | None) -> None:
    handler = made.handlers.get(event.__class__) or made.handlers.get(Event)
    if handler is None:
        # A part of an event of which the projection wants another part.
        return
    _, handle, takes, is_async = handler
    if takes == 2:
        done = handle(made, event, recorded)
    elif takes == 1:
        done = handle(made, event)
    else:
        done = handle(made, event, recorded, connection)
    if is_async:
        await done


def new(projection: type[_P], checkpoint: Checkpoint) -> _P:
    """The projection for one batch of a version."""
    made = projection()
    made.version = checkpoint.version
    made.is_building = checkpoint.status is Status.BUILDING
    return made


def _has_ended(runner_name: str) -> bool:
    """Whether a runner was a process of this machine that is there no more: then its lease need not be waited for."""
    node, _, pid = runner_name.rpartition(":")
    if node != platform.node() or not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


class Lost(ProjectionError):
    """Somebody else has changed the checkpoint: nothing was done."""


class Poison(ProjectionError):
    """What could not be applied is chained."""
