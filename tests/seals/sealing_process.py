"""A process that seals for ever, to be killed: a URL, and a key's file."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from eventstore import EventStore
from eventstore.evidence.sealing import Sealer
from eventstore.evidence.signing import private_key


async def main(url: str, key: Path) -> None:
    async with EventStore.open(url) as store:
        sealer = Sealer(store, private_key(key), every=3)
        print("ready", flush=True)
        while True:
            if await sealer.seal() is None:
                await asyncio.sleep(0.001)


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
