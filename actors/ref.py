"""ActorRef: how actors are talked to."""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Iterable
from math import inf
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from actors.actor import PersistentActor
from actors.cells.cell import Cell
from actors.cells.mailbox import Envelope
from actors.cells.phase import Phase
from actors.command import Command, without_handler
from actors.command_identity import identify
from actors.deadlines import Deadlines, check_seconds
from actors.handlers import CommandRoute
from actors.handling import Handling, current_handling
from eventstore.errors import ActorStopped, AskTimeout, DefinitionError, MailboxFull, StoreClosed
from eventstore.events import Metadata

A = TypeVar("A", bound=PersistentActor[Any])
R = TypeVar("R")


class Asks(Protocol):
    """What several commands are asked by, in order: a transaction."""

    async def ask(self, ref: ActorRef[Any], command: Command[R]) -> R: ...


class RefRuntime(Protocol):
    """What a reference needs of the runtime it belongs to."""

    loop: asyncio.AbstractEventLoop
    new_reply: Callable[[], asyncio.Future[Any]]
    deadlines: Deadlines
    ask_timeout: float
    mailbox_overflow: Literal["reject", "wait"]
    next_use: Callable[[], int]
    is_open: bool
    is_shut: bool

    def owns_streams(self, lease: int) -> bool: ...

    def cell_of(self, cls: type[PersistentActor[Any]], stream_id: str) -> Cell: ...

    def restart(self, stream_id: str) -> None: ...

    def next_age(self) -> int: ...

    async def transact(
        self,
        work: Callable[[Asks], Awaitable[R]],
        *,
        retries: int = ...,
        timeout: float | None,
        metadata: Metadata | None,
        command_id: str | None,
    ) -> R: ...


