"""ActorSystem: the live actors of one process over one store."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Coroutine
from itertools import count
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

from actors.actor import PersistentActor, stream_id_of
from actors.cell import Cell, Phase
from actors.deadlines import Deadlines
from actors.mailbox import Envelope
from actors.recovery import recover
from actors.ref import ActorRef, give_up
from actors.supervision import Supervisor
from eventstore.errors import (
    ActorStopped,
    DefinitionError,
    EventStoreError,
    RecoveryError,
    StoreClosed,
)
from eventstore.group_commit import GroupCommit
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=PersistentActor[Any])
R = TypeVar("R")

# Cells looked at in one turn of the loop when idle ones are sought.
_SWEEP_TURN = 2000


class SystemStats(NamedTuple):
    """What lives in an `ActorSystem` now. `failures` are the actors that failed lately, with count and last error."""

    live: int
    recovering: int
    stopped: int
    failures: dict[str, tuple[int, str]]


class ActorSystem:
    """Live actors over one store.

        async with ActorSystem("sqlite:///bank.db") as system:
            alice = system.ref(Account, "alice")
            print(await alice.ask(Deposit(amount=100)))

    An actor comes to life with its first message, and leaves memory when nobody has talked to it for
    `idle_seconds`, or when more than `max_live` are there, the least recently used first. Nothing is lost by that.

    A store given as a URL is opened and closed by the system; one given as an object stays the caller's.
    """

    def __init__(
        self,
        store: str | EventStore,
        *,
        ask_timeout: float = 30.0,
        mailbox_size: int = 1000,
        mailbox_overflow: Literal["reject", "wait"] = "reject",
        idle_seconds: float = 300.0,
        max_live: int = 100_000,
        recoveries_at_once: int = 50,
        recovery_timeout: float = 30.0,
        shutdown_timeout: float = 30.0,
    ) -> None:
        self._owns_store = isinstance(store, str)
        self.store = EventStore.open(store) if isinstance(store, str) else store
        self.ask_timeout = ask_timeout
        self.mailbox_size = mailbox_size
        self.mailbox_overflow = mailbox_overflow
        self.max_payload_bytes = self.store.max_payload_bytes
        self._idle_seconds = idle_seconds
        self._max_live = max_live
        self._recovery_timeout = recovery_timeout
        self._shutdown_timeout = shutdown_timeout
        self._permits = asyncio.Semaphore(recoveries_at_once)
        self._cells: dict[str, Cell] = {}
        self._classes: dict[str, type[PersistentActor[Any]]] = {}
        self._supervisor = Supervisor()
        self._tasks: set[asyncio.Task[None]] = set()
        self._saving: set[str] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_open = False
        self.is_shut = False
        self.next_use = count(1).__next__
        self.loop: asyncio.AbstractEventLoop
        self.commits: GroupCommit
        self.deadlines: Deadlines

    async def __aenter__(self) -> Self:
        """Open the store, if it was given as a URL. Raises as `EventStore` does."""
        if self._is_open:
            raise StoreClosed("this actor system is already open: enter it once")
        if self._owns_store:
            await self.store.__aenter__()
        self.loop = asyncio.get_running_loop()
        self.commits = self.store.commits
        self.deadlines = Deadlines(self.loop, give_up)
        self._is_open = True
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Take no more commands, finish those accepted, save what is to be saved, and let go of the store.

        What is not finished within `shutdown_timeout` is answered with `ActorStopped`.
        """
        if not self._is_open:
            return
        self._is_open = False
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
            if self._owns_store:
                await self.store.close()

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(self._shutdown_timeout):
                while any(not cell.is_quiet for cell in self._cells.values()):
                    # Work goes on in tasks, in appends, or in the next turn of the loop.
                    await self.commits.drained()
                    if self._tasks:
                        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
                    else:
                        await asyncio.sleep(0)
                for cell in [cell for cell in self._cells.values() if cell.is_idle]:
                    self._passivate(cell)
                if self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            logger.warning("the actor system closes with work unfinished after %g s", self._shutdown_timeout)

    # Talking to actors

    def ref(self, actor: type[A], key: str) -> ActorRef[A]:
        """A reference to one actor. It costs nothing: the actor comes to life with its first message.

        Raises `InvalidStreamId` for a key that cannot be part of a stream's id, and `DefinitionError` when another
        class of this system has the same kind.
        """
        known = self._classes.setdefault(getattr(actor, "kind", ""), actor)
        if known is not actor:
            raise DefinitionError(
                f"{actor.__qualname__} and {known.__module__}.{known.__qualname__} are both of kind {actor.kind!r}: "
                "their events would share streams; give one of them another: class …(PersistentActor[…], kind=…)"
            )
        return ActorRef(self, actor, stream_id_of(actor, key))

    def stats(self) -> SystemStats:
        """What lives here now."""
        phases = [cell.phase for cell in self._cells.values()]
        return SystemStats(
            live=len(phases),
            recovering=sum(phase in (Phase.RECOVERING, Phase.PAUSED) for phase in phases),
            stopped=sum(phase is Phase.STOPPED for phase in phases),
            failures=self._supervisor.failures(),
        )

    def cell_of(self, cls: type[PersistentActor[Any]], stream_id: str) -> Cell:
        """The live cell of an actor, brought to life if need be. For `ActorRef`."""
        cell = self._cells.get(stream_id)
        if cell is None:
            if not self._is_open:
                raise ActorStopped("the actor system is not open: use it inside `async with ActorSystem(url)`")
            if len(self._cells) >= self._max_live:
                self._make_room()
            cell = Cell(self, cls, stream_id)
            cell.used = self.next_use()
            self._cells[stream_id] = cell
            cell.activate(self._supervisor.pause_left(stream_id))
            if self._sweeper is None:
                self._schedule_sweep()
        return cell

    @property
    def is_open(self) -> bool:
        """Whether commands are taken."""
        return self._is_open

    # What cells ask of the system

    def new_reply(self) -> asyncio.Future[Any]:
        """A future of this system's loop."""
        return self.loop.create_future()

    def start_task(self, work: Coroutine[Any, Any, None], context: contextvars.Context | None) -> None:
        """Run work that belongs to the system: it is awaited or cancelled when the system closes."""
        task = self.loop.create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

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
                await recover(self.store, actor, cell, page_timeout=self._recovery_timeout)
                hook = actor.recovered()
                if inspect.isawaitable(hook):
                    await hook
        except TimeoutError as error:
            failure = RecoveryError(cell.stream_id, f"no events came for {self._recovery_timeout:g} s")
            failure.__cause__ = error
            cell.recovery_failed(failure)
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
        self._saving.add(cell.stream_id)
        self.start_task(self._save(cell.cls, cell.stream_id, version, data), None)

    async def _save(self, cls: type[PersistentActor[Any]], stream_id: str, version: int, data: bytes) -> None:
        snapshot = new_snapshot(stream_id, version, cls.state_type.fingerprint, data)
        try:
            await self.store.save_snapshot(snapshot, keep=cls.snapshot_policy.keep)
        except EventStoreError:
            # It is only an optimisation: the next one will do as well.
            logger.exception("%s: the snapshot at version %d was not saved", stream_id, version)
        finally:
            self._saving.discard(stream_id)

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
        for cell in idle[: max(1, self._max_live // 20)]:
            self._passivate(cell)

    def _schedule_sweep(self) -> None:
        # An actor is found idle between one and one and a half times idle_seconds after its last message.
        self._sweeper = self.loop.call_later(self._idle_seconds / 2, self._sweep, self.next_use())

    def _sweep(self, before: int) -> None:
        self._sweeper = None
        if self._is_open and self._cells:
            self._sweeper = self.loop.call_later(
                self._idle_seconds / 2, self._sweep_some, list(self._cells.values()), before
            )

    def _sweep_some(self, cells: list[Cell], before: int) -> None:
        if not self._is_open:
            return
        for cell in cells[-_SWEEP_TURN:]:
            if cell.used < before and cell.is_idle:
                self._passivate(cell)
        del cells[-_SWEEP_TURN:]
        if cells:
            self.loop.call_soon(self._sweep_some, cells, before)
            return
        self._supervisor.forget_old()
        self._sweeper = None
        if self._cells:
            self._schedule_sweep()


def _last_use(cell: Cell) -> int:
    return cell.used
