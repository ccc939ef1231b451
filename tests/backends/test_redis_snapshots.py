"""Snapshots on Redis, whose schema stands in them: which are read to find out what goes."""

from __future__ import annotations

import pytest
import redis

from backends.conformance.events import happened
from backends.conformance.snapshots import schemas
from eventstore import EventStore
from eventstore.snapshots import new_snapshot
from tests.backends.redis_help import commands_run, migrated
from tests.servers.redis import Redis


async def _read_by_a_save(store: EventStore, client: redis.Redis, version: int, schema: str) -> int:
    """How many snapshots a save has read."""
    client.config_resetstat()
    await store.save_snapshot(new_snapshot("a", version, schema, b"{}"))
    # The stream's head, and the event that the store has seen last.
    return commands_run(client)["hget"] - 2


@pytest.mark.parametrize(("truncated", "read"), [(0, 0), (1, 1)])
async def test_a_save_reads_no_more_than_the_snapshot_that_goes(
    server: Redis, client: redis.Redis, truncated: int, read: int
) -> None:
    async with EventStore.open(migrated(server)) as store:
        await store.append("a", happened(*range(10)))
        for version in (2, 3):
            await store.save_snapshot(new_snapshot("a", version, "one", b"{}"))
        await store.truncate("a", truncated, reason="test")
        for version in (4, 5):
            assert await _read_by_a_save(store, client, version, "one") == read
        assert await schemas(store) == [(5, "one"), (4, "one")]


async def test_one_that_stays_for_other_code_is_compared_with_those_before_it(
    server: Redis, client: redis.Redis
) -> None:
    async with EventStore.open(migrated(server)) as store:
        await store.append("a", happened(*range(10)))
        await store.save_snapshot(new_snapshot("a", 2, "one", b"{}"))
        await store.truncate("a", 1, reason="test")
        for version, read in ((3, 0), (4, 2), (5, 3)):
            # The oldest one, those between it and the new one, and the one that goes.
            assert await _read_by_a_save(store, client, version, "two") == read
        assert await schemas(store) == [(5, "two"), (4, "two"), (2, "one")]
