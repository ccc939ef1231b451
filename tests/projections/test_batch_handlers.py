"""A handler may have all its events of a batch at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from eventstore import (
    DefinitionError,
    Event,
    EventBatch,
    EventStore,
    Projection,
    ProjectionRunner,
    RecordedEvent,
    event_handler,
    upcaster,
)
from eventstore.read_models.completeness import check_completeness
from eventstore.read_models.projection_control import live_checkpoint

from .ledger import ENTRIES, Closed, Ledger, Paid, PartedLedger, amounts, pay, write_raw

Told = list[tuple[str, list[Any]]]


class Batches(Projection, name="batches", kinds=("account",)):
    """What it is told goes to `told`."""

    batch_size = 4
    retries = 0
    told: ClassVar[Told] = []

    @event_handler
    def paid(self, batch: EventBatch[Paid]) -> None:
        assert [recorded.position for _, recorded in batch] == list(batch.positions)
        assert [recorded.stream_id for recorded in batch.records] == list(batch.stream_ids)
        assert [event for event, _ in batch] == list(batch.events)
        assert len(batch) == len(batch.records) == len(batch.events)
        self.told.append(("paid", [event.amount for event in batch.events]))


class Entries(Projection, name="ledger", kinds=("account",)):
    """The ledger, a batch at a time."""

    tables = (ENTRIES,)
    batch_size = 100
    retries = 0
    first_pause_seconds = 0.001
    batches: ClassVar[list[int]] = []

    @event_handler
    async def paid(self, batch: EventBatch[Paid], connection: AsyncConnection) -> None:
        self.batches.append(len(batch))
        if any(event.amount == Ledger.fails_on for event in batch.events):
            raise ValueError("this amount cannot be")
        keys = ("position", "account", "amount")
        each = zip(batch.positions, batch.stream_ids, (event.amount for event in batch.events), strict=True)
        await connection.execute(self.table(ENTRIES).insert(), [dict(zip(keys, row, strict=True)) for row in each])


class PartedEntries(Entries, name="parted", kinds=("account",), partitions=4):
    pass


@pytest.fixture(autouse=True)
def told() -> Iterator[Told]:
    yield Batches.told
    Batches.told.clear()
    Entries.batches.clear()
    Ledger.fails_on = None


async def run(store: EventStore, projection: type[Projection]) -> None:
    await ProjectionRunner(store, projection).run(follow=False)


async def test_it_gets_them_in_one_call_with_their_records(store: EventStore, told: Told):
    await pay(store, 1, 2, 3)
    await store.append("account-b", [Closed()])
    await pay(store, 4, 5, account="account-b")
    await run(store, Batches)
    assert told == [("paid", [1, 2, 3, 4]), ("paid", [5])]


async def test_each_handler_gets_its_own_behind_those_of_single_events(store: EventStore, told: Told):
    class Mixed(Batches, name="mixed", kinds=("account",)):
        @event_handler
        def closed(self, event: Closed, recorded: RecordedEvent) -> None:
            self.told.append(("closed", [recorded.stream_id]))

    await pay(store, 1)
    await store.append("account-b", [Closed()])
    await pay(store, 2)
    await run(store, Mixed)
    assert told == [("closed", ["account-b"]), ("paid", [1, 2])]


async def test_one_of_several_types_gets_all_of_them_in_the_order_of_the_log(store: EventStore, told: Told):
    class Both(Projection, name="both", kinds=("account",)):
        @event_handler
        async def changed(self, batch: EventBatch[Paid | Closed]) -> None:
            told.append(("both", [type(event) for event in batch.events]))

    await pay(store, 1)
    await store.append("account-b", [Closed()])
    await pay(store, 2)
    await run(store, Both)
    assert told == [("both", [Paid, Closed, Paid])]


async def test_of_an_event_that_has_become_several_each_part_comes_with_its_record(store: EventStore, told: Told):
    @upcaster("ledger.halved", from_version=1, into={"ledger.paid": 1})
    def halved(data: dict[str, int]) -> list[tuple[str, dict[str, int]]]:
        return [("ledger.paid", {"amount": data["sum"] // 2}), ("ledger.paid", {"amount": data["sum"] // 2})]

    class Places(Projection, name="places", kinds=("account",)):
        @event_handler
        def paid(self, batch: EventBatch[Paid]) -> None:
            told.append(("places", [(event.amount, recorded.version) for event, recorded in batch]))

    await pay(store, 1)
    await write_raw(store, "ledger.halved", b'{"sum":8}')
    await pay(store, 2)
    await run(store, Places)
    assert told == [("places", [(1, 1), (4, 2), (4, 2), (2, 3)])]


@pytest.mark.sql_alone
async def test_what_it_writes_is_stored_with_the_position_in_all_partitions(store: EventStore):
    for number in range(40):
        await pay(store, number, account=f"account-{number % 8}")
    await run(store, PartedEntries)
    assert sorted(await amounts(store)) == list(range(40))
    assert (await check_completeness(store, PartedLedger)).is_complete
    assert len(Entries.batches) == 4


@pytest.mark.sql_alone
async def test_one_event_that_cannot_be_applied_is_found_in_few_steps_and_the_others_are_applied(store: EventStore):
    Ledger.fails_on = 77
    await store.append("account-a", [Paid(amount=amount) for amount in range(100)])
    await run(store, Entries)
    assert await amounts(store) == [amount for amount in range(100) if amount != 77]
    assert [letter.version for letter in (await live_checkpoint(store, "ledger")).letters] == [78]
    assert Entries.batches[0] == 100
    assert len(Entries.batches) < 30
    assert (await check_completeness(store, Entries)).is_complete


def test_the_record_is_part_of_the_batch_and_a_batch_is_of_events():
    with pytest.raises(DefinitionError, match="a batch has the records of its events: leave that argument out"):

        class Both(Projection):
            @event_handler
            def paid(self, batch: EventBatch[Paid], recorded: RecordedEvent) -> None: ...

    with pytest.raises(DefinitionError, match="a batch has the records of its events"):

        class Three(Projection):
            @event_handler
            def paid(self, batch: EventBatch[Paid], connection: Any, more: Any) -> None: ...

    with pytest.raises(DefinitionError, match="`batch` is annotated with a subclass of Event"):

        class Wrong(Projection):
            @event_handler
            def paid(self, batch: EventBatch[int]) -> None: ...  # type: ignore[type-var]

    with pytest.raises(DefinitionError, match="Paid already has a handler"):

        class Twice(Projection):
            @event_handler
            def all_paid(self, batch: EventBatch[Paid]) -> None: ...

            @event_handler
            def paid(self, event: Paid) -> None: ...


async def test_a_handler_of_event_gets_every_event_of_the_batch(store: EventStore, told: Told):
    class Everything(Projection):
        @event_handler
        def events(self, batch: EventBatch[Event]) -> None:
            told.append(("all", [type(event) for event in batch.events]))

    await pay(store, 1)
    await store.append("x", [Closed()])
    await run(store, Everything)
    assert told == [("all", [Paid, Closed])]
