"""Writer epochs: once a stream has a newer owner, an older one can change nothing of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from backends.conformance.commands import remembered
from backends.conformance.events import collect, happened, outcome, versions, write
from backends.conformance.fixtures import StoreFixtures, backend_of, reopened
from backends.conformance.leases import Leases
from eventstore.backend import Appended, Backend, Claim, StoredSnapshot
from eventstore.errors import FencedError
from eventstore.store import EventStore


def _snapshot(version: int, epoch: int) -> StoredSnapshot:
    taken = datetime(2026, 2, 28, tzinfo=UTC)
    return StoredSnapshot("a", version, "fingerprint", "json", b"{}", bytes(range(16)), taken, epoch)


async def _snapshots(backend: Backend) -> list[int]:
    return [snapshot.version for snapshot in await backend.read_snapshots("a", through=None, limit=10)]


class Epochs(StoreFixtures):
    async def test_every_claim_gives_a_higher_epoch(self, store: EventStore) -> None:
        epochs = [await store.claim("a") for _ in range(3)]
        assert epochs[0] > 0
        assert all(earlier < later for earlier, later in pairwise(epochs))

    async def test_claims_at_the_same_time_give_different_epochs(self, store: EventStore) -> None:
        epochs = await asyncio.gather(*(store.claim("a") for _ in range(10)))
        assert len(set(epochs)) == 10

    async def test_claims_by_two_stores_at_the_same_time_give_different_epochs(
        self, backend: Backend, other: EventStore
    ) -> None:
        stores = [backend, backend_of(other)]
        answers = await asyncio.gather(*(stores[number % 2].claim([Claim("a"), Claim("b")]) for number in range(10)))
        for epochs in zip(*answers, strict=True):
            assert sorted(epochs, key=str) == sorted(set(epochs), key=str)

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

    async def test_an_assertion_of_an_earlier_owner_is_fenced(self, store: EventStore, backend: Backend) -> None:
        earlier, current = await store.claim("a"), await store.claim("a")
        await backend.append([[write("a", b"1", expected=0, epoch=current)]])
        # Whether or not the version is right.
        for expected in (1, 0):
            late = write("a", expected=expected, epoch=earlier)
            answers = await backend.append([[late], [write("b", b"1"), late], [late, write("b", b"2")]])
            for answer in answers:
                assert isinstance(answer, FencedError)
                assert (answer.stream_id, answer.epoch, answer.current) == ("a", earlier, current)
        kept = await backend.append(
            [[write("a", expected=1, epoch=current)], [write("c", b"1"), write("a", expected=1, epoch=current)]]
        )
        assert all(isinstance(answer, Appended) for answer in kept)
        assert (await store.version("a"), await store.version("b"), await store.version("c")) == (1, 0, 1)

    @pytest.mark.parametrize("has_events", [True, False], ids=["events", "none"])
    @pytest.mark.parametrize("is_one_batch", [True, False], ids=["one batch", "two"])
    async def test_a_claim_by_another_store_fences_what_is_asserted_beside_other_writes(
        self, store: EventStore, backend: Backend, other: EventStore, is_one_batch: bool, has_events: bool
    ) -> None:
        mine = await store.claim("a")
        # From now on the backend may remember both streams.
        events = [b"1"] if has_events else []
        await backend.append([[write("a", *events, expected=0, epoch=mine), write("b", b"1", expected=0)]])
        theirs = await other.claim("a")

        writes = [write("b", b"2", expected=1), write("a", expected=len(events), epoch=mine)]
        answers = await backend.append([writes] if is_one_batch else [[each] for each in writes])
        assert isinstance(answers[-1], FencedError)
        assert (answers[-1].epoch, answers[-1].current) == (mine, theirs)
        assert await store.version("b") == (1 if is_one_batch else 2)

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

    # What is not an event

    async def test_an_earlier_owner_remembers_no_command(self, store: EventStore, backend: Backend) -> None:
        earlier, current = await store.claim("a"), await store.claim("a")
        results = await backend.append(
            [[write("a", epoch=epoch, commands=[outcome(str(epoch))])] for epoch in (earlier, current, None)]
        )
        assert [type(result) for result in results] == [FencedError, Appended, Appended]
        assert await remembered(backend) == {str(current), "None"}

    async def test_an_earlier_owner_saves_no_snapshot(self, store: EventStore, backend: Backend) -> None:
        earlier = await store.claim("a")
        await backend.save_snapshot(_snapshot(1, earlier), keep=2)
        current = await store.claim("a")
        with pytest.raises(FencedError) as fenced:
            await backend.save_snapshot(_snapshot(2, earlier), keep=1)
        assert (fenced.value.stream_id, fenced.value.epoch, fenced.value.current) == ("a", earlier, current)
        assert await _snapshots(backend) == [1]

    async def test_a_snapshot_by_an_earlier_owner_removes_none(self, store: EventStore, backend: Backend) -> None:
        earlier = await store.claim("a")
        for version in (1, 2, 3):
            await backend.save_snapshot(_snapshot(version, earlier), keep=3)
        await store.claim("a")
        with pytest.raises(FencedError):
            await backend.save_snapshot(_snapshot(4, earlier), keep=1)
        assert await _snapshots(backend) == [3, 2, 1]

    async def test_the_owner_and_who_has_no_epoch_save_snapshots(self, store: EventStore, backend: Backend) -> None:
        await store.claim("a")
        await backend.save_snapshot(_snapshot(1, await store.claim("a")), keep=3)
        await backend.save_snapshot(_snapshot(2, 0), keep=3)
        assert await _snapshots(backend) == [2, 1]

    async def test_an_earlier_owner_truncates_nothing(self, store: EventStore, backend: Backend) -> None:
        earlier, current = await store.claim("a"), await store.claim("a")
        await backend.append([[write("a", b"1", b"2", commands=[outcome("c")])]])
        with pytest.raises(FencedError) as fenced:
            await backend.truncate("a", 1, reason="test", epoch=earlier)
        assert (fenced.value.stream_id, fenced.value.epoch, fenced.value.current) == ("a", earlier, current)
        with pytest.raises(FencedError):
            await backend.truncate("a", 2, reason="test", epoch=0)
        assert await versions(store.read("a")) == [1, 2]
        assert await remembered(backend) == {"c"}

    async def test_an_earlier_owner_is_told_so_where_there_is_nothing_to_truncate(
        self, store: EventStore, backend: Backend
    ) -> None:
        earlier = await store.claim("a")
        await store.claim("a")
        with pytest.raises(FencedError):
            await backend.truncate("a", 1, reason="test", epoch=earlier)

    async def test_the_owner_and_who_has_no_epoch_truncate(self, store: EventStore, backend: Backend) -> None:
        await store.append("a", happened(1, 2, 3))
        assert await backend.truncate("a", 1, reason="test", epoch=1) == 1
        await store.claim("a")
        assert await backend.truncate("a", 2, reason="test", epoch=await store.claim("a")) == 1
        assert await backend.truncate("a", 3, reason="test") == 1

    async def test_a_claim_by_another_store_fences_whatever_would_be_changed(
        self, store: EventStore, backend: Backend, other: EventStore
    ) -> None:
        earlier = await store.claim("a")
        await backend.append([[write("a", b"1", expected=0, epoch=earlier)]])
        await other.claim("a")
        (result,) = await backend.append([[write("a", epoch=earlier, commands=[outcome("c")])]])
        assert isinstance(result, FencedError)
        with pytest.raises(FencedError):
            await backend.save_snapshot(_snapshot(1, earlier), keep=1)
        with pytest.raises(FencedError):
            await backend.truncate("a", 1, reason="test", epoch=earlier)

    # Epochs never go back

    async def test_epochs_rise_whatever_is_removed_released_or_closed(
        self, store: EventStore, backend: Backend, leases: Leases
    ) -> None:
        epochs = [await store.claim("a")]
        await store.append("a", happened(1, 2, 3))
        await backend.save_snapshot(_snapshot(3, 0), keep=1)
        await backend.truncate("a", 3, reason="test")
        epochs.append(await store.claim("a"))
        await backend.delete_snapshots("a", through=None)
        epochs.append(await store.claim("a"))
        alice = await leases.begin(backend)
        epochs.append(await alice.granted(backend, "a"))
        await backend.release(alice.id, {"a": epochs[-1]})
        epochs.append(await store.claim("a"))
        epochs.append(await alice.granted(backend, "a"))
        await alice.end()
        epochs.append(await store.claim("a"))
        async with reopened(store) as again:
            epochs.append(await again.claim("a"))
        assert all(earlier < later for earlier, later in pairwise(epochs))

    async def test_the_epoch_of_a_stream_without_events_is_kept(
        self, store: EventStore, backend: Backend, leases: Leases
    ) -> None:
        alice = await leases.begin(backend)
        epoch = await alice.granted(backend, "a")
        await backend.release(alice.id, {"a": epoch})
        await alice.end()
        async with reopened(store) as again:
            assert await again.claim("a") > epoch
