"""A projection in partitions: each stream belongs to one, each is brought forward by itself, by whoever has it."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from eventstore import (
    DefinitionError,
    EventStore,
    InlineProjections,
    PartitionsChanged,
    ProjectionBehind,
    ProjectionRunner,
    ProjectionStopped,
    RecordedEvent,
    caught_up,
    event_handler,
    rebuild,
)
from eventstore.contract.checkpoint import partition_of
from eventstore.projections import Projection
from eventstore.read_models.completeness import check_completeness
from eventstore.read_models.projection_control import (
    live_checkpoint,
    live_checkpoints,
    pause,
    purge_letters,
    replay_letter,
    resume,
    seek,
)

from .broken_off import rebuilt_in_part
from .ledger import Ledger, Paid, PartedLedger, PlainLedger, amounts, drop_tables, entries, pay

# The module: the package has a function of that name.
rebuilding = sys.modules["eventstore.read_models.rebuild"]


class Parted(PlainLedger, name="plain", kinds=("account",), partitions=4):
    """On every store."""


class PartedAnew(PlainLedger, name="plain", kinds=("account",), partitions=3):
    pass


@pytest.fixture(autouse=True)
def nothing_fails() -> Iterator[None]:
    yield
    Ledger.fails_on = PlainLedger.fails_on = Parted.fails_on = None
    PlainLedger.got.clear()


async def run(store: EventStore, projection: type[Projection] = Parted) -> None:
    await ProjectionRunner(store, projection, lease_seconds=0.3, poll_seconds=0.05).run(follow=False)


async def fill(store: EventStore, count: int = 40) -> None:
    for number in range(count):
        await pay(store, number, account=f"account-{number % 8}")


def test_a_stream_belongs_to_one_partition_for_ever():
    assert [partition_of(f"account-{number}", 4) for number in range(8)] == [2, 0, 2, 0, 3, 1, 3, 1]
    assert [partition_of(stream_id, 256) for stream_id in ("", "ä", "account-" + "x" * 500)] == [0, 131, 108]


async def test_each_partition_gets_its_streams_in_their_order_and_all_get_everything(store: EventStore):
    by: dict[str, set[int]] = {}

    class Noting(PlainLedger, name="noting", kinds=("account",), partitions=4):
        @event_handler
        async def paid(self, event: Paid, recorded: RecordedEvent) -> None:
            by.setdefault(recorded.stream_id, set()).add(self.partition)
            self.got.append((recorded.stream_id, event.amount))

    await fill(store)
    await run(store, Noting)
    assert sorted(amount for _, amount in Noting.got) == list(range(40))
    for number in range(8):
        assert [amount for name, amount in Noting.got if name == f"account-{number}"] == list(range(number, 40, 8))
    assert by == {f"account-{number}": {partition_of(f"account-{number}", 4)} for number in range(8)}
    parts = await live_checkpoints(store, "noting")
    assert [(part.partition, part.events) for part in parts] == [(0, 10), (1, 10), (2, 10), (3, 10)]
    assert (await check_completeness(store, Noting)).is_complete


async def test_another_number_of_partitions_is_refused_and_a_rebuild_changes_it(store: EventStore):
    await fill(store)
    await run(store)
    message = (
        "has partitions=4 in the store, and partitions=3 in its class: nothing was done; make it anew .* partitions=4"
    )
    with pytest.raises(PartitionsChanged, match=message):
        await run(store, PartedAnew)
    with pytest.raises(PartitionsChanged, match="has partitions=4 in the store, and partitions=1 in its class"):
        await run(store, PlainLedger)
    for work in (seek(store, PartedAnew, 0), check_completeness(store, PartedAnew)):
        with pytest.raises(PartitionsChanged):
            await work  # type: ignore[misc]
    PlainLedger.got.clear()
    await rebuild(store, PartedAnew)
    assert sorted(amount for _, amount in PlainLedger.got) == list(range(40))
    parts = await live_checkpoints(store, "plain")
    assert [(part.partition, part.partitions, part.version) for part in parts] == [(0, 3, 2), (1, 3, 2), (2, 3, 2)]
    assert len(await store.checkpoints()) == 3
    assert (await check_completeness(store, PartedAnew)).is_complete
    await rebuild(store, PlainLedger)
    assert [(one.partitions, one.version) for one in await store.checkpoints()] == [(1, 3)]


@pytest.mark.sql_alone
async def test_a_rebuild_has_what_the_live_one_had_in_any_partition(store: EventStore, monkeypatch: pytest.MonkeyPatch):
    class Wider(Ledger, name="parted", kinds=("account",), partitions=7):
        pass

    ahead = partition_of("account-3", 4)
    switch = rebuilding._switch

    async def late(*args: Any) -> Any:
        """In the last moment one partition of the live one gets ahead of the others, and of the new version."""
        monkeypatch.undo()
        await pay(store, 40, 41, account="account-3")
        await pause_all_but(store, ahead)
        await caught_up_in(store, ahead)
        return await switch(*args)

    await fill(store)
    await run(store, PartedLedger)
    kept = sorted(await entries(store))
    monkeypatch.setattr(rebuilding, "_switch", late)
    await rebuild(store, Wider)
    assert [amount for *_, amount in sorted(await entries(store))][40:] == [40, 41]
    assert sorted(await entries(store))[:40] == kept
    assert (await check_completeness(store, Wider)).is_complete


async def pause_all_but(store: EventStore, partition: int) -> None:
    for part in await live_checkpoints(store, "parted"):
        if part.partition != partition:
            assert await store.save_checkpoint(replace(part, pause="held back"))


async def caught_up_in(store: EventStore, partition: int) -> None:
    """Let the one that is not paused run to the end."""
    runner = ProjectionRunner(store, PartedLedger, lease_seconds=0.1, poll_seconds=0.02)
    running = asyncio.create_task(runner.run())
    end = (await store.read_page(limit=1)).end
    async with asyncio.timeout(20):
        while (await live_checkpoint(store, "parted", partition)).position < end:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def holders(store: EventStore) -> Counter[str]:
    return Counter(part.runner for part in await live_checkpoints(store, "parted") if part.runner)


async def spread(store: EventStore, *counts: int) -> None:
    """Wait until the partitions are spread like this."""
    async with asyncio.timeout(30):
        while sorted((await holders(store)).values()) != sorted(counts):
            await asyncio.sleep(0.02)


@pytest.mark.sql_alone
async def test_partitions_are_spread_over_runners_and_taken_over_from_one_that_is_gone(
    store: EventStore, other: EventStore
):
    await fill(store)
    first, second, third = (
        ProjectionRunner(each, PartedLedger, lease_seconds=0.6, poll_seconds=0.05) for each in (store, other, store)
    )
    one = asyncio.create_task(first.run())
    await caught_up_or_begun(store)
    await spread(store, 4)
    two = asyncio.create_task(second.run())
    await spread(store, 2, 2)
    three = asyncio.create_task(third.run())
    await spread(store, 1, 1, 2)
    one.cancel()
    await asyncio.gather(one, return_exceptions=True)
    await spread(store, 2, 2)
    for number in range(40, 80):
        await pay(store, number, account=f"account-{number % 8}")
    await caught_up(store, PartedLedger, timeout=30)
    two.cancel()
    three.cancel()
    await asyncio.gather(two, three, return_exceptions=True)
    assert sorted(await amounts(store)) == list(range(80))
    assert (await check_completeness(store, PartedLedger)).is_complete


async def caught_up_or_begun(store: EventStore) -> None:
    async with asyncio.timeout(30):
        while not await store.checkpoints():
            await asyncio.sleep(0.01)


@pytest.mark.sql_alone
async def test_one_is_taken_from_a_runner_that_is_never_idle(store: EventStore, other: EventStore):
    """Who takes it over waits for the end of a batch, and not for a moment without one."""

    class Busy(PartedLedger, name="parted", kinds=("account",), partitions=2):
        batch_size = 1

        async def flush(self, connection):  # type: ignore[no-untyped-def]
            await super().flush(connection)
            await asyncio.sleep(0.02)

    for start in range(0, 600, 100):
        await store.append("account-0", [Paid(amount=number) for number in range(start, start + 100)])
        await store.append("account-1", [Paid(amount=number) for number in range(start, start + 100)])
    first = asyncio.create_task(ProjectionRunner(store, Busy).run())
    await caught_up_or_begun(store)
    await spread(store, 2)
    second = asyncio.create_task(ProjectionRunner(other, Busy, poll_seconds=0.05).run())
    await spread(store, 1, 1)
    position = min(part.position for part in await live_checkpoints(store, "parted"))
    assert position < (await store.read_page(limit=1)).end, "it was not busy any more"
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert (await check_completeness(store, Busy)).is_complete


async def test_who_takes_one_over_is_next_when_the_batch_under_way_has_ended(emptied_postgres_url: str):
    """And is not too late again because it goes by what it has seen before. On SQLite one writes at a time anyway."""
    may_end = asyncio.Semaphore(0)

    class Held(PartedLedger, name="parted", kinds=("account",), partitions=2):
        batch_size = 1

        async def flush(self, connection):  # type: ignore[no-untyped-def]
            await super().flush(connection)
            await may_end.acquire()

    async with EventStore.open(emptied_postgres_url) as store, EventStore.open(emptied_postgres_url) as other:
        await drop_tables(store)
        await fill(store)
        first = asyncio.create_task(ProjectionRunner(store, Held).run())
        await caught_up_or_begun(store)
        await spread(store, 2)
        second = asyncio.create_task(ProjectionRunner(other, Held, poll_seconds=0.05).run())
        await somebody_waits_for_a_lock(store)
        may_end.release()
        may_end.release()
        await spread(store, 1, 1)
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def somebody_waits_for_a_lock(store: EventStore) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(30):
        while True:
            transaction = await store.begin_sql(seconds=30)
            count = await transaction.connection.scalar(waiting)
            await transaction.rollback()
            if count:
                return
            await asyncio.sleep(0.01)


@pytest.mark.sql_alone
async def test_two_that_both_believe_a_partition_is_theirs_never_both_apply(store: EventStore, other: EventStore):
    await fill(store, 80)
    runners = [ProjectionRunner(each, PartedLedger, lease_seconds=0.0) for each in (store, other, store, other)]
    await asyncio.gather(*(runner.run(follow=False) for runner in runners))
    await run(store, PartedLedger)
    assert sorted(await amounts(store)) == list(range(80))
    assert (await check_completeness(store, PartedLedger)).is_complete


async def test_pausing_resuming_and_seeking_reach_every_partition(store: EventStore):
    await fill(store)
    await run(store)
    await pause(store, "plain", "a look at it")
    assert {part.pause for part in await live_checkpoints(store, "plain")} == {"a look at it"}
    with pytest.raises(ProjectionStopped, match="a look at it"):
        await run(store)
    await resume(store, "plain")
    positions = [recorded.position async for recorded in store.read_all()]
    PlainLedger.got.clear()
    await seek(store, Parted, positions[29])
    assert sum(part.events for part in await live_checkpoints(store, "plain")) == 30
    await run(store)
    assert sorted(amount for _, amount in PlainLedger.got) == list(range(30, 40))
    assert (await check_completeness(store, Parted)).is_complete


async def test_a_dead_letter_is_its_partitions_and_is_replayed_there(store: EventStore):
    Parted.fails_on = 13
    await fill(store)
    await run(store)
    parts = await live_checkpoints(store, "plain")
    (letter,) = (letter for part in parts for letter in part.letters)
    assert [bool(part.letters) for part in parts] == [part.has("account-5") for part in parts]
    assert "this amount cannot be" in (await replay_letter(store, Parted, letter) or "")
    Parted.fails_on = None
    assert await replay_letter(store, Parted, letter) is None
    assert ("account-5", 13) in PlainLedger.got
    assert await purge_letters(store, "plain") == 0
    assert (await check_completeness(store, Parted)).is_complete


async def test_who_waits_waits_for_the_last_partition(store: EventStore):
    await fill(store)
    await run(store)
    (late,) = (part for part in await live_checkpoints(store, "plain") if part.partition == 2)
    await seek(store, Parted, 0)
    await run(store)
    found = await live_checkpoint(store, "plain", 2)
    assert await store.save_checkpoint(replace(found, position=late.position - 1, pause="held back"))
    with pytest.raises(ProjectionBehind, match="it is paused"):
        await caught_up(store, Parted, timeout=0.05)


async def test_a_missing_event_of_any_partition_is_named(store: EventStore):
    await fill(store)
    await run(store)
    events = [recorded async for recorded in store.read("account-6")]
    part = next(part for part in await live_checkpoints(store, "plain") if part.has("account-6"))
    without = part.advanced(part.position, [events[2].event_id])
    assert await store.save_checkpoint(replace(without, events=part.events - 1, marks=()))
    found = await check_completeness(store, Parted)
    assert (found.is_complete, found.applied, found.expected) == (False, 39, 40)
    assert found.first is not None
    assert (found.first.stream_id, found.first.version) == ("account-6", 3)


async def test_only_the_partition_of_a_stream_keeps_it_from_being_truncated(store: EventStore):
    await fill(store)
    await run(store)
    for part in await live_checkpoints(store, "plain"):
        if not part.has("account-1"):
            assert await store.save_checkpoint(replace(part, position=0))
    assert await store.truncate("account-1", 3, reason="test") == 3
    with pytest.raises(ProjectionBehind):
        await store.truncate("account-4", 3, reason="test")


async def test_a_rebuild_that_was_killed_is_taken_up_in_every_partition(store: EventStore):
    await fill(store)
    await run(store)
    building = await rebuilt_in_part(store, Parted)
    assert 0 < sum(part.events for part in building) < 40
    # As after a kill the leases have to run out; here they are ended by hand, behind what is still under way.
    while building:
        building = [part for part in building if not await store.save_checkpoint(replace(part, runner=""))]
        keys = [(part.partition, part.version) for part in building]
        building = [one for one in await store.checkpoints() if (one.partition, one.version) in keys]
    await rebuild(store, Parted)
    assert {part.version for part in await live_checkpoints(store, "plain")} == {2}
    assert (await check_completeness(store, Parted)).is_complete


def test_a_wrong_number_is_an_error_when_the_class_is_defined():
    for wrong in (0, 257):
        with pytest.raises(DefinitionError, match=f"partitions is 1 to 256, not {wrong}"):
            type("Wrong", (Projection,), {}, partitions=wrong)


async def test_an_inline_projection_has_no_partitions(store: EventStore):
    if store.capabilities.user_sql:
        with pytest.raises(DefinitionError, match="leave partitions=… out"):
            InlineProjections(store, (PartedLedger,))
