"""ReplicatedRef: how replicated actors are talked to: as others, and with a say in what other replicas must have."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, Literal, TypeVar, cast

from actors.command import Command
from actors.ref import ActorRef
from actors.replicas.replicated_actor import ReplicatedActor
from actors.replicas.replicated_cell import ReplicatedCell
from eventstore.errors import AskTimeout, DefinitionError, NotReplicated
from eventstore.events import Metadata
from eventstore.vector_clock import VectorClock

A = TypeVar("A", bound=ReplicatedActor[Any])
R = TypeVar("R")

Replicated = Literal["local", "all"] | int
"""How many replicas must have something: this one, all that take part, or so many, this one included."""


class ReplicatedRef(ActorRef[A], Generic[A]):
    """A reference to an actor that other replicas have as well."""

    __slots__ = ()

    async def ask(
        self,
        command: Command[R],
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        command_id: str | None = None,
        fresh: bool = False,
        replicated: Replicated = "local",
        after: VectorClock | None = None,
    ) -> R:
        """As with every actor, and besides:

        With `replicated` the reply comes when so many replicas are known to have stored what it rests on. Where that
        is not known within `timeout` seconds, it raises `NotReplicated`, which has the reply and says who has it: it
        is stored here and will reach the others. With `after`, which a `clock()` gave, here or on another replica, the
        command is decided when all that was known there has come here; it raises `AskTimeout` if it does not.
        """
        now = self._runtime.loop.time
        seconds = self._runtime.ask_timeout if timeout is None else timeout
        deadline = now() + seconds
        if after is not None:
            await self._wait_for(after, seconds)
        reply = await super().ask(
            command,
            timeout=seconds if after is None else deadline - now(),
            metadata=metadata,
            command_id=command_id,
            fresh=fresh,
        )
        if replicated != "local":
            await self._spread(replicated, deadline, reply)
        return reply

    async def clock(self, *, timeout: float | None = None) -> VectorClock:
        """What is stored of the actor here, once all is that was asked before: for `ask(…, after=clock)` elsewhere.

        Raises `AskTimeout` if that takes longer than `timeout` seconds, or the system's `ask_timeout`.
        """
        seconds = self._runtime.ask_timeout if timeout is None else timeout
        cell = self._replicated_cell()
        try:
            async with asyncio.timeout(seconds):
                return await cell.stored_clock(self._runtime.next_age())
        except TimeoutError:
            raise AskTimeout(
                f"{self.stream_id!r} was not done with what it was asked before within {seconds:g} s"
            ) from None

    async def _wait_for(self, clock: VectorClock, seconds: float) -> None:
        cell = self._replicated_cell()
        try:
            async with asyncio.timeout(seconds):
                await cell.stored_clock(self._runtime.next_age())
                await cell.until(lambda: cell.clock.covers(clock))
        except TimeoutError:
            raise AskTimeout(
                f"{self.stream_id!r} did not come to {clock} within {seconds:g} s and store it, it is at {cell.clock}: "
                "the command was not accepted"
            ) from None

    async def _spread(self, replicated: Literal["all"] | int, deadline: float, reply: object) -> None:
        cell = self._replicated_cell()
        others = cell.others
        wanted = len(others) + 1 if replicated == "all" else replicated
        if wanted > len(others) + 1:
            raise DefinitionError(
                f"replicated={wanted}: only {len(others) + 1} replicas take part; the command was stored here"
            )

        # Until it is known what is stored, that is what was decided.
        clock = cell.clock

        def is_spread() -> bool:
            # Who has left meanwhile is not waited for.
            most = len(cell.others) + 1
            return len(cell.known_by(clock)) >= (most if replicated == "all" else min(wanted, most))

        try:
            async with asyncio.timeout_at(deadline):
                clock = await cell.stored_clock(self._runtime.next_age())
                await cell.until(is_spread)
        except TimeoutError:
            known = cell.known_by(clock)
            missing = [name for name in cell.others if name not in known]
            raise NotReplicated(self.stream_id, clock, known=known, missing=missing, reply=reply) from None

    def _replicated_cell(self) -> ReplicatedCell:
        return cast("ReplicatedCell", self._live_cell())
