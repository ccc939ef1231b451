"""A rebuild is made beside the live read model, and takes its place when it has all that the live one had."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, event, text

from eventstore import (
    EventStore,
    Projection,
    ProjectionError,
    ProjectionRunner,
    ProjectionStopped,
    RecordedEvent,
    caught_up,
    event_handler,
    rebuild,
)
from eventstore.contract.checkpoint import Status
from eventstore.read_models.completeness import check_completeness
from eventstore.read_models.projection_control import live_checkpoint, pause
from eventstore.read_models.rebuild import give_up

from .broken_off import rebuilt_in_part
from .ledger import ENTRIES, Ledger, Paid, amounts, entries, pay, table_names


@pytest.fixture(autouse=True)
def nothing_fails() -> Iterator[None]:
    yield
    Ledger.fails_on = None


async def names(store: EventStore) -> set[str]:
    transaction = await store.begin_sql(seconds=30.0)
    try:
        return await table_names(transaction.connection)
    finally:
        await transaction.rollback()


async def execute(store: EventStore, statement: str) -> None:
    transaction = await store.begin_sql(seconds=30.0)
    await transaction.connection.execute(text(statement))
    await transaction.commit(())


async def run(store: EventStore, projection: type[Projection] = Ledger) -> None:
    await ProjectionRunner(store, projection).run(follow=False)


@pytest.mark.sql_alone
async def test_it_takes_the_place_of_the_live_one_again_and_again(store: EventStore):
    await pay(store, *range(10))
    await run(store)
    for version in (2, 3):
        await execute(store, "UPDATE ledger_entries SET amount = 77 WHERE amount = 5")
        assert (await rebuild(store, Ledger)).version == version
        assert await amounts(store) == list(range(10))
        assert await names(store) == {"ledger_entries"}
        (checkpoint,) = await store.checkpoints()
        assert (checkpoint.version, checkpoint.status, checkpoint.events) == (version, Status.LIVE, 10)
    await pay(store, 10)
    await run(store)
    assert await amounts(store) == list(range(11))


@pytest.mark.sql_alone
async def test_one_that_is_not_there_yet_is_built_and_lives(store: EventStore):
    await pay(store, 1, 2)
    await rebuild(store, Ledger)
    assert await amounts(store) == [1, 2]
    assert (await live_checkpoint(store, "ledger")).version == 1


@pytest.mark.sql_alone
async def test_an_event_that_comes_at_the_end_and_cannot_be_applied_is_named(url: str, store: EventStore):
    await pay(store, 1, 2, 3)
    await run(store)
    has_come = False

    async def park() -> None:
        async with EventStore.open(url) as other:
            await pay(other, 13)
            await run(other)
            assert [letter.position for letter in (await live_checkpoint(other, "ledger")).letters] == [4]

    def let_one_come(position: int, count: int, end: int) -> None:
        nonlocal has_come
        if not has_come:
            has_come = True
            # The live one has got it when the rebuild has come to what it took for the end.
            parking = Thread(target=lambda: asyncio.run(park()))
            parking.start()
            parking.join(60)

    Ledger.fails_on = 13
    with pytest.raises(ProjectionStopped, match="position 4, .* could not be applied: ValueError: this amount cannot"):
        await rebuild(store, Ledger, on_progress=let_one_come)
    assert has_come
    assert await amounts(store) == [1, 2, 3]


@pytest.mark.sql_alone
async def test_an_event_that_cannot_be_applied_stops_it_and_the_live_one_stays(store: EventStore):
    await pay(store, 1, 2, 3)
    await run(store)
    Ledger.fails_on = 2
    with pytest.raises(ProjectionStopped, match="version 2, could not be applied: ValueError"):
        await rebuild(store, Ledger)
    assert await amounts(store) == [1, 2, 3]
    assert (await live_checkpoint(store, "ledger")).version == 1
    Ledger.fails_on = None
    assert (await rebuild(store, Ledger)).version == 2
    assert await amounts(store) == [1, 2, 3]


@pytest.mark.sql_alone
async def test_one_that_was_given_up_leaves_nothing(store: EventStore):
    await pay(store, 1)
    await run(store)
    Ledger.fails_on = 1
    with pytest.raises(ProjectionStopped):
        await rebuild(store, Ledger)
    assert await names(store) == {"ledger_entries", "ledger_entries__v2"}
    assert await give_up(store, Ledger)
    assert not await give_up(store, Ledger)
    assert await names(store) == {"ledger_entries"}


@pytest.mark.sql_alone
async def test_one_that_was_killed_is_taken_up_where_it_was(store: EventStore):
    await pay(store, *range(30))
    await run(store)
    (building,) = await rebuilt_in_part(store, Ledger)
    # As after a kill its lease has to run out; here it is ended by hand.
    assert building.events == 12
    assert await store.save_checkpoint(replace(building, runner=""))
    seen: list[int] = []
    await rebuild(store, Ledger, on_progress=lambda position, count, end: seen.append(count))
    assert sum(seen) == 18
    assert await amounts(store) == list(range(30))


class Doubled(Ledger, name="ledger", kinds=("account",)):
    """What the ledger has become after a look at it."""

    @event_handler
    def paid(self, event: Paid, recorded: RecordedEvent) -> None:
        self.rows.append({"position": recorded.position, "account": recorded.stream_id, "amount": 2 * event.amount})


class OfTwoKinds(Ledger, name="ledger", kinds=("account", "other")):
    pass


class WithNotes(Ledger, name="ledger", kinds=("account",)):
    tables = (ENTRIES, Table("ledger_notes", MetaData(), Column("id", Integer, primary_key=True)))


class Revised(Ledger, name="ledger", kinds=("account",)):
    """What its methods call is other than before, and this says so."""

    revision = 2


@pytest.mark.sql_alone
@pytest.mark.parametrize("projection", [Doubled, OfTwoKinds, WithNotes, Revised])
async def test_one_that_was_killed_and_is_other_code_by_now_begins_anew(store: EventStore, projection: type[Ledger]):
    await pay(store, *range(30))
    await run(store)
    (building,) = await rebuilt_in_part(store, Ledger)
    assert await store.save_checkpoint(replace(building, runner=""))
    seen: list[int] = []
    await rebuild(store, projection, on_progress=lambda position, count, end: seen.append(count))
    assert sum(seen) == 30
    factor = 2 if projection is Doubled else 1
    assert await amounts(store) == [factor * amount for amount in range(30)]


@pytest.mark.sql_alone
async def test_one_that_cannot_take_its_place_leaves_the_live_one_as_it_was(store: EventStore):
    class Refusing(Ledger, name="ledger", kinds=("account",)):
        async def switched(self, connection):  # type: ignore[no-untyped-def]
            raise LookupError("not now")

    await pay(store, 1, 2)
    await run(store)
    with pytest.raises(LookupError, match="not now"):
        await rebuild(store, Refusing)
    found = {(one.version, one.status) for one in await store.checkpoints()}
    assert found == {(1, Status.LIVE), (2, Status.BUILDING)}
    assert await names(store) == {"ledger_entries", "ledger_entries__v2"}
    await pay(store, 3)
    await run(store)
    assert await amounts(store) == [1, 2, 3]
    assert (await rebuild(store, Ledger)).version == 2
    assert (await amounts(store), await names(store)) == ([1, 2, 3], {"ledger_entries"})


@pytest.mark.sql_alone
async def test_one_that_is_cancelled_as_it_takes_its_place_passes_that_on_and_can_be_taken_up(store: EventStore):
    await pay(store, 1, 2)
    await run(store)

    def cancel(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("ALTER TABLE"):
            rebuilding.cancel()

    event.listen(Engine, "before_cursor_execute", cancel)
    try:
        rebuilding = asyncio.create_task(rebuild(store, Ledger))
        with pytest.raises(asyncio.CancelledError):
            await rebuilding
    finally:
        event.remove(Engine, "before_cursor_execute", cancel)
    assert rebuilding.cancelled()
    assert await amounts(store) == [1, 2]
    assert (await rebuild(store, Ledger)).version == 2
    assert await amounts(store) == [1, 2]


@pytest.mark.sql_alone
async def test_under_load_it_ends_equal_to_the_live_one(store: EventStore, other: EventStore):
    await pay(store, *range(40))
    live = asyncio.create_task(ProjectionRunner(other, Ledger, poll_seconds=0.02, lease_seconds=10.0).run())
    is_over = False

    async def write() -> int:
        number = 40
        while not is_over:
            await pay(store, number)
            number += 1
            # Less than can be applied, or nobody could ever catch up.
            await asyncio.sleep(0.02)
        return number

    went_back: list[tuple[int, int]] = []

    async def watch() -> None:
        before = 0
        while True:
            for one in await other.checkpoints():
                if one.status is Status.LIVE:
                    if one.position < before:
                        went_back.append((before, one.position))
                    before = one.position
            await asyncio.sleep(0)

    writer, watcher = asyncio.create_task(write()), asyncio.create_task(watch())
    await asyncio.sleep(0.2)
    for _ in range(2):
        await rebuild(store, Ledger)
        await asyncio.sleep(0.1)
    is_over = True
    count = await writer
    await caught_up(store, Ledger, timeout=60)
    live.cancel()
    watcher.cancel()
    await asyncio.gather(live, watcher, return_exceptions=True)
    assert went_back == [], "who reads has seen it go back"
    before = await entries(store)
    assert [amount for *_, amount in before] == list(range(count))
    assert (await check_completeness(store, Ledger)).is_complete
    await rebuild(store, Ledger)
    assert await entries(store) == before


@pytest.mark.sql_alone
async def test_a_table_that_is_left_out_stays_and_is_named(store: EventStore, caplog: pytest.LogCaptureFixture):
    totals = Table("ledger_totals", MetaData(), Column("amount", Integer))

    class WithTotals(Ledger, name="ledger", kinds=("account",)):
        tables = (*Ledger.tables, totals)

    await pay(store, 1, 2)
    await run(store, WithTotals)
    await rebuild(store, WithTotals)
    assert caplog.messages == []
    await rebuild(store, Ledger)
    assert await names(store) == {"ledger_entries", "ledger_totals"}
    (message,) = caplog.messages
    assert "ledger_totals: no longer among its tables, and left in the database as of position 2" in message
    await rebuild(store, Ledger)
    assert len(caplog.messages) == 1


@pytest.mark.without_sql
async def test_it_takes_the_place_of_one_that_always_gets_ahead_of_it(store: EventStore, other: EventStore):
    class Chased(Projection, name="chased"):
        retries = 0

        @event_handler
        async def paid(self, event: Paid) -> None:
            if self.is_building:
                await get_ahead()

    async def get_ahead() -> None:
        held = await live_checkpoint(other, "chased")
        position = await pay(other, 1)
        assert position < 200, "it chases the live one without an end"
        while held.runner == runner and (await live_checkpoint(other, "chased")).position < position:
            await asyncio.sleep(0.001)

    await pay(store, 1, 2)
    live = asyncio.create_task(ProjectionRunner(other, Chased, poll_seconds=0.01, lease_seconds=60.0).run())
    await caught_up(store, Chased, timeout=60)
    runner = (await live_checkpoint(store, "chased")).runner
    async with asyncio.timeout(60):
        assert (await rebuild(store, Chased)).version == 2
    await caught_up(store, Chased, timeout=60)
    assert (await check_completeness(store, Chased)).is_complete
    live.cancel()
    await asyncio.wait([live])


@pytest.mark.without_sql
async def test_it_says_what_to_do_where_it_can_never_take_the_place(store: EventStore, other: EventStore):
    class Unheld(Projection, name="unheld"):
        @event_handler
        async def paid(self, event: Paid) -> None:
            if self.is_building:
                position = await pay(other, 1)
                while (await live_checkpoint(other, "unheld")).position < position:
                    await asyncio.sleep(0.001)

    await pay(store, 1)
    # Who holds up the live one has a lease, too: here it is over at once.
    live = asyncio.create_task(ProjectionRunner(other, Unheld, poll_seconds=0.01, lease_seconds=0.0).run())
    await caught_up(store, Unheld, timeout=60)
    with pytest.raises(ProjectionError, match="pause the live one, or stop its runners, and rebuild"):
        await rebuild(store, Unheld)
    await pause(store, "unheld", "a rebuild")
    Unheld.handlers = {}
    assert (await rebuild(store, Unheld)).version == 2
    live.cancel()
    await asyncio.wait([live])


@pytest.mark.sql_alone
async def test_it_takes_the_place_of_one_that_never_stands_still(
    store: EventStore, other: EventStore, monkeypatch: pytest.MonkeyPatch
):
    await pay(store, 1, 2)
    await run(store)
    begin = store.begin_sql

    async def begin_late(*, seconds: float) -> Any:
        # Whatever was seen of the live one, it is further by now.
        await other.save_checkpoint(await live_checkpoint(other, "ledger"))
        return await begin(seconds=seconds)

    monkeypatch.setattr(store, "begin_sql", begin_late)
    assert (await rebuild(store, Ledger)).version == 2
    assert await amounts(other) == [1, 2]


async def test_without_sql_the_hooks_are_called_and_effects_can_be_left_out(store: EventStore):
    told: list[Any] = []

    class Mails(Projection, name="mails"):
        async def prepare(self, connection: Any) -> None:
            told.append(("prepare", self.version, self.is_building))

        @event_handler
        def paid(self, event: Paid) -> None:
            if not self.is_building:
                told.append(event.amount)

        async def switched(self, connection: Any) -> None:
            told.append(("switched", self.version, self.is_building))

    await pay(store, 1)
    await run(store, Mails)
    await rebuild(store, Mails)
    await pay(store, 2)
    await run(store, Mails)
    assert told == [("prepare", 1, False), 1, ("prepare", 2, True), ("switched", 2, False), 2]
    assert [one.version for one in await store.checkpoints()] == [2]


@pytest.mark.without_sql
async def test_without_sql_one_that_ends_when_it_has_taken_the_place_leaves_nothing_of_the_version_before(
    store: EventStore,
):
    class Ends(Projection, name="ends"):
        @event_handler
        def paid(self, event: Paid) -> None:
            pass

        async def switched(self, connection: Any) -> None:
            raise RuntimeError("here it ends")

    await pay(store, 1)
    await run(store, Ends)
    with pytest.raises(RuntimeError, match="here it ends"):
        await rebuild(store, Ends)
    assert [(one.version, one.status) for one in await store.checkpoints()] == [(2, Status.LIVE)]
