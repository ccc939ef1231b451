"""A writer of the stress test, in a process of its own: `python -m tests.backends.postgres_writer URL SEED SECONDS`.

Every fifth batch spans several streams; one transaction in ten is rolled back after it took its positions, and is
appended again; many stall between taking their positions and the commit. What was acknowledged is printed, a line for
each batch.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any

import asyncpg

from backends.postgres import PostgresBackend
from backends.postgres_session import PostgresSession
from eventstore.backend import Appended, EncodedEvent, Expected, StreamWrite
from eventstore.codec import encoded_event, new_event_id
from eventstore.url import parse_store_url

STREAMS = 24


class Unlucky(PostgresSession):
    """A session whose appends stall before they commit, and sometimes do not."""

    chance: random.Random

    async def fetch(self, statement: str, *parameters: object) -> Sequence[Any]:
        if "INSERT INTO" not in statement or self.connection.is_in_transaction():
            return await super().fetch(statement, *parameters)
        async with self.transaction():
            rows = await super().fetch(statement, *parameters)
            if self.chance.random() < 0.5:
                await asyncio.sleep(self.chance.choice((0.001, 0.005, 0.02)))
            if self.chance.random() < 0.1:
                raise asyncpg.SerializationError("rolled back on purpose")
            return rows


def event() -> EncodedEvent:
    event_id = new_event_id()
    return encoded_event(event_id, "stress", 1, b'{"n":1}', None, event_id)


async def write(url: str, seed: int, seconds: float) -> None:
    chance = random.Random(seed)
    backend = PostgresBackend(parse_store_url(url))
    await backend.open()
    session = backend._open.append._session
    assert session is not None
    session.__class__ = Unlucky
    session.chance = chance  # type: ignore[attr-defined]  # it is an Unlucky now
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        batches = []
        for _ in range(chance.randrange(1, 5)):
            count = chance.randrange(2, 5) if chance.random() < 0.2 else 1
            names = [f"stress-{chance.randrange(STREAMS)}" for _ in range(count)]
            batches.append(
                [StreamWrite(n, Expected.ANY, [event() for _ in range(chance.randrange(1, 3))]) for n in names]
            )
        for batch, outcome in zip(batches, await backend.append(batches), strict=True):
            assert isinstance(outcome, Appended), outcome
            ids = [event.event_id.hex() for write in batch for event in write.events]
            print(json.dumps([outcome.position, ids]), flush=True)
    await backend.close()


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
