"""Kills a process in the middle of transactions that store rows and events, and compares the two."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from sqlalchemy import text

from backends.conformance.events import numbers
from backends.conformance.sql import commit, transaction
from eventstore import EventStore

ROOT = Path(__file__).parents[2]


async def survives_kills(url: str, cycles: int) -> None:
    async with EventStore.open(url) as store:
        await commit(store, [], "CREATE TABLE ledger (n int PRIMARY KEY)")
    acknowledged = 0
    for _ in range(cycles):
        acknowledged = max(acknowledged, await _killed(url))
        async with EventStore.open(url) as store, transaction(store) as begun:
            rows = (await begun.connection.execute(text("SELECT n FROM ledger ORDER BY n"))).scalars().all()
            events = [await numbers(store.read(stream_id)) for stream_id in ("a", "b")]
        assert events == [rows, rows]
        assert rows == list(range(1, len(rows) + 1))
        # One more may have been committed than was told.
        assert acknowledged <= len(rows) <= acknowledged + 1
        acknowledged = len(rows)
    assert acknowledged > cycles


async def _killed(url: str) -> int:
    """Start a writer, kill it a moment after one of its first commits. Returns the last number it told."""
    writer = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "tests.backends.sql_writer", url, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert writer.stdout is not None
    try:
        async with asyncio.timeout(60):
            told = [await writer.stdout.readline() for _ in range(random.randint(1, 4))]
        await asyncio.sleep(random.random() * 0.05)
    finally:
        writer.kill()
        await writer.wait()
    lines = [*told, *(await writer.stdout.read()).splitlines()]
    return int(lines[-1])
