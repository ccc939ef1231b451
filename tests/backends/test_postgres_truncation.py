"""Truncation on Postgres beside others: whoever comes in between loses no event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from backends.conformance.events import happened, versions
from eventstore import EventStore, ProjectionBehind, RetentionRefused
from eventstore.contract.checkpoint import Checkpoint
from eventstore.copies.copying import Copy
from eventstore.snapshots import new_snapshot
from tests.backends.postgres_help import connected, waiting_for_locks

READER = Checkpoint("reader", 1, kinds=("a",))


async def test_an_event_that_is_stored_after_the_stream_was_looked_at_stays(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        stored = await store.append("a-1", happened(1))
        await store.save_checkpoint(replace(READER, position=stored.position))
        async with connected(postgres_url) as session:
            async with session.transaction():
                await session.execute("SELECT FROM journal_streams FOR UPDATE")
                # In the order in which they come to wait, they have the stream's row.
                appending = asyncio.ensure_future(other.append("a-1", happened(2)))
                await waiting_for_locks(postgres_url)
                truncating = asyncio.ensure_future(store.truncate("a-1", 2**63 - 1, reason="test"))
                await waiting_for_locks(postgres_url, 2)
            await appending
            assert await truncating == 1
        assert await versions(store.read("a-1")) == [2]


@pytest.mark.parametrize(
    "change",
    [
        lambda _: replace(READER, name="new"),
        lambda found: replace(found, position=0),
        lambda found: replace(found, kinds=()),
    ],
    ids=["is begun", "is put back", "wants other streams"],
)
async def test_a_projection_that_changes_while_events_are_removed_changes_afterwards(
    postgres_url: str, change: Callable[[Checkpoint], Checkpoint]
) -> None:
    async with EventStore.open(postgres_url) as store:
        async with truncating(store, postgres_url) as truncation:
            (found,) = await store.checkpoints()
            changing = asyncio.ensure_future(store.save_checkpoint(change(found)))
            await waiting_for_locks(postgres_url, 2)
        assert await truncation == 1
        assert await changing


async def test_a_projection_that_goes_on_does_not_wait_for_a_truncation(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        async with truncating(store, postgres_url) as truncation:
            (found,) = await store.checkpoints()
            assert await store.save_checkpoint(replace(found, position=found.position + 1))
            assert not truncation.done()
        assert await truncation == 1


async def test_a_projection_that_is_begun_before_a_truncation_keeps_the_events(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a-1", happened(1))
        transaction = await store.begin_sql(seconds=60)
        try:
            assert await transaction.save_checkpoint(READER.stored())
            truncation = asyncio.ensure_future(store.truncate("a-1", 1, reason="test"))
            await waiting_for_locks(postgres_url)
            await transaction.commit(())
        finally:
            await transaction.rollback()
        with pytest.raises(ProjectionBehind):
            await truncation
        assert await versions(store.read("a-1")) == [1]


@pytest.mark.parametrize("is_owned", [False, True])
async def test_a_save_that_takes_the_snapshot_away_keeps_the_events(postgres_url: str, is_owned: bool) -> None:
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a-1", happened(1, 2, 3))
        epoch = await other.claim("a-1") if is_owned else None
        await store.save_snapshot(new_snapshot("a-1", 2, "one", b"{}"))
        async with connected(postgres_url) as session:
            async with session.transaction():
                await session.execute("SELECT FROM journal_snapshots FOR UPDATE")
                saving = asyncio.ensure_future(
                    other.save_snapshot(new_snapshot("a-1", 3, "two", b"{}"), keep=1, epoch=epoch)
                )
                await waiting_for_locks(postgres_url)
                truncation = asyncio.ensure_future(store.truncate("a-1", 2, reason="test", fingerprint="one"))
                await waiting_for_locks(postgres_url, 2)
            await saving
            with pytest.raises(RetentionRefused):
                await truncation
        assert await versions(store.read("a-1")) == [1, 2, 3]


@pytest.mark.parametrize("stream_id", ["a-1", "a-2"])
async def test_a_copy_of_what_was_truncated_waits_for_a_truncation_of_the_target(
    postgres_url: str, stream_id: str
) -> None:
    """Else records of removals would come to be seen below one that was, and a stream would be truncated less far again
    than its events are gone."""
    async with EventStore.open("memory://") as source, EventStore.open(postgres_url) as target:
        for each in ("a-1", "a-2"):
            await source.append(each, happened(1, 2, 3))
        await copy(source, target)
        await source.truncate(stream_id, 1, reason="at the source")
        async with connected(postgres_url) as session:
            async with session.transaction():
                await session.execute("SELECT FROM journal_events WHERE position = 1 FOR UPDATE")
                truncation = asyncio.ensure_future(target.truncate("a-1", 2, reason="at the target"))
                await waiting_for_locks(postgres_url)
                copying = asyncio.ensure_future(copy(source, target))
                await waiting_for_locks(postgres_url, 2)
            await truncation
            await copying
        reasons = [removal.reason async for removal in target.removals()]
        assert reasons[0] == "at the target"
        assert {info.stream_id: info.truncated async for info in target.streams()}["a-1"] == 2
        assert await versions(target.read("a-1")) == [3]


async def copy(source: EventStore, target: EventStore) -> None:
    copying = Copy(source, target)
    await copying.begin()
    await copying.catch_up()
    await copying.bring_streams()


@asynccontextmanager
async def truncating(store: EventStore, url: str) -> AsyncGenerator[asyncio.Future[int], None]:
    """While this lasts, another store is truncating a stream that a projection has passed."""
    stored = await store.append("a-1", happened(1))
    assert await store.save_checkpoint(replace(READER, position=stored.position))
    async with EventStore.open(url) as other, connected(url) as session:
        async with session.transaction():
            await session.execute("SELECT FROM journal_events FOR UPDATE")
            truncation = asyncio.ensure_future(other.truncate("a-1", 1, reason="test"))
            await waiting_for_locks(url)
            yield truncation
        await truncation
