"""The program that is killed: python killed.py URL PROJECTION.

For each line on stdin it forks a runner, which brings the ledger forward in small batches, and prints its process id;
when that has ended it says how. So a hundred runners take the time of a few: what they import is imported once.
"""

from __future__ import annotations

import asyncio
import os
import sys

from eventstore import EventStore, ProjectionRunner
from tests.projections.ledger import Ledger, PartedLedger

PROJECTIONS = {projection.name: projection for projection in (Ledger, PartedLedger)}


async def main(url: str, name: str) -> None:
    async with EventStore.open(url) as store:
        await ProjectionRunner(store, PROJECTIONS[name], poll_seconds=0.05).run()


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
