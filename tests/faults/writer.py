"""One of several processes on one store: deposits for some seconds, or until it is told to end, and closes.

    python -m tests.faults.writer URL RECORD NAME SECONDS STORE KEY…

It says when it is ready, begins when it gets a line, ends early when it gets another, and says in the end how long its
slowest deposit took. STORE is `honest`, or the name of one that is broken on purpose.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

from actors import ActorRef, ActorSystem
from eventstore import EventStore

from .broken import BROKEN, opened_with
from .vault import Deposit, Vault, Write, deposit, keep_depositing, writer_to


async def main(record: str, name: str, seconds: float, store: EventStore, keys: list[str]) -> None:
    longest = 0.0

    async def timed(vault: ActorRef[Vault], command: Deposit, write: Write) -> None:
        nonlocal longest
        start = time.monotonic()
        await deposit(vault, command, write)
        longest = max(longest, time.monotonic() - start)

    write = writer_to(os.open(record, os.O_WRONLY | os.O_CREAT, 0o600))
    async with store, ActorSystem(store) as system:
        print("ready", flush=True)
        sys.stdin.readline()
        is_over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def read() -> None:
            # The end of the input is none of the load.
            if sys.stdin.readline():
                is_over.set()
            loop.remove_reader(sys.stdin)

        loop.add_reader(sys.stdin, read)
        depositing = asyncio.create_task(keep_depositing(system, keys, name, write, timed))
        ending = asyncio.create_task(is_over.wait())
        await asyncio.wait([depositing, ending], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        loop.remove_reader(sys.stdin)
        for task in (depositing, ending):
            task.cancel()
        # What went wrong with the load is to be seen.
        await asyncio.wait([depositing])
        if not depositing.cancelled():
            depositing.result()
    print(longest)


if __name__ == "__main__":
    url, record, name, seconds, broken, *keys = sys.argv[1:]
    # Faults are expected, and the record has what came of them.
    logging.disable()
    opened = EventStore.open(url) if broken == "honest" else opened_with(BROKEN[broken], url)
    asyncio.run(main(record, name, float(seconds), opened, keys))
