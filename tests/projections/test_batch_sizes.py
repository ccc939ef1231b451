"""A runner that is behind takes as many events in a transaction as their handlers allow."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from eventstore import Event, EventStore, Projection, ProjectionRunner, RecordedEvent, event_handler
from eventstore.backend import LogPage
from eventstore.contract.checkpoint import NOTHING, added, partition_of
from eventstore.contract.record_page import RecordPage
from eventstore.read_models import applying
from eventstore.reading.reading_ahead import ReadAhead

from .ledger import Paid


class Clock:
    """What stands for the module `time`, and goes on only where a handler says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Counted(Projection, name="counted", kinds=("account",)):
    @event_handler
    def event(self, event: Event) -> None: ...


async def batches(store: EventStore, projection: type[Projection]) -> list[int]:
    await store.append("account-a", [Paid(amount=1)] * 3000)
    found: list[int] = []
    await ProjectionRunner(store, projection, on_progress=lambda _, count, __: found.append(count)).run(follow=False)
    assert sum(found) == 3000
    return found


async def test_they_grow_where_handlers_are_quick_up_to_what_the_projection_says(store: EventStore):
    class Quick(Counted, name="quick", kinds=("account",)):
        batch_seconds = 1000.0
        batch_size = 800

    found = await batches(store, Quick)
    assert found[0] == 500
    assert max(found) == 800


async def test_they_shrink_where_handlers_take_long(store: EventStore, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(applying, "time", clock)

    class Slow(Projection, name="slow", kinds=("account",)):
        batch_seconds = 0.5

        @event_handler
        def event(self, event: Event) -> None:
            clock.now += 0.01

    found = await batches(store, Slow)
    # A page is on its way while the one before it is applied. Each is judged by how many events itself had.
    assert found[:2] == [500, 500]
    assert {40 < count <= 50 for count in found[2:-1]} == {True}


async def test_the_events_of_other_partitions_are_among_those_that_are_read(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(applying, "time", clock)

    class Halved(Projection, name="halved", kinds=("account",), partitions=2):
        batch_seconds = 0.5

        @event_handler
        def event(self, event: Event) -> None:
            clock.now += 0.01

    mine, others = (
        f"account-{next(n for n in range(99) if partition_of(f'account-{n}', 2) == part)}" for part in (0, 1)
    )
    for _ in range(1000):
        await store.append(mine, [Paid(amount=1)])
        await store.append(others, [Paid(amount=1)])
    found: list[int] = []
    await ProjectionRunner(store, Halved, on_progress=lambda _, count, __: found.append(count)).run(follow=False)
    assert found[:2] == [250, 250]
    assert {40 < count <= 50 for count in sorted(found)[2:-4]} == {True}


async def test_an_event_in_the_way_makes_no_batch_larger(store: EventStore, monkeypatch: pytest.MonkeyPatch):
    """The page that it is in is applied in parts."""
    clock = Clock()
    monkeypatch.setattr(applying, "time", clock)

    class Stumbling(Projection, name="stumbling", kinds=("account",)):
        batch_seconds = 5.0
        retries = 0

        @event_handler
        def event(self, event: Event, recorded: RecordedEvent) -> None:
            clock.now += 0.01
            if recorded.version == 100:
                raise ValueError("this one cannot be applied")

    assert max(await batches(store, Stumbling)) == 500


async def test_the_first_of_a_projection_that_wants_few_has_no_more(store: EventStore):
    class Few(Counted, name="few", kinds=("account",)):
        batch_size = 400
        batch_seconds = 1000.0

    assert set(await batches(store, Few)) == {400, 200}


async def test_the_next_page_is_on_its_way_before_one_is_used():
    asked: list[int] = []

    async def read(after: int) -> LogPage:
        asked.append(after)
        return LogPage((), after + 10, is_end=after >= 20, end=30)

    async with ReadAhead(read, after=0) as log:
        await log.page()
        assert asked == [0, 10]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 64, 77])
async def test_the_checksum_of_a_page_and_of_a_part_is_that_of_its_ids(store: EventStore, count: int):
    if count:
        await store.append("account-a", [Paid(amount=number) for number in range(count)])
    page = RecordPage.of((await store.read_page()).events)
    records = list(page)
    generator = random.Random(count)
    wanted = [generator.random() < 0.5 for _ in records]
    part, own = page.only(wanted), [record for record, is_wanted in zip(records, wanted, strict=True) if is_wanted]
    assert list(part) == own
    for found, expected in ((page, records), (part, own)):
        ids: list[UUID] = [record.event_id for record in expected]
        assert found.checksum == added(NOTHING, ids)
        assert found.event_ids == b"".join(event_id.bytes for event_id in ids)
        assert list(found.positions) == [record.position for record in expected]
        assert list(found.stream_ids) == [record.stream_id for record in expected]
        assert found.kinds == {(record.type, record.schema_version) for record in expected}
