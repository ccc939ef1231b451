"""Runtime: the live cells of one process: who is in memory, what runs, and what becomes of those that fail."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Literal, TypeVar, cast

import orjson

from actors.actor import PersistentActor
from actors.cells.cell import Cell
from actors.cells.living_cell import LivingCell
from actors.cells.mailbox import Envelope
from actors.cells.phase import Phase
from actors.command import Command
from actors.dead_letters import DeadLetters
from actors.deadlines import Deadlines
from actors.follower import Follower
from actors.owned_tasks import CANCEL_SECONDS, OwnedTasks
from actors.ownership import Ownership
from actors.passivation import Passivation
from actors.permits import Permits
from actors.rebuilding import rebuild
from actors.recovery import catch_up
from actors.ref import give_up
from actors.replicas.membership import Membership
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_cell import ReplicatedCell
from actors.settings import Settings
from actors.stats import SystemStats
from actors.stopped_actors import StoppedActors, stopped_after
from actors.supervision import Restart, Resume, Stop
from actors.supervisor import NAMED_ACTORS, Supervisor, described
from actors.told_error import ENDS_THE_PROGRAM
from actors.transactions.transacting import RETRIES, transact
from actors.transactions.transaction import Transaction
from actors.upkeep import Upkeep
from eventstore.backend import CommandLookup, CommandsFound
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import ActorStopped, DefinitionError, EventStoreError, RecoveryError
from eventstore.events import Metadata
from eventstore.read_models.inline import InlineProjections
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How often it is looked whether everything is done, while tasks that do not count are still there.
_TURN_SECONDS = 0.02

_NAMED = 10


class Runtime:
    """Made inside the event loop it belongs to, over an open store."""

    def __init__(
        self,
        store: EventStore,
        settings: Settings,
        dead_letters: DeadLetters,
        *,
        inline: InlineProjections | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self.loop = asyncio.get_running_loop()
        self.new_reply: Callable[[], asyncio.Future[Any]] = self.loop.create_future
        self.commits = store.commits
        self.deadlines = Deadlines(self.loop, give_up)
        self.ask_timeout = settings.ask_timeout
        self.mailbox_size = settings.mailbox_size
        self.mailbox_overflow: Literal["reject", "wait"] = settings.mailbox_overflow
        self.max_payload_bytes = store.max_payload_bytes
        self.next_use = count(1).__next__
        self.is_open = True
        self.is_shut = False
        self._inline = inline
        self.has_inline = inline is not None
        self.has_user_sql = store.capabilities.user_sql
        self.membership: Membership | None = None
        self.transactions: set[Transaction] = set()
        self._next_age = count(1).__next__
        self._permits = Permits(settings.recoveries_at_once, store.commits.breaker)
        self._cells: dict[str, Cell] = {}
        self._supervisor = Supervisor(settings.supervision)
        self._stopped = StoppedActors()
        self._dead_letters = dead_letters
        # Why the actors that are about to be rebuilt failed.
        self._restarting: dict[str, BaseException] = {}
        self._tasks = OwnedTasks(self.loop)
        self.start_task = self._tasks.start
        self._upkeep = Upkeep(store, self._tasks)
        self.save_snapshot = self._upkeep.save
        self.command_remembered = self._upkeep.command_remembered
        self._passivation = Passivation(
            self._cells,
            self._passivate,
            most=settings.max_live,
            idle_seconds=settings.idle_seconds,
            next_use=self.next_use,
            swept=self._supervisor.forget_old,
        )
        self._ownership: Ownership | None = None
        self._follower: Follower | None = None
        self._following: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._is_hurried = False

    def hurry(self) -> None:
        """Whoever closes does not wait any longer for what is unfinished."""
        self._is_hurried = True
        if self._finishing is not None:
            self._finishing.cancel()

    def refuse(self) -> None:
        """Take no more commands from outside: it closes."""
        self.is_open = False
        for cell in self._cells.values():
            cell.is_ready = False
        self._passivation.end()
        if self._following is not None:
            self._following.cancel()

    async def close(self) -> None:
        """Finish the commands that were accepted, and answer what could not be finished in time.

        It must not be cancelled, but `hurry` may be called.
        """
        self.refuse()
        try:
            if not self._is_hurried:
                self._finishing = self.loop.create_task(self._finish())
                await asyncio.wait([self._finishing])
                if not self._finishing.cancelled():
                    self._finishing.result()
        finally:
            self.is_shut = True
            for transaction in list(self.transactions):
                transaction.abort(ActorStopped("the actor system was closed: nothing of the transaction was stored"))
            await self._end_tasks()
            for cell in list(self._cells.values()):
                cell.abandon()
            self._cells.clear()
            self._permits.close()
            if self._ownership is not None:
                # Only now: what was on its way was still written under it.
                await self._ownership.close()
            # Whoever was answered just now gets a turn before the store is gone.
            await asyncio.sleep(0)

    async def _end_tasks(self) -> None:
        left = await self._tasks.end()
        if left:
            logger.error(
                "the actor system closes while %d tasks go on that were cancelled %g s ago, among them handlers of %s: "
                "nothing that these still persist is stored",
                left,
                CANCEL_SECONDS,
                sorted(cell.stream_id for cell in self._cells.values() if cell.phase is Phase.HANDLING)[:_NAMED],
            )

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout):
                drained = self.commits.drained()
                while any(not cell.is_quiet for cell in self._cells.values()):
                    # Work goes on in tasks, in appends, or in the next turn of the loop. Appends may be others', too,
                    # which come without end: so it is not waited until there are none.
                    if drained.done():
                        drained = self.commits.drained()
                    under_way: list[asyncio.Future[None]] = [*self._tasks]
                    if not drained.done():
                        under_way.append(drained)
                    if under_way:
                        await asyncio.wait(under_way, timeout=_TURN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    elif self.transactions:
                        await asyncio.sleep(_TURN_SECONDS)
                    else:
                        await asyncio.sleep(0)
                for cell in [cell for cell in self._cells.values() if cell.is_idle]:
                    self._passivate(cell)
                if saves := self._upkeep.saves:
                    await asyncio.wait(saves)
        except TimeoutError:
            logger.warning("the actor system closes with work unfinished after %g s", self._settings.shutdown_timeout)

    # What references ask of the runtime

    def cell_of(self, cls: type[PersistentActor[Any]], stream_id: str) -> Cell:
        """The live cell of an actor, brought to life if need be."""
        cell = self._cells.get(stream_id)
        if cell is None:
            if self.is_shut:
                raise ActorStopped("the actor system is closed: the command was not accepted")
            self._stopped.check(stream_id)
            self._passivation.make_room()
            cell = self._new_cell(cls, stream_id)
            cell.used = self.next_use()
            self._cells[stream_id] = cell
            cell.activate(self._supervisor.pause_left(stream_id))
            # It ends in the turn in which it finds no cells, and its callbacks are called a turn later.
            is_followed = self._following is not None and not self._following.done()
            if not is_followed and self.is_open and not self.is_exclusive(cls):
                self._follower = Follower(self._store, self._cells, self._settings.catch_up_seconds)
                self._following = self.start_task(self._follower.run())
            self._passivation.begin()
        return cell

    def _new_cell(self, cls: type[PersistentActor[Any]], stream_id: str) -> Cell:
        if issubclass(cls, ReplicatedActor):
            if self.membership is None:
                raise DefinitionError(
                    f"{cls.__qualname__} is replicated: give this replica a name, ActorSystem(…, replica=…)"
                )
            return ReplicatedCell(self, cls, stream_id, membership=self.membership, saver=self._upkeep.save_packed)
        return Cell(self, cls, stream_id)

    def live_cell(self, stream_id: str) -> Cell | None:
        """An actor that is in memory now."""
        return self._cells.get(stream_id)

    def live_cells(self) -> list[Cell]:
        """All that are."""
        return list(self._cells.values())

    def next_age(self) -> int:
        """A place among transactions: behind all that have begun."""
        return self._next_age()

    def transaction(
        self, *, timeout: float | None, metadata: Metadata | None, command_id: str | None, age: int | None = None
    ) -> Transaction:
        """A new transaction; with an `age` it is an earlier one that is run again."""
        return Transaction(
            self,
            age=self._next_age() if age is None else age,
            seconds=self._settings.transaction_timeout if timeout is None else timeout,
            command_id=command_id,
            metadata=metadata,
        )

    async def begin_sql(self, seconds: float) -> SqlTransaction:
        """A transaction of the database's, for statements of the user's own."""
        transaction = await self._store.begin_sql(seconds=seconds)
        return transaction if self._inline is None else self._inline.within(transaction)

    async def transact(
        self,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        retries: int = RETRIES,
        timeout: float | None,
        metadata: Metadata | None,
        command_id: str | None,
    ) -> T:
        """Run `work` in transactions of one age until one is stored."""
        age = self._next_age()

        def begin() -> Transaction:
            return self.transaction(timeout=timeout, metadata=metadata, command_id=command_id, age=age)

        return await transact(begin, work, retries=retries)

    def stats(self) -> SystemStats:
        """What lives here now. It may be called in any thread."""
        supervisor = self._supervisor
        # A list is made in one step, whatever other threads do.
        cells = list(self._cells.values())
        # In lists, seven times as fast as one by one: it is done for every renewal of a lease.
        phases = [cell.phase for cell in cells]
        stopped = self._stopped.ids()
        return SystemStats(
            live=len(cells),
            recovering=phases.count(Phase.RECOVERING) + phases.count(Phase.PAUSED),
            stopped=len(stopped),
            failures=supervisor.failures(),
            restarts=supervisor.restarts,
            restarted=supervisor.restarted(),
            stopped_actors=stopped[-NAMED_ACTORS:],
            last_failure=supervisor.last_failure,
            dead_letters=self._dead_letters.count,
            dead_letters_dropped=self._dead_letters.dropped,
        )

    # What cells ask of the runtime

    async def recover(self, cell: LivingCell, pause: float) -> None:
        """Rebuild a cell's state, with at most so many others at a time."""
        cause = self._restarting.pop(cell.stream_id, None)
        if pause:
            await asyncio.sleep(pause)
        try:
            cell.epoch, cell.lease = await self._claim(cell)
            if cell.epoch is None and self._follower is not None:
                await self._follower.begun()
            async with self._permits:
                actor = await self._rebuild(cell)
            # Without a permit: the hook may ask actors that must recover first.
            cell.begin_handling()
            try:
                await _finished(actor.recovered())
                if cause is not None:
                    await _finished(actor.after_restart(cause))
            finally:
                cell.end_handling()
        except EventStoreError as error:
            cell.recovery_failed(error)
        except BaseException as error:
            if self.is_shut and isinstance(error, asyncio.CancelledError):
                raise  # The close, which answers whoever waits.
            failure = RecoveryError(cell.stream_id, described(error))
            failure.__cause__ = error
            cell.recovery_failed(failure)
            if isinstance(error, ENDS_THE_PROGRAM):
                raise
        else:
            cell.recovered()

    async def _claim(self, cell: LivingCell) -> tuple[int | None, int]:
        if not self.is_exclusive(cell.cls):
            return None, 0
        if self._ownership is None:
            settings = self._settings
            self._ownership = Ownership(
                self._store, name=settings.name, seconds=settings.lease_seconds, report=self._report
            )
        return await self._ownership.claim(cell.stream_id)

    async def _rebuild(self, cell: LivingCell) -> PersistentActor[Any]:
        if isinstance(cell, ReplicatedCell):
            return await cell.rebuild(self._store)
        return await rebuild(self._store, cell, page_timeout=self._settings.recovery_timeout)

    async def catch_up(self, cell: Cell) -> None:
        """Bring a live cell's state to what the journal holds at this moment."""
        if isinstance(cell, ReplicatedCell):
            await cell.catch_up_with(self._store)
            return
        await catch_up(self._store, cell.actor, cell, page_timeout=self._settings.recovery_timeout)

    async def find_command(self, lookup: CommandLookup) -> CommandsFound:
        """What the journal remembers of a command."""
        return await self._store.find_command(lookup)

    def owns_streams(self, lease: int) -> bool:
        """Whether what was claimed under a lease is still this process's."""
        return self._ownership is not None and self._ownership.holds(lease)

    def is_exclusive(self, cls: type[PersistentActor[Any]]) -> bool:
        """Whether one process at a time owns the actors of a class."""
        return (cls.ownership or self._settings.ownership) == "exclusive"

    def _report(self) -> bytes:
        return orjson.dumps(self.stats().report())

    def supervise(self, cell: LivingCell, error: BaseException) -> None:
        """Decide what becomes of a cell that failed."""
        logger.error("actor %r failed: %s", cell.stream_id, described(error), exc_info=error)
        verdict = self._supervisor.decide(cell.stream_id, error, cell.cls.supervision)
        match verdict.policy:
            case Stop():
                # The text, not the error: its traceback holds on to the state.
                text = described(error)
                self._stopped.add(cell.stream_id, text)
                self.forget(cell)
                cell.stop(stopped_after(cell.stream_id, text))
            case _ if cell.phase is Phase.PASSIVE:
                self.forget(cell)  # The pause holds for whoever brings it to life again.
            case Resume():
                cell.activate(0.0)
            case Restart():
                try:
                    cell.actor.before_restart(error)
                except ENDS_THE_PROGRAM:
                    raise
                except BaseException:
                    logger.exception("%s.before_restart failed for %r", cell.cls.__qualname__, cell.stream_id)
                finally:
                    self._restarting[cell.stream_id] = error
                    cell.activate(verdict.pause)

    def tell_failed(self, cell: LivingCell, envelope: Envelope, error: BaseException) -> None:
        """Nobody waits for the reply: the log is told, and the dead letters."""
        command = cast("Command[Any]", envelope.command)
        logger.error(
            "telling %r a %s failed: %s", cell.stream_id, type(command).__name__, described(error), exc_info=error
        )
        identity = envelope.identity
        self._dead_letters.add(cell.stream_id, command, error, identity and identity.command_id)

    # Passivation

    def restart(self, stream_id: str) -> None:
        """Let a stopped actor come to life again with its next message."""
        if self._stopped.remove(stream_id):
            self._supervisor.forgive(stream_id)

    def _passivate(self, cell: Cell) -> None:
        data = cell.snapshot_on_passivation()
        if data is not None:
            self.save_snapshot(cell, cell.version, data)
        self.forget(cell)

    def _release(self, stream_id: str, epoch: int) -> None:
        # At the end the lease takes all claims with it.
        ownership = self._ownership if self.is_open else None
        if ownership is not None and ownership.release(stream_id, epoch):
            self.start_task(ownership.flush())

    def forget(self, cell: LivingCell) -> None:
        """Let a cell leave memory: the next message brings the actor to life anew."""
        cell.passivate()
        if self._cells.get(cell.stream_id) is cell:
            del self._cells[cell.stream_id]
        if cell.epoch is not None:
            self._release(cell.stream_id, cell.epoch)


async def _finished(hook: Awaitable[None] | None) -> None:
    """A hook may be `async def`."""
    if inspect.isawaitable(hook):
        await hook
