"""One of several processes on one store: deposits for some seconds, and closes.

    python -m tests.faults.writer URL RECORD NAME SECONDS KEY…

It says when it is ready, begins when it gets a line, and says in the end how long its slowest deposit took.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

from actors import ActorRef, ActorSystem

from .vault import Deposit, Vault, Write, deposit, keep_depositing, writer_to


async def main(url: str, record: str, name: str, seconds: float, keys: list[str]) -> None:
    longest = 0.0

    async def timed(vault: ActorRef[Vault], command: Deposit, write: Write) -> None:
        nonlocal longest
        start = time.monotonic()
        await deposit(vault, command, write)
        longest = max(longest, time.monotonic() - start)

    write = writer_to(os.open(record, os.O_WRONLY | os.O_CREAT, 0o600))
    async with ActorSystem(url) as system:
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            async with asyncio.timeout(seconds):
                await keep_depositing(system, keys, name, write, timed)
        except TimeoutError:
            pass
    print(longest)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5:]))