class ActorRef(Generic[A]):
    """A reference to one actor: cheap, valid whether or not the actor is in memory, and the only way to it."""

    __slots__ = ("_actor", "_cell", "_runtime", "stream_id")

    def __init__(self, runtime: RefRuntime, actor: type[A], stream_id: str) -> None:
        self._runtime = runtime
        self._actor: type[PersistentActor[Any]] = actor
        self._cell: Cell | None = None
        self.stream_id = stream_id

    async def ask(
        self,
        command: Command[R],
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        command_id: str | None = None,
        fresh: bool = False,
    ) -> R:
        """Send a command and wait for its reply, which comes when every event it rests on is durable.

        With a `command_id` the command is handled once: its reply, or its rejection, is stored with its events, and
        the same command under the same id is answered with it from then on, by whatever process, after whatever
        crash. So ask again, with the same id, whenever the reply did not come. An `async def` handler that stores
        some of its events early is remembered when it has ended. `new_command_id` makes ids that serve best.

        With `fresh` the state is brought up to what the journal holds at this moment; without, a state that another
        process has moved on may be seen for some time. It makes no difference where the actor is owned exclusively.

        Raises what the handler raised; `AskTimeout` after `timeout` seconds (the command is not undone, and may still
        be handled); `MailboxFull` or `ActorStopped` (not accepted); `OwnedElsewhere` or `FencedError` (another process
        owns the actor); `RecoveryError`; `ConcurrencyError`, `BackendUnavailable` (nothing stored) or `OutcomeUnknown`;
        with an id also `DuplicateCommandMismatch`, `CommandForgotten` or `CodecError` (nothing done). To be cancelled
        ends the waiting, not the command. `metadata` is stored with the command's events, with what `with_metadata` has
        set around.
        """
        cell = self._cell
        runtime = self._runtime
        if timeout is not None:
            check_seconds(timeout, "timeout")
        identity = None if command_id is None else identify(command, command_id)
        # In another loop or thread than the system's the way by the mailbox refuses it.
        if cell is not None and cell.is_ready and not fresh and get_running_loop() is runtime.loop:
            handle = cell.decisions.get(command.__class__)
            if (
                handle is not None
                and (identity is None or cell.knows_new(identity))
                and (cell.epoch is None or runtime.owns_streams(cell.lease))
            ):
                cell.used = runtime.next_use()
                decided = cell.decide(handle, command, metadata, identity)
                if decided.__class__ is not Envelope:
                    at_once: R = decided
                    return at_once
                # As `_reply` does it: one coroutine fewer.
                reply: asyncio.Future[R] = decided.reply  # type: ignore[assignment]
                seconds = runtime.ask_timeout if timeout is None else timeout
                if seconds == inf:
                    return await reply
                due = runtime.deadlines.add(reply, seconds, (self.stream_id, seconds))
                try:
                    return await reply
                finally:
                    due.pop(reply, None)
        envelope = Envelope(command, None, metadata, contextvars.copy_context(), identity)
        envelope.is_fresh = fresh
        asker = current_handling()
        if asker is None:
            durable: R = await self._ask_by_mailbox(envelope, timeout)
        else:
            durable = await self._ask_within(asker, envelope, timeout)
        return durable

    async def tell(
        self, command: Command[Any], *, metadata: Metadata | None = None, command_id: str | None = None
    ) -> None:
        """Send a command and return when the actor has accepted it. What becomes of it is not reported here: a failure
        is logged, and kept among the system's dead letters. With a `command_id` it is handled once, as with `ask`.

        Raises `MailboxFull` or `ActorStopped` if it is not accepted. Where the system waits for room in a full mailbox
        instead, it does so for `ask_timeout` seconds at most.
        """
        self.route_of(command)
        identity = None if command_id is None else identify(command, command_id)
        cell = await self._accepting_cell(self._runtime.ask_timeout)
        cell.used = self._runtime.next_use()
        cell.accept(Envelope(command, None, metadata, contextvars.copy_context(), identity))

    async def batch(
        self,
        commands: Iterable[Command[R]],
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        command_id: str | None = None,
    ) -> list[R]:
        """Have several commands handled in order, and stored together or not at all. Returns their replies.

        It is a transaction over this one actor (`ActorSystem.transact`): a command that raises has nothing of the
        batch stored, and with a `command_id` the whole is handled once.
        """
        wanted = list(commands)

        async def ask_all(transaction: Asks) -> list[R]:
            return [await transaction.ask(self, command) for command in wanted]

        return await self._runtime.transact(ask_all, timeout=timeout, metadata=metadata, command_id=command_id)

    def restart(self) -> None:
        """Let the actor serve again after supervision stopped it: it recovers with its next message."""
        self._runtime.restart(self.stream_id)

    async def _ask_within(self, asker: Handling, envelope: Envelope, timeout: float | None) -> Any:
        """An async handler asks: it waits, so nobody it waits for may wait for it."""
        self.route_of(envelope.command)
        with asker.waiting_for(self._live_cell()):
            return await self._ask_by_mailbox(envelope, timeout)

    async def _ask_by_mailbox(self, envelope: Envelope, timeout: float | None) -> Any:
        self.route_of(envelope.command)
        runtime = self._runtime
        if runtime.mailbox_overflow == "wait":
            # The time spent waiting for room counts.
            seconds = runtime.ask_timeout if timeout is None else timeout
            deadline = runtime.loop.time() + seconds
            cell = await self._accepting_cell(seconds)
            timeout = deadline - runtime.loop.time()
        else:
            cell = self._live_cell()
        cell.used = runtime.next_use()
        envelope.reply = runtime.new_reply()
        cell.accept(envelope)
        return await self._reply(envelope.reply, timeout)

    async def _accepting_cell(self, seconds: float) -> Cell:
        """The cell, with room in its mailbox if the system waits for room instead of refusing. Raises `MailboxFull`."""
        runtime = self._runtime
        cell = self._live_cell()
        if runtime.mailbox_overflow == "wait":
            asker = current_handling()
            if asker is not None and asker is cell.handling and cell.has_no_room:
                raise MailboxFull(
                    f"the mailbox of {self.stream_id!r} is full, and its own handler cannot wait for room in it: the "
                    "command was not accepted"
                )
            try:
                async with asyncio.timeout(seconds):
                    while cell.has_no_room:
                        await cell.room()
                        cell = self._live_cell()
            except TimeoutError:
                raise MailboxFull(
                    f"the mailbox of {self.stream_id!r} had no room within {seconds:g} s: the command was not accepted"
                ) from None
        return cell

    def _live_cell(self) -> Cell:
        if not self._runtime.is_open and (current_handling() is None or self._runtime.is_shut):
            # What was accepted before the close may still ask others: else it could not be finished.
            raise ActorStopped("the actor system is closed: the command was not accepted")
        if get_running_loop() is not self._runtime.loop:
            raise StoreClosed(
                "this actor system belongs to another event loop: from other threads, use "
                "asyncio.run_coroutine_threadsafe(ref.ask(command), loop); in the child of a fork, make another system"
            )
        cell = self._cell
        if cell is None or cell.phase is Phase.PASSIVE:
            cell = self._cell = self._runtime.cell_of(self._actor, self.stream_id)
        return cell

    async def _reply(self, reply: asyncio.Future[Any], timeout: float | None) -> Any:
        runtime = self._runtime
        seconds = runtime.ask_timeout if timeout is None else timeout
        if seconds == inf:
            return await reply
        due = runtime.deadlines.add(reply, seconds, (self.stream_id, seconds))
        try:
            return await reply
        finally:
            due.pop(reply, None)

    def route_of(self, command: Command[Any] | None) -> CommandRoute:
        """The handler that a command goes to. Raises `DefinitionError` if there is none."""
        route = self._actor.handlers.commands.get(type(command))  # type: ignore[arg-type]
        if route is None:
            raise DefinitionError(without_handler(self._actor, command))
        return route

    def cell_in(self, runtime: object) -> Cell:
        """The actor in memory, for a transaction of its own system. Raises `DefinitionError` for another's."""
        if self._runtime is not runtime:
            raise DefinitionError(
                f"{self.stream_id!r} is a reference of another actor system: make one by the system that the "
                "transaction was begun by"
            )
        cell = self._live_cell()
        cell.used = self._runtime.next_use()
        return cell

    def __deepcopy__(self, memo: object) -> Self:
        # In a reply, too, it is the way to the same actor.
        return self

    def __repr__(self) -> str:
        return f"ActorRef({self._actor.__qualname__}, {self.stream_id!r})"


def give_up(reply: asyncio.Future[Any], about: tuple[str, float]) -> None:
    """End the waiting for a reply that did not come in time."""
    stream_id, seconds = about
    reply.set_exception(
        AskTimeout(
            f"{stream_id!r} did not reply within {seconds:g} s; the command is not undone: "
            "it may still be handled and stored"
        )
    )
