"""The program that is killed: python killed.py URL, which brings the ledger forward in small batches."""

from __future__ import annotations

import asyncio
import sys

from eventstore import EventStore, ProjectionRunner
from tests.projections.ledger import Ledger


async def main(url: str) -> None:
    async with EventStore.open(url) as store:
        await ProjectionRunner(store, Ledger, poll_seconds=0.05).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
