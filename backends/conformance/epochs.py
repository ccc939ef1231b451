"""Writer epochs: once a stream has a newer owner, an older one can store nothing in it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from backends.conformance.events import collect, happened, write
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import Appended, Backend
from eventstore.errors import FencedError
from eventstore.store import EventStore


class Epochs(StoreFixtures):
    async def test_every_claim_gives_a_higher_epoch(self, store: EventStore) -> None:
        epochs = [await store.claim("a") for _ in range(3)]
        assert epochs[0] > 0
        assert all(earlier < later for earlier, later in pairwise(epochs))

    async def test_claims_at_the_same_time_give_different_epochs(self, store: EventStore) -> None:
        epochs = await asyncio.gather(*(store.claim("a") for _ in range(10)))
        assert len(set(epochs)) == 10

    async def test_the_owner_may_write(self, store: EventStore, backend: Backend) -> None:
        epoch = await store.claim("a")
        [outcome] = await backend.append([[write("a", b"1", expected=0, epoch=epoch)]])
        assert isinstance(outcome, Appended)

    async def test_an_event_carries_its_writers_epoch(self, store: EventStore, backend: Backend) -> None:
        epoch = await store.claim("a")
        await backend.append([[write("a", b"1", epoch=epoch)], [write("a", b"2")]])
        assert [record.epoch for record in await collect(store.read("a"))] == [epoch, 0]

    async def test_an_earlier_owner_is_fenced(self, store: EventStore, backend: Backend) -> None:
        earlier, current = await store.claim("a"), await store.claim("a")
        [outcome] = await backend.append([[write("a", b"1", epoch=earlier)]])
        assert isinstance(outcome, FencedError)
        assert (outcome.stream_id, outcome.epoch, outcome.current) == ("a", earlier, current)

    async def test_a_fenced_write_stores_nothing(self, store: EventStore, backend: Backend) -> None:
        earlier = await store.claim("a")
        await store.claim("a")
        await backend.append([[write("b", b"1"), write("a", b"2", epoch=earlier)]])
        assert await collect(store.read_all()) == []

    async def test_a_fenced_write_never_fails_its_neighbours(self, store: EventStore, backend: Backend) -> None:
        earlier, current = await store.claim("a"), await store.claim("a")
        outcomes = await backend.append(
            [[write("b", b"1")], [write("a", b"2", epoch=earlier)], [write("a", b"3", epoch=current)]]
        )
        assert [type(outcome) for outcome in outcomes] == [Appended, FencedError, Appended]

    async def test_an_earlier_owner_is_fenced_after_it_has_written(self, store: EventStore, backend: Backend) -> None:
        # A backend that remembers what its last append found must notice the claim.
        earlier = await store.claim("a")
        await backend.append([[write("a", b"1", expected=0, epoch=earlier)]])
        await store.claim("a")
        [outcome] = await backend.append([[write("a", b"2", expected=1, epoch=earlier)]])
        assert isinstance(outcome, FencedError)

    async def test_a_claim_by_another_store_fences(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        earlier = await store.claim("a")
        await backend.append([[write("a", b"1", expected=0, epoch=earlier)]])
        await other.claim("a")
        [outcome] = await backend.append([[write("a", b"2", expected=1, epoch=earlier)]])
        assert isinstance(outcome, FencedError)

    async def test_an_owner_that_is_fenced_learns_that_its_batch_was_stored(
        self, store: EventStore, backend: Backend
    ) -> None:
        # FencedError would say that nothing was stored, to a writer that retries after a lost reply.
        batch = [write("a", b"1", expected=0, epoch=await store.claim("a"))]
        [original] = await backend.append([batch])
        await store.claim("a")
        [again] = await backend.append([batch])
        assert isinstance(original, Appended)
        assert again == original._replace(is_duplicate=True)

    async def test_a_writer_without_an_epoch_is_not_fenced(self, store: EventStore) -> None:
        await store.claim("a")
        assert (await store.append("a", happened(1), expected_version=0)).versions == (1,)

    async def test_a_claim_of_one_stream_leaves_the_others(self, store: EventStore, backend: Backend) -> None:
        epoch = await store.claim("b")
        for _ in range(3):
            await store.claim("a")
        [outcome] = await backend.append([[write("b", b"1", epoch=epoch)]])
        assert isinstance(outcome, Appended)

    async def test_a_claim_is_no_event(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        await store.claim("a")
        assert await store.version("a") == 1
        assert len(await collect(store.read_all())) == 1

    async def test_epochs_rise_after_the_store_was_closed_and_opened(self, store: EventStore) -> None:
        before = await store.claim("a")
        async with reopened(store) as again:
            assert await again.claim("a") > before
