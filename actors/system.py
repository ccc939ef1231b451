"""ActorSystem: the live actors of one process over one store. ActorRef: how they are talked to."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Coroutine
from itertools import count
from types import TracebackType
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar

from actors.actor import PersistentActor, stream_id_of
from actors.cell import Cell, Envelope, Phase, serving
from actors.command import Command
from actors.recovery import recover
from actors.supervision import FailureRecord
from eventstore.errors import (
    ActorStopped,
    AskCycle,
    AskTimeout,
    DefinitionError,
    EventStoreError,
    RecoveryError,
    StoreClosed,
)
from eventstore.events import Metadata
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
        self._failures: dict[str, FailureRecord] = {}
        self._restart_not_before: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._saving: set[str] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_open = False
        self.next_use = count(1).__next__
        self.loop: asyncio.AbstractEventLoop
        self.commits: GroupCommit

    async def __aenter__(self) -> Self:
        """Open the store, if it was given as a URL. Raises as `EventStore` does."""
        if self._is_open:
            raise StoreClosed("this actor system is already open: enter it once")
        if self._owns_store:
            await self.store.__aenter__()
        self.loop = asyncio.get_running_loop()
        self.commits = self.store.commits
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
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)
            for cell in self._cells.values():
                cell.abandon(ActorStopped(f"actor {cell.stream_id!r}: the system was closed before it was done"))
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
            failures={
                stream_id: (record.count, f"{type(record.last).__name__}: {record.last}")
                for stream_id, record in self._failures.items()
            },
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
            cell.activate(max(0.0, self._restart_not_before.pop(stream_id, 0.0) - time.monotonic()))
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
        policy = cell.cls.supervision
        record = self._failures.setdefault(cell.stream_id, FailureRecord())
        pause = record.pause_after(error, policy)
        logger.error("actor %r failed: %s: %s", cell.stream_id, type(error).__name__, error, exc_info=error)
        if pause is None:
            cell.stop(error)
        elif cell.phase is Phase.PASSIVE:
            self._restart_not_before[cell.stream_id] = time.monotonic() + pause
            self._forget(cell)
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
            self._failures.pop(stream_id, None)

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
        self._forget_old_failures()
        self._sweeper = None
        if self._cells:
            self._schedule_sweep()

    def _forget_old_failures(self) -> None:
        now = time.monotonic()
        self._restart_not_before = {key: at for key, at in self._restart_not_before.items() if at > now}
        for stream_id, record in list(self._failures.items()):
            cls = self._classes[stream_id.partition("-")[0]]
            if stream_id not in self._cells and record.is_forgotten(cls.supervision):
                del self._failures[stream_id]


class ActorRef(Generic[A]):
    """A reference to one actor: cheap, valid whether or not the actor is in memory, and the only way to it."""

    __slots__ = ("_actor", "_cell", "_system", "stream_id")

    def __init__(self, system: ActorSystem, actor: type[A], stream_id: str) -> None:
        self._system = system
        self._actor: type[PersistentActor[Any]] = actor
        self._cell: Cell | None = None
        self.stream_id = stream_id

    async def ask(self, command: Command[R], *, timeout: float | None = None, metadata: Metadata | None = None) -> R:
        """Send a command and wait for its reply, which comes when every event it rests on is durable.

        Raises what the handler raised; `AskTimeout` after `timeout` seconds (the command is not undone, and may still
        be handled); `MailboxFull` or `ActorStopped` (not accepted); `RecoveryError`; `ConcurrencyError`,
        `BackendUnavailable` (nothing stored) or `OutcomeUnknown`. To be cancelled ends the waiting, not the command.
        `metadata` is stored with the command's events.
        """
        cell = self._cell
        if cell is not None and cell.is_ready:
            handle = cell.decisions.get(command.__class__)
            if handle is not None:
                cell.used = self._system.next_use()
                decided = cell.decide(handle, command, metadata)
                if decided.__class__ is not Envelope:
                    at_once: R = decided
                    return at_once
                durable: R = await self._reply(decided.reply, timeout)  # type: ignore[arg-type]
                return durable
        reply: R = await self._ask_by_mailbox(command, timeout, metadata)
        return reply

    async def tell(self, command: Command[Any], *, metadata: Metadata | None = None) -> None:
        """Send a command and return when the actor has accepted it. What becomes of it is not reported here: a failure
        is logged and supervised. Raises `MailboxFull` or `ActorStopped` if it is not accepted."""
        self._check_command(command)
        cell = await self._accepting_cell(self._system.ask_timeout)
        cell.used = self._system.next_use()
        cell.accept(Envelope(command, None, metadata, contextvars.copy_context()))

    def restart(self) -> None:
        """Let the actor serve again after supervision stopped it: it recovers with its next message."""
        self._system.restart(self.stream_id)

    async def _ask_by_mailbox(self, command: Command[Any], timeout: float | None, metadata: Metadata | None) -> Any:
        self._check_command(command)
        chain = serving.get()
        if any(cell.stream_id == self.stream_id for cell in chain):
            raise AskCycle([*(cell.stream_id for cell in chain), self.stream_id])
        seconds = self._system.ask_timeout if timeout is None else timeout
        deadline = self._system.loop.time() + seconds
        cell = await self._accepting_cell(seconds)
        cell.used = self._system.next_use()
        reply = self._system.new_reply()
        cell.accept(Envelope(command, reply, metadata, contextvars.copy_context()))
        return await self._reply(reply, deadline - self._system.loop.time())

    async def _accepting_cell(self, seconds: float) -> Cell:
        """The cell, with room in its mailbox if the system waits for room instead of refusing."""
        system = self._system
        cell = self._live_cell()
        if system.mailbox_overflow == "wait" and cell.is_full:
            deadline = system.loop.time() + seconds
            while cell.is_full:
                await self._reply(cell.room(), deadline - system.loop.time())
                cell = self._live_cell()
        return cell

    def _live_cell(self) -> Cell:
        if not self._system.is_open:
            raise ActorStopped("the actor system is closed, or not open yet: the command was not accepted")
        cell = self._cell
        if cell is None or cell.phase is Phase.PASSIVE:
            cell = self._cell = self._system.cell_of(self._actor, self.stream_id)
        return cell

    async def _reply(self, reply: asyncio.Future[Any], timeout: float | None) -> Any:
        seconds = self._system.ask_timeout if timeout is None else timeout
        # A plain timer: asyncio.timeout costs several times as much, and here only this future is to be given up.
        timer = self._system.loop.call_later(seconds, self._expire, reply, seconds)
        try:
            return await reply
        finally:
            timer.cancel()

    def _expire(self, reply: asyncio.Future[Any], seconds: float) -> None:
        if not reply.done():
            reply.set_exception(
                AskTimeout(
                    f"{self.stream_id!r} did not reply within {seconds:g} s; the command is not undone: "
                    "it may still be handled and stored"
                )
            )

    def _check_command(self, command: Command[Any]) -> None:
        if type(command) not in self._actor.handlers.commands:
            raise DefinitionError(
                f"{self._actor.__qualname__} has no @command_handler for {type(command).__qualname__}"
            )

    def __repr__(self) -> str:
        return f"ActorRef({self._actor.__qualname__}, {self.stream_id!r})"


def _last_use(cell: Cell) -> int:
    return cell.used
