"""Workers that break a promise on purpose: the verdict must find each of them guilty."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from typing import Any, cast

from actors import ActorRef, MailboxFull
from eventstore import Appended, BackendUnavailable, EventStore, OutcomeUnknown
from eventstore.backend import AppendOutcome, Backend, Batch
from eventstore.codec import new_event_id

from .vault import Deposit, Vault, Write
from .vault import deposit as honest_deposit


async def deposit_by_tell(vault: ActorRef[Vault], command: Deposit, write: Write) -> None:
    """Acknowledges what the mailbox has accepted, durable or not."""
    write(f"intent {command.id} {vault.stream_id} {command.parts} {command.amount}")
    try:
        await vault.tell(command)
    except MailboxFull:
        await asyncio.sleep(0.001)
    else:
        write(f"ack {command.id} 0 0")
        await asyncio.sleep(0)


async def deposit_twice(vault: ActorRef[Vault], command: Deposit, write: Write) -> None:
    """Asks again although it has the reply, as a retry that knows no ids would."""
    await honest_deposit(vault, command, write)
    await vault.ask(command)


class Wrapped:
    """A backend whose appends go through a broken one; all else is the backend's own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def append(self, batches: Sequence[Batch]) -> Awaitable[Sequence[AppendOutcome]]:
        return asyncio.ensure_future(self.store(batches))

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        raise NotImplementedError


class Buffering(Wrapped):
    """Answers an append at once, and stores it ten milliseconds later."""

    _buffer: asyncio.Task[None] | None = None

    def append(self, batches: Sequence[Batch]) -> Awaitable[Sequence[AppendOutcome]]:
        before = self._buffer

        async def store() -> None:
            await asyncio.sleep(0.01)
            if before is not None:
                await before
            await self._backend.append(batches)

        self._buffer = asyncio.ensure_future(store())
        answer: asyncio.Future[Sequence[AppendOutcome]] = asyncio.get_running_loop().create_future()
        answer.set_result([Appended(0, tuple(w.expected + len(w.events) for w in batch)) for batch in batches])
        return answer


class TakingLostForRefused(Wrapped):
    """Says that nothing was stored when no reply came."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        try:
            return await self._backend.append(batches)
        except OutcomeUnknown as error:
            raise BackendUnavailable("the connection was lost: nothing was stored") from error


class RetryingAnew(Wrapped):
    """Appends again after a lost reply, with new ids: the store cannot know that these are the same events."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        try:
            return await self._backend.append(batches)
        except OutcomeUnknown:
            return await self.store([_renamed(batch) for batch in batches])


BROKEN: dict[str, Callable[[Backend], Wrapped]] = {
    "buffering": Buffering,
    "taking lost for refused": TakingLostForRefused,
    "retrying anew": RetryingAnew,
}


def opened_with(broken: Callable[[Backend], Wrapped], url: str) -> EventStore:
    """The store at a URL, with its backend broken."""
    store = EventStore.open(url)
    store._backend = cast("Backend", broken(store._backend))
    return store


def _renamed(batch: Batch) -> Batch:
    batch_id = new_event_id()
    ids = chain([batch_id], iter(new_event_id, None))
    return [
        write._replace(events=[event._replace(event_id=next(ids), batch_id=batch_id) for event in write.events])
        for write in batch
    ]
