"""A writer in a process of its own: it appends until it is fenced, and tells every event that was acknowledged.

python writing.py URL NAME
"""

from __future__ import annotations

import asyncio
import os
import sys

from backends.conformance.events import outcome, write
from eventstore import Appended, BackendUnavailable, ConcurrencyError, EventStore, OutcomeUnknown, StoreFenced
from eventstore.backend import StreamWrite
from eventstore.codec import new_event_id

TASKS = 4


async def main(url: str, name: str) -> None:
    async with EventStore.open(url) as store, asyncio.TaskGroup() as group:
        for number in range(TASKS):
            group.create_task(append(store, f"{name}-{number}", has_commands=number % 2 == 0))
        # All the processes want this one.
        group.create_task(append(store, "shared", has_commands=False))


async def append(store: EventStore, stream_id: str, *, has_commands: bool) -> None:
    while True:
        event_id = new_event_id()
        commands = [outcome(event_id.hex())] if has_commands else []
        if not await stored(store, write(stream_id, b'{"number":1}', ids=[event_id], commands=commands)):
            return
        tell(event_id.hex())


async def stored(store: EventStore, made: StreamWrite) -> bool:
    """Store an event, however often it takes. False: the store is fenced."""
    while True:
        try:
            found = await store.append_writes([made])
        except StoreFenced:
            return False
        except (BackendUnavailable, OutcomeUnknown, ConcurrencyError):
            continue
        assert isinstance(found, Appended)
        return True


def tell(line: str) -> None:
    # One write for each line, so that none is lost or torn when somebody looks.
    os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
