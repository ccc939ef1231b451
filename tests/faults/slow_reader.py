"""A subscriber that is slower than the writers: writes down what it has seen, and how much memory that took.

    python -m tests.faults.slow_reader URL RECORD COUNT BUILD

It says when it is ready, and, if it reads ahead, when it has had all; and it ends after COUNT events, or when none has
come for some seconds. After the first hundred it does nothing until it gets a line: it is as slow as whoever writes
meanwhile wants. RECORD gets a line for each event: position, stream and version. BUILD is `honest`; `greedy`, which
reads ahead as far as it can; or `forgetful`, which drops what it has no time for.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path

from eventstore import EventStore, RecordedEvent

PAGE = 100
BEFORE_THE_LINE = 100
PATIENCE_SECONDS = 60.0
# What was dropped never comes.
SHORT_PATIENCE_SECONDS = 2.0

Read = Callable[[EventStore, int], AsyncIterator[RecordedEvent]]


async def honest(store: EventStore, count: int) -> AsyncIterator[RecordedEvent]:
    async with aclosing(store.subscribe(page_size=PAGE)) as events:
        async for recorded in events:
            yield recorded


async def greedy(store: EventStore, count: int) -> AsyncIterator[RecordedEvent]:
    async for recorded in _ahead(store, count, asyncio.Queue[RecordedEvent]()):
        yield recorded


async def forgetful(store: EventStore, count: int) -> AsyncIterator[RecordedEvent]:
    async for recorded in _ahead(store, count, asyncio.Queue[RecordedEvent](1000)):
        yield recorded


async def _ahead(store: EventStore, count: int, queue: asyncio.Queue[RecordedEvent]) -> AsyncIterator[RecordedEvent]:
    async def fill() -> None:
        had = 0
        async for recorded in honest(store, count):
            with suppress(asyncio.QueueFull):
                queue.put_nowait(recorded)
            had += 1
            if had == count:
                print("had all", flush=True)

    filling = asyncio.create_task(fill())
    try:
        while True:
            yield await queue.get()
    finally:
        filling.cancel()
        await asyncio.wait([filling])


BUILDS: dict[str, Read] = {"honest": honest, "greedy": greedy, "forgetful": forgetful}


async def main(url: str, record: int, count: int, build: str) -> None:
    async with EventStore.open(url) as store:
        # Whatever is made when it is first used.
        async for _ in store.read_all(limit=1):
            pass
        print("ready", flush=True)
        before = most_memory()
        seen = 0
        patience = SHORT_PATIENCE_SECONDS if build == "forgetful" else PATIENCE_SECONDS
        with suppress(TimeoutError):
            async with aclosing(BUILDS[build](store, count)) as events:  # type: ignore[type-var]  # they are generators
                while seen < count:
                    async with asyncio.timeout(patience):
                        recorded = await anext(events)
                    os.write(record, f"{recorded.position} {recorded.stream_id} {recorded.version}\n".encode())
                    seen += 1
                    if seen == BEFORE_THE_LINE:
                        await asyncio.to_thread(sys.stdin.readline)
                    await asyncio.sleep(0)
        print(most_memory() - before)


def most_memory() -> int:
    """The most bytes of memory that this process has had. What `getrusage` tells begins with that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    url, record, count, build = sys.argv[1:]
    asyncio.run(main(url, os.open(record, os.O_WRONLY | os.O_CREAT, 0o600), int(count), build))
