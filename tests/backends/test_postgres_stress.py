"""Eight processes append, stall and roll back, while one reader follows the log, and misses nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.events import RecordedEvent
from tests.servers.databases import Databases

from .postgres_help import connected

ROOT = Path(__file__).resolve().parents[2]
WRITERS = 8


class Acknowledged:
    """What the writers were told: the ids of stored events, and for each batch the position of its last one."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.positions: dict[str, int] = {}

    def read(self, output: bytes) -> None:
        for line in output.splitlines():
            position, ids = json.loads(line)
            self.ids.update(ids)
            self.positions[ids[-1]] = position


@asynccontextmanager
async def writers(url: str, seconds: float, told: Acknowledged) -> AsyncGenerator[asyncio.Event, None]:
    """Processes that write. The event is set when all have ended."""
    have_ended = asyncio.Event()
    command = [sys.executable, "-m", "tests.backends.postgres_writer", url]
    processes = [
        await asyncio.create_subprocess_exec(
            *command, str(seed), str(seconds), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        for seed in range(WRITERS)
    ]

    async def outputs() -> None:
        try:
            for output, errors in await asyncio.gather(*(process.communicate() for process in processes)):
                assert errors == b"", errors.decode()
                told.read(output)
        finally:
            have_ended.set()

    task = asyncio.create_task(outputs())
    try:
        yield have_ended
        await task
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
        await asyncio.wait([task])


async def follow(store: EventStore, have_ended: asyncio.Event) -> list[RecordedEvent]:
    """The log, page by page, as it grows; to its end once nobody writes any more."""
    seen: list[RecordedEvent] = []
    position = 0
    while True:
        is_last = have_ended.is_set()
        page = await store.read_page(after=position, limit=100)
        seen += page.events
        position = page.position
        if page.is_end:
            if is_last:
                return seen
            await asyncio.sleep(0.002)


async def follow_naively(url: str, have_ended: asyncio.Event) -> list[int]:
    """The same with nothing but the last position seen."""
    seen: list[int] = []
    query = "SELECT position FROM journal_events WHERE position > $1 ORDER BY position LIMIT 100"
    async with connected(url) as connection:
        while True:
            is_last = have_ended.is_set()
            rows = await connection.fetch(query, seen[-1] if seen else 0)
            seen += [row[0] for row in rows]
            if is_last and not rows:
                return seen
            await asyncio.sleep(0.002)


async def stress(url: str, seconds: float) -> bool:
    """Whether a naive reader missed something; that the store's does not is asserted."""
    told = Acknowledged()
    async with EventStore.open(url) as store:
        async with writers(url, seconds, told) as have_ended:
            followed, naive = await asyncio.gather(follow(store, have_ended), follow_naively(url, have_ended))
        stored = [recorded async for recorded in store.read_all()]
    positions = [recorded.position for recorded in followed]
    ids = [recorded.event_id.hex for recorded in followed]
    streams: dict[str, list[int]] = {}
    for recorded in followed:
        streams.setdefault(recorded.stream_id, []).append(recorded.version)
    missed = len(stored) - len(naive)
    print(f"{len(stored)} events, skipped {len(stored) - len(followed)}; a naive reader missed {missed}")

    assert len(told.ids) > 100
    # None skipped and none twice, what is acknowledged is there, and nothing else is.
    assert followed == stored
    assert len(set(ids)) == len(ids)
    assert set(ids) == told.ids
    # None inverted, in the log or in a stream.
    assert positions == sorted(set(positions))
    assert all(versions == list(range(1, len(versions) + 1)) for versions in streams.values())
    assert {recorded.event_id.hex: recorded.position for recorded in followed}.items() >= told.positions.items()
    # Transactions were rolled back after they had taken positions, and others overtook.
    assert positions[-1] > len(positions)
    return missed > 0


def test_a_reader_beside_eight_writers_misses_nothing_and_a_naive_one_does(databases: Databases) -> None:
    # On a machine that lets them run one behind another, the naive one may have luck for a while.
    for _ in range(10):
        with databases.migrated() as url:
            if asyncio.run(stress(url, 3.0)):
                return
    pytest.fail("a naive reader missed nothing")


@pytest.mark.soak
async def test_a_reader_beside_eight_writers_misses_nothing_for_a_minute(postgres_url: str) -> None:
    assert await stress(postgres_url, 60.0)
