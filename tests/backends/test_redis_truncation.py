"""Truncation on Redis, which removes in parts, beside others."""

from __future__ import annotations

import asyncio

import pytest

from backends import redis as redis_module
from backends.conformance.events import happened, versions
from eventstore import EventStore, ProjectionBehind
from eventstore.contract.checkpoint import Checkpoint


async def test_a_projection_that_begins_between_two_parts_of_a_truncation_keeps_the_rest(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "_REMOVED_AT_ONCE", 1)
    async with EventStore.open(redis_url) as store, EventStore.open(redis_url) as other:
        await store.append("a-1", happened(*range(1000)))
        truncating = asyncio.ensure_future(other.truncate("a-1", 1000, reason="test"))
        while not [removal async for removal in store.removals()]:
            await asyncio.sleep(0)
        assert await store.save_checkpoint(Checkpoint("reader", 1))
        with pytest.raises(ProjectionBehind, match=r"\d+ events were removed before; let the projection") as behind:
            await truncating
        assert behind.value.wanted == 1000
        left = await versions(store.read("a-1"))
        assert left == list(range(1001 - len(left), 1001))
        assert f"{1000 - len(left)} events were removed" in str(behind.value)
