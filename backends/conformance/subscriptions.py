"""Subscriptions: every event once and in order, then each new one as it comes, until the store is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from backends.conformance.cases import case
from backends.conformance.events import closing, collect, happened, tagged
from backends.conformance.fixtures import StoreFixtures
from eventstore.backend import Backend, EventFilter
from eventstore.errors import ConcurrencyError, StoreClosed
from eventstore.events import RecordedEvent
from eventstore.store import EventStore

# Long enough that only a wake-up, never polling, can bring an event within the patience of a test.
NEVER = 3600.0
PATIENCE = 20.0


async def _take(count: int, events: AsyncIterator[RecordedEvent]) -> list[int]:
    async with asyncio.timeout(PATIENCE):
        return [(await anext(events)).json()["number"] for _ in range(count)]


async def _waiting(events: AsyncIterator[RecordedEvent]) -> asyncio.Future[RecordedEvent]:
    """The next event of a subscription that has come to the end of the log and waits."""
    future = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.03)
    assert not future.done()
    return future


async def _number(future: asyncio.Future[RecordedEvent]) -> int:
    async with asyncio.timeout(PATIENCE):
        number: int = (await future).json()["number"]
        return number


async def _live(future: asyncio.Future[RecordedEvent], store: EventStore, stream_id: str) -> RecordedEvent:
    """What a subscription to new events alone gets of what is appended now.

    On a busy machine it may not have begun yet, and what is there when it begins is not new: so there is more.
    """
    for number in range(20):
        await store.append(stream_id if number == 0 else f"{stream_id}-{number}", happened(2))
        done, _ = await asyncio.wait([future], timeout=PATIENCE / 20)
        if done:
            break
    return future.result()


class Subscriptions(StoreFixtures):
    @case("C184")
    async def test_a_subscription_gives_what_is_there_and_then_what_comes(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        await store.append("b", happened(2))
        async with closing(store.subscribe()) as events:
            assert await _take(2, events) == [1, 2]
            await store.append("a", happened(3))
            assert await _take(1, events) == [3]

    @case("C088")
    async def test_a_subscription_gives_an_event_that_is_appended_after_it_began(self, store: EventStore) -> None:
        async with closing(store.subscribe(poll_seconds=NEVER)) as events:
            future = await _waiting(events)
            await store.append("a", happened(1))
            assert await _number(future) == 1

    async def test_an_append_through_the_same_store_wakes_a_subscriber_at_once(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        async with closing(store.subscribe(poll_seconds=NEVER)) as events:
            await _take(1, events)
            for n in range(2, 5):
                future = await _waiting(events)
                await store.append("a", happened(n))
                assert await _number(future) == n

    async def test_one_append_wakes_every_subscriber(self, store: EventStore) -> None:
        async with (
            closing(store.subscribe(poll_seconds=NEVER)) as one,
            closing(store.subscribe(poll_seconds=NEVER)) as another,
        ):
            futures = [await _waiting(one), await _waiting(another)]
            await store.append("a", happened(1))
            assert [await _number(future) for future in futures] == [1, 1]

    async def test_an_append_through_another_store_is_found_by_polling(
        self, store: EventStore, other: EventStore
    ) -> None:
        async with closing(store.subscribe(poll_seconds=0.02)) as events:
            future = await _waiting(events)
            await other.append("a", happened(1))
            assert await _number(future) == 1

    async def test_a_subscription_never_ends_by_itself(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        async with closing(store.subscribe(poll_seconds=0.001)) as events:
            await _take(1, events)
            # Many polls that find nothing.
            future = await _waiting(events)
            await store.append("a", happened(2))
            assert await _number(future) == 2

    async def test_a_waiting_subscription_is_told_that_the_store_is_closed(self, store: EventStore) -> None:
        async with closing(store.subscribe(poll_seconds=NEVER)) as events:
            future = await _waiting(events)
            await store.close()
            with pytest.raises(StoreClosed):
                await _number(future)

    async def test_a_subscription_that_asks_for_more_is_told_that_the_store_is_closed(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        async with closing(store.subscribe()) as events:
            await _take(1, events)
            await store.close()
            with pytest.raises(StoreClosed):
                await _take(1, events)

    async def test_a_cancelled_subscriber_leaves_the_others(self, store: EventStore) -> None:
        async with closing(store.subscribe(poll_seconds=NEVER)) as events:
            cancelled = asyncio.create_task(collect(store.subscribe(poll_seconds=NEVER)))
            future = await _waiting(events)
            cancelled.cancel()
            await asyncio.wait([cancelled])
            await store.append("a", happened(1))
            assert await _number(future) == 1

    @case("C184")
    async def test_a_subscription_continues_behind_the_position_it_is_given(self, store: EventStore) -> None:
        acks = [await store.append("a", happened(n)) for n in range(5)]
        async with closing(store.subscribe(after=acks[2].position)) as events:
            assert await _take(2, events) == [3, 4]

    async def test_one_that_keeps_its_position_sees_every_event_once(self, store: EventStore) -> None:
        position, found = 0, list[int]()
        for n in range(10):
            await store.append(f"s-{n % 3}", happened(2 * n, 2 * n + 1))
            async with closing(store.subscribe(after=position)) as events, asyncio.timeout(PATIENCE):
                recorded = await anext(events)
                position = recorded.position
                found.append(recorded.json()["number"])
        async with closing(store.subscribe(after=position)) as events:
            found += await _take(10, events)
        assert found == list(range(20))

    async def test_a_subscription_beside_many_writers_gives_every_event_once_and_in_order(
        self, store: EventStore
    ) -> None:
        async with closing(store.subscribe(page_size=7, poll_seconds=NEVER)) as events:
            appends = asyncio.gather(*(store.append(f"s-{n % 5}", happened(n, n)) for n in range(100)))
            async with asyncio.timeout(PATIENCE):
                seen = [await anext(events) for _ in range(200)]
            await appends
        assert seen == await collect(store.read_all())

    @case("C185")
    async def test_a_subscriber_that_does_not_ask_holds_up_no_writer_and_misses_nothing(
        self, store: EventStore
    ) -> None:
        await store.append("a", happened(0, 1, 2, 3, 4))
        async with closing(store.subscribe(page_size=2)) as events:
            assert await _take(2, events) == [0, 1]
            for n in range(5, 20):
                await store.append("a", happened(n))
            assert await _take(1, events) == [2]
            assert await _take(17, events) == list(range(3, 20))

    @case("C186")
    async def test_all_events_arrive_by_small_pages(self, store: EventStore) -> None:
        await store.append("a", happened(*range(150)))
        async with closing(store.subscribe(page_size=3)) as events:
            assert await _take(150, events) == list(range(150))

    @case("C187")
    async def test_a_subscription_may_start_with_the_last_events(self, store: EventStore) -> None:
        await store.append("a", happened(*range(1, 11)))
        async with closing(store.subscribe(last=3)) as events:
            assert await _take(3, events) == [8, 9, 10]
            await store.append("a", happened(11))
            assert await _take(1, events) == [11]

    @case("C187")
    async def test_a_subscription_to_more_last_events_than_there_are_gives_all(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3, 4, 5))
        async with closing(store.subscribe(last=100)) as events:
            assert await _take(5, events) == [1, 2, 3, 4, 5]

    @case("C187")
    async def test_a_subscription_may_start_with_new_events_alone(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        async with closing(store.subscribe(last=0)) as events:
            future = await _waiting(events)
            assert (await _live(future, store, "a")).json()["number"] == 2

    @case("C188")
    async def test_a_subscription_gives_the_events_of_its_tag_alone(self, store: EventStore) -> None:
        await store.append("a", [tagged(1, "x"), tagged(2, "y")])
        async with closing(store.subscribe(where=EventFilter(tags=("x",)))) as events:
            assert await _take(1, events) == [1]
            await store.append("a", [tagged(3, "y"), tagged(4, "y", "x")])
            assert await _take(1, events) == [4]

    @case("C206")
    async def test_a_filtered_subscription_waits_behind_what_it_has_looked_through(self, store: EventStore) -> None:
        async with closing(store.subscribe(where=EventFilter(kinds=("b",)), page_size=3, poll_seconds=NEVER)) as events:
            for n in range(10):
                await store.append("a-1", happened(n))
            future = await _waiting(events)
            await store.append("a-1", happened(10))
            await store.append("b-1", happened(11))
            assert await _number(future) == 11

    async def test_a_subscription_passes_over_truncated_events(self, store: EventStore) -> None:
        await store.append("a", happened(1, 2, 3))
        await store.append("b", happened(4))
        await store.truncate("a", 3, reason="test")
        async with closing(store.subscribe(page_size=1)) as events:
            assert await _take(1, events) == [4]

    @case("C190")
    async def test_a_new_stream_appears_live(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        async with closing(store.subscribe(last=0, poll_seconds=NEVER)) as events:
            future = await _waiting(events)
            assert (await _live(future, store, "new")).stream_id.startswith("new")

    async def test_a_wait_ends_at_once_where_something_newer_exists(self, store: EventStore, backend: Backend) -> None:
        ack = await store.append("a", happened(1, 2))
        async with asyncio.timeout(PATIENCE):
            await backend.wait(ack.position - 1, NEVER)

    async def test_a_wait_ends_when_its_time_is_over(self, store: EventStore, backend: Backend) -> None:
        ack = await store.append("a", happened(1))
        async with asyncio.timeout(PATIENCE):
            await backend.wait(ack.position, 0.01)

    async def test_an_append_that_is_refused_ends_no_subscription(self, store: EventStore) -> None:
        async with closing(store.subscribe(poll_seconds=NEVER)) as events:
            future = await _waiting(events)
            with pytest.raises(ConcurrencyError):
                await store.append("a", happened(1), expected_version=5)
            await store.append("a", happened(2))
            assert await _number(future) == 2

    async def test_many_waiters_are_released_when_the_store_is_closed(
        self, store: EventStore, backend: Backend
    ) -> None:
        waits = [asyncio.create_task(backend.wait(0, NEVER)) for _ in range(10)]
        await asyncio.sleep(0.03)
        await store.close()
        _, waiting = await asyncio.wait(waits, timeout=PATIENCE)
        assert not waiting
