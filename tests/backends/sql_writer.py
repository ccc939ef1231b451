"""A process that stores rows and events together until it is killed: `python -m tests.backends.sql_writer URL`.

Each transaction has a number, which is a row of the user's table and an event in each of two streams. What was
acknowledged is printed.
"""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy import text

from backends.conformance.events import write
from eventstore import Appended, EventStore, StoreBusy


async def main(url: str) -> None:
    async with EventStore.open(url) as store:
        number = await store.version("a")
        while True:
            number += 1
            transaction = await store.begin_sql(seconds=30)
            try:
                await transaction.connection.execute(text("INSERT INTO ledger VALUES (:n)"), {"n": number})
                payload = b'{"number":%d}' % number
                stored = await transaction.commit([write(one, payload, expected=number - 1) for one in ("a", "b")])
                assert isinstance(stored, Appended), stored
            except StoreBusy:
                # The last one that was killed is not quite gone.
                number = await store.version("a")
                continue
            finally:
                await transaction.rollback()
            print(number, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
