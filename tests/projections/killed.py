"""The program that is killed: python killed.py URL PROJECTION, or python killed.py URL inline.

For each line on stdin it forks a runner, which brings the ledger forward in small batches, or writers whose ledger is
inline, and prints its process id; when that has ended it says how. So a hundred runners take the time of a few: what
they import is imported once.
"""

from __future__ import annotations

import asyncio
import os
import sys

from eventstore import EventStore, InlineProjections, ProjectionRunner
from tests.projections.ledger import Ledger, Paid, PartedLedger

PROJECTIONS = {projection.name: projection for projection in (Ledger, PartedLedger)}
_WRITERS = 4


async def main(url: str, name: str) -> None:
    async with EventStore.open(url) as store:
        if name == "inline":
            await write(store)
        await ProjectionRunner(store, PROJECTIONS[name], poll_seconds=0.05).run()


async def write(store: EventStore) -> None:
    """Store as many events as one can, of many writers at once, some of them for two streams."""
    await InlineProjections(store, (Ledger,)).open()

    async def pay(writer: int) -> None:
        number = 0
        while True:
            number += 1
            events = [Paid(amount=number + place) for place in range(number % 3 + 1)]
            await store.append(f"account-{os.getpid()}-{writer}", events)

    await asyncio.gather(*(pay(writer) for writer in range(_WRITERS)))


def serve(url: str, name: str) -> None:
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(main(url, name))
            os._exit(0)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
