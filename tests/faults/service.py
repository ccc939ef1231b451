"""A service that ends by signals, as one is written: the first SIGTERM ends it in good order, the second at once.

    python -m tests.faults.service URL RECORD BUILD KEY…

It owns its vaults under a lease of ten minutes, and its callers deposit until they are told that it has stopped. It
says when it serves, when it stops, and when all is closed. Builds: `honest`; `slow`, whose appends take a minute;
`leaving`, which ends at the first signal as others do at the second.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from itertools import count

from actors import ActorRef, ActorStopped, ActorSystem
from eventstore import EventStore
from eventstore.backend import AppendOutcome, Batch
from tests.faults.broken import Wrapped, opened_with
from tests.faults.vault import Deposit, SlowDeposit, Vault, Write, deposit, writer_to

LEASE_SECONDS = 600.0
CALLERS = 4


class Slow(Wrapped):
    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        await asyncio.sleep(60)
        return await self._backend.append(batches)


async def call(vault: ActorRef[Vault], name: str, write: Write) -> None:
    for number in count():
        make = SlowDeposit if number % 5 == 4 else Deposit
        command = make(id=f"{name}/{number}", parts=3 if number % 4 == 0 else 1, amount=number % 9 + 1)
        try:
            await deposit(vault, command, write)
        except ActorStopped as error:
            write(f"refused {command.id} {type(error).__name__}")
            return


async def main(url: str, record: str, build: str, keys: list[str]) -> None:
    write = writer_to(os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        stopping.set()
        # The next one has its usual effect.
        loop.remove_signal_handler(signal.SIGTERM)
        print("stopping", flush=True)

    if build != "leaving":
        loop.add_signal_handler(signal.SIGTERM, stop)
    store = opened_with(Slow, url) if build == "slow" else EventStore.open(url)
    async with (
        store,
        asyncio.TaskGroup() as callers,
        ActorSystem(store, ownership="exclusive", lease_seconds=LEASE_SECONDS) as system,
    ):
        for key in keys:
            for number in range(CALLERS):
                callers.create_task(call(system.ref(Vault, key), f"{key}/{number}", write))
        print("serving", flush=True)
        await stopping.wait()
    print("closed", flush=True)


if __name__ == "__main__":
    url, record, build, *keys = sys.argv[1:]
    logging.disable()
    asyncio.run(main(url, record, build, keys))
