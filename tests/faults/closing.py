"""Cancel the closing of an actor system at every await, and print what is left of it. A program of its own: threads
that are left behind could keep the process from ending.

    python -m tests.faults.closing URL MOMENT
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from itertools import count

from actors import ActorSystem

from .cancelling import Moment, cancel_at, threads_and_files
from .vault import Deposit, GetTotal, SlowDeposit, Vault


async def cancel_everywhere(url: str, moment: Moment) -> list[list[str]]:
    """What was left by each cancellation."""
    left: list[list[str]] = []
    for number in count(1):
        # The threads of the loop's own pool come when they are needed, and stay.
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(os.cpu_count() or 1)))
        before = things()
        system = ActorSystem(url)
        await system.__aenter__()
        vault = system.ref(Vault, str(number))
        acknowledged = await vault.ask(Deposit(id="acknowledged"))
        await vault.tell(SlowDeposit(id="accepted", parts=2))
        # At once, so that every reading connection is open.
        await asyncio.gather(*(system.store.version("vault-1") for _ in range(4)))
        has_struck = await cancel_at(number, system.close(), moment)
        deadline = time.monotonic() + 20
        while things() - before and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        left.append(sorted(things() - before))
        async with ActorSystem(url) as again:
            found = await again.ref(Vault, str(number)).ask(GetTotal())
            assert found.version in (acknowledged.version, acknowledged.version + 2)
        if not has_struck:
            return left
    raise AssertionError


def things() -> set[str]:
    threads, files = threads_and_files()
    pool = {thread for thread in threads if thread.name.startswith("asyncio_")}
    return {f"thread {t.name} {t.ident}" for t in threads - pool} | {f"{n} open {name}" for name, n in files.items()}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(cancel_everywhere(sys.argv[1], Moment(sys.argv[2])))), flush=True)
    os._exit(0)
