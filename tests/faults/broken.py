"""Workers that break a promise on purpose: the verdict must find each of them guilty."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors import ActorRef, MailboxFull
from backends.sqlite import SQLiteBackend
from eventstore import Appended
from eventstore.backend import AppendOutcome, Batch

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


class BufferingBackend(SQLiteBackend):
    """Answers an append at once, and stores it ten milliseconds later."""

    _buffer: asyncio.Task[None] | None = None

    def append(self, batches: Sequence[Batch]) -> asyncio.Future[Sequence[AppendOutcome]]:
        before = self._buffer

        async def store() -> None:
            await asyncio.sleep(0.01)
            if before is not None:
                await before
            await super(BufferingBackend, self).append(batches)

        self._buffer = asyncio.ensure_future(store())
        answer: asyncio.Future[Sequence[AppendOutcome]] = asyncio.get_running_loop().create_future()
        answer.set_result([Appended(0, tuple(w.expected + len(w.events) for w in batch)) for batch in batches])
        return answer
