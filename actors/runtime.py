"""Runtime: the live cells of one process: who is in memory, what runs, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from actors.actor import PersistentActor
from actors.cell import Cell, Phase
from actors.deadlines import Deadlines
from actors.mailbox import Envelope
from actors.recovery import recover
from actors.ref import give_up
from actors.supervision import Supervisor
from eventstore.errors import ActorStopped, DefinitionError, EventStoreError, RecoveryError
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# Cells looked at in one turn of the loop when idle ones are sought.
_SWEEP_TURN = 2000

# How often it is looked whether everything is done, while tasks that do not count are still there.
_TURN_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Settings:
    """What is set for all actors of a system (`ActorSystem` says what each means)."""

    ask_timeout: float
    mailbox_size: int
    mailbox_overflow: Literal["reject", "wait"]
    idle_seconds: float
    max_live: int
    recoveries_at_once: int
    recovery_timeout: float
    shutdown_timeout: float

    def __post_init__(self) -> None:
        for name in ("ask_timeout", "mailbox_size", "idle_seconds", "max_live", "recoveries_at_once"):
            if getattr(self, name) <= 0:
                raise DefinitionError(f"ActorSystem: {name} must be above zero, not {getattr(self, name)!r}")
        if self.mailbox_overflow not in ("reject", "wait"):
            raise DefinitionError(f"ActorSystem: mailbox_overflow is 'reject' or 'wait', not {self.mailbox_overflow!r}")


class Runtime:
    """Made inside the event loop it belongs to, over an open store."""

    def __init__(self, store: EventStore, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self.loop = asyncio.get_running_loop()
        self.commits = store.commits
        self.deadlines = Deadlines(self.loop, give_up)
        self.ask_timeout = settings.ask_timeout
        self.mailbox_size = settings.mailbox_size
        self.mailbox_overflow: Literal["reject", "wait"] = settings.mailbox_overflow
        self.max_payload_bytes = store.max_payload_bytes
        self.next_use = count(1).__next__
        self.is_open = True
        self.is_shut = False
        self._permits = asyncio.Semaphore(settings.recoveries_at_once)
        self._cells: dict[str, Cell] = {}
        self._supervisor = Supervisor()
        self._tasks: set[asyncio.Task[None]] = set()
        self._saving: dict[str, asyncio.Task[None]] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """Take no more commands, finish those accepted, and answer what could not be finished in time."""
        self.is_open = False
        for cell in self._cells.values():
            cell.is_ready = False
        if self._sweeper is not None:
            self._sweeper.cancel()
        try:
            await self._finish()
        finally:
            self.is_shut = True
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            for cell in self._cells.values():
                cell.abandon()
            self._cells.clear()
            # Whoever was answered just now gets a turn before the store is gone.
            await asyncio.sleep(0)

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout):
                while any(not cell.is_quiet for cell in self._cells.values()):
                    # Work goes on in tasks, in appends, or in the next turn of the loop.
                    await self.commits.drained()
                    if self._tasks:
                        await asyncio.wait(self._tasks, timeout=_TURN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    else:
                        await asyncio.sleep(0)
                for cell in [cell for cell in self._cells.values() if cell.is_idle]:
                    self._passivate(cell)
                if self._saving:
                    await asyncio.wait(self._saving.values())
        except TimeoutError:
            logger.warning("the actor system closes with work unfinished after %g s", self._settings.shutdown_timeout)

    # What references ask of the runtime

    def cell_of(self, cls: type[PersistentActor[Any]], stream_id: str) -> Cell:
        """The live cell of an actor, brought to life if need be."""
        cell = self._cells.get(stream_id)
        if cell is None:
            if self.is_shut:
                raise ActorStopped("the actor system is closed: the command was not accepted")
            if len(self._cells) >= self._settings.max_live:
                self._make_room()
            cell = Cell(self, cls, stream_id)
            cell.used = self.next_use()
            self._cells[stream_id] = cell
            cell.activate(self._supervisor.pause_left(stream_id))
            if self._sweeper is None and self.is_open:
                self._schedule_sweep()
        return cell

    def phases(self) -> list[Phase]:
        """What every live cell does."""
        return [cell.phase for cell in self._cells.values()]

    def failures(self) -> dict[str, tuple[int, str]]:
        """Count and last error of every actor that failed lately."""
        return self._supervisor.failures()

    # What cells ask of the runtime

    def new_reply(self) -> asyncio.Future[Any]:
        """A future of this runtime's loop."""
        return self.loop.create_future()

    def start_task(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None) -> asyncio.Task[None]:
        """Run work that belongs to the runtime: it is awaited or cancelled when that closes."""
        task = self.loop.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.loop.call_exception_handler({"message": "an actor's task failed", "exception": error, "task": task})

    async def recover(self, cell: Cell, pause: float) -> None:
        """Rebuild a cell's state, with at most so many others at a time."""
        if pause:
            await asyncio.sleep(pause)
        try:
            async with self._permits:
                actor = cell.start_anew()
                await recover(self._store, actor, cell, page_timeout=self._settings.recovery_timeout)
            # Without a permit: the hook may ask actors that must recover first.
            cell.begin_handling()
            try:
                hook = actor.recovered()
                if inspect.isawaitable(hook):
                    await hook
            finally:
                cell.end_handling()
        except EventStoreError as error:
            cell.recovery_failed(error)
        except Exception as error:
            failure = RecoveryError(cell.stream_id, f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            cell.recovery_failed(failure)
        else:
            cell.recovered()

    def supervise(self, cell: Cell, error: BaseException) -> None:
        """Decide what becomes of a cell that failed."""
        logger.error("actor %r failed: %s: %s", cell.stream_id, type(error).__name__, error, exc_info=error)
        pause = self._supervisor.pause_after(cell.stream_id, error, cell.cls.supervision)
        if pause is None:
            cell.stop(error)
        elif cell.phase is Phase.PASSIVE:
            self._forget(cell)  # The pause holds for whoever brings it to life again.
        else:
            cell.activate(pause)

    def save_snapshot(self, cell: Cell, version: int, data: bytes) -> None:
        """Store a state. One save per actor at a time: while one is under way, the next is left out."""
        if cell.stream_id in self._saving:
            return
        work = self._save(cell.cls, cell.stream_id, version, data)
        self._saving[cell.stream_id] = self.start_task(work, None)

    async def _save(self, cls: type[PersistentActor[Any]], stream_id: str, version: int, data: bytes) -> None:
        snapshot = new_snapshot(stream_id, version, cls.state_type.fingerprint, data)
        try:
            await self._store.save_snapshot(snapshot, keep=cls.snapshot_policy.keep)
        except EventStoreError:
            # It is only an optimisation: the next one will do as well.
            logger.exception("%s: the snapshot at version %d was not saved", stream_id, version)
        finally:
            self._saving.pop(stream_id, None)

    def tell_failed(self, cell: Cell, envelope: Envelope, error: BaseException) -> None:
        """Nobody waits for the reply: the log is told."""
        logger.error(
            "telling %r a %s failed: %s: %s",
            cell.stream_id,
            type(envelope.command).__name__,
            type(error).__name__,
            error,
            exc_info=error,
        )

    # Passivation

    def restart(self, stream_id: str) -> None:
        """Let a stopped actor come to life again with its next message."""
        cell = self._cells.get(stream_id)
        if cell is not None and cell.phase is Phase.STOPPED:
            self._forget(cell)
            self._supervisor.forgive(stream_id)

    def _passivate(self, cell: Cell) -> None:
        data = cell.snapshot_on_passivation()
        if data is not None:
            self.save_snapshot(cell, cell.version, data)
        self._forget(cell)
        cell.passivate()

    def _forget(self, cell: Cell) -> None:
        cell.phase = Phase.PASSIVE
        if self._cells.get(cell.stream_id) is cell:
            del self._cells[cell.stream_id]

    def _make_room(self) -> None:
        """Passivate the least recently used, a twentieth at a time, so that looking for them costs little."""
        idle = sorted((cell for cell in self._cells.values() if cell.is_idle), key=_last_use)
        for cell in idle[: max(1, self._settings.max_live // 20)]:
            self._passivate(cell)

    def _schedule_sweep(self) -> None:
        # An actor is found idle between one and two times idle_seconds after its last message.
        self._sweeper = self.loop.call_later(self._settings.idle_seconds, self._begin_sweep, self.next_use())

    def _begin_sweep(self, mark: int) -> None:
        self._sweep(list(self._cells.values()), mark)

    def _sweep(self, cells: list[Cell], mark: int) -> None:
        if not self.is_open:
            return
        for cell in cells[-_SWEEP_TURN:]:
            if cell.used < mark and cell.is_idle:
                self._passivate(cell)
        del cells[-_SWEEP_TURN:]
        if cells:
            self.loop.call_soon(self._sweep, cells, mark)
            return
        self._supervisor.forget_old()
        self._sweeper = None
        if self._cells:
            self._schedule_sweep()


def _last_use(cell: Cell) -> int:
    return cell.used
