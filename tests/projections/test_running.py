"""A projection gets every event that it wants once, in order, and what it makes of it is stored with its position."""

from __future__ import annotations

import asyncio
import functools
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from eventstore import (
    CapabilityError,
    DefinitionError,
    Event,
    EventStore,
    Projection,
    ProjectionBehind,
    ProjectionError,
    ProjectionRunner,
    ProjectionStopped,
    RecordedEvent,
    caught_up,
    event_handler,
    upcaster,
)
from eventstore.read_models.applying import apply_events
from eventstore.read_models.completeness import check_completeness
from eventstore.read_models.projection_control import live_checkpoint, pause, resume, seek

from .ledger import Closed, Ledger, Paid, PlainLedger, PlainPartedLedger, amounts, entries, pay, write_raw


@pytest.fixture(autouse=True)
def nothing_fails() -> Iterator[None]:
    yield
    Ledger.fails_on = PlainLedger.fails_on = None
    PlainLedger.got.clear()


async def run(store: EventStore, projection: type[Projection] = Ledger) -> None:
    await ProjectionRunner(store, projection, lease_seconds=0.3).run(follow=False)


async def test_it_gets_what_it_wants_in_the_order_of_the_log_and_goes_on_where_it_was(store: EventStore):
    await pay(store, 1, 2, 3, 4, 5)
    await pay(store, 6, account="other-a")
    await store.append("account-b", [Closed()])
    await pay(store, 7, account="account-b")
    await run(store, PlainLedger)
    assert PlainLedger.got == [("account-a", n) for n in range(1, 6)] + [("account-b", 7)]
    await run(store, PlainLedger)
    await pay(store, 8)
    await run(store, PlainLedger)
    assert [amount for _, amount in PlainLedger.got] == [1, 2, 3, 4, 5, 7, 8]
    checkpoint = await live_checkpoint(store, "plain")
    assert (checkpoint.events, checkpoint.position) == (7, (await store.read_page()).end)


@pytest.mark.sql_alone
async def test_the_read_model_and_the_position_are_stored_together(store: EventStore):
    positions = [await pay(store, amount) for amount in (1, 2, 3, 4, 5)]
    await run(store)
    assert await entries(store) == [(p, "account-a", n) for p, n in zip(positions, (1, 2, 3, 4, 5), strict=True)]


@pytest.mark.sql_alone
async def test_a_batch_that_fails_leaves_nothing_of_itself(store: EventStore):
    class Failing(Ledger, name="ledger", kinds=("account",)):
        on_poison = "pause"

        async def flush(self, connection):  # type: ignore[no-untyped-def]
            await super().flush(connection)
            raise LookupError("after it has written")

    await pay(store, 1, 2)
    with pytest.raises(ProjectionStopped, match="LookupError: after it has written"):
        await run(store, Failing)
    assert (await amounts(store), (await live_checkpoint(store, "ledger")).events) == ([], 0)
    await resume(store, "ledger")
    await run(store)
    assert await amounts(store) == [1, 2]


async def test_tags_choose_too(store: EventStore):
    class Tagged(PlainLedger, name="tagged", kinds=("account",), tags=("big",)):
        pass

    await pay(store, 1)
    await pay(store, 2, tags=("big",))
    await run(store, Tagged)
    assert PlainLedger.got == [("account-a", 2)]


async def test_a_handler_of_event_gets_every_event(store: EventStore):
    got: list[type[Event]] = []

    class Everything(Projection):
        @event_handler
        def event(self, event: Event) -> None:
            got.append(type(event))

    await pay(store, 1)
    await store.append("x", [Closed()])
    await run(store, Everything)
    assert got == [Paid, Closed]


async def test_older_events_come_as_what_they_are_today(store: EventStore):
    @upcaster("ledger.settled", from_version=1, into={"ledger.paid": 1, "ledger.closed": 1})
    def settled(data: dict[str, int]) -> list[tuple[str, dict[str, int]]]:
        return [("ledger.paid", {"amount": data["sum"]}), ("ledger.closed", {})]

    await write_raw(store, "ledger.settled", b'{"sum":9}')
    await run(store, PlainLedger)
    assert PlainLedger.got == [("account-a", 9)]


class Everything(Projection, name="everything", kinds=("account",)):
    """What it gets, with the places of the records that come with it."""

    batch_size = 100
    got: ClassVar[list[tuple[str, int, int]]] = []

    @event_handler
    def paid(self, event: Paid, recorded: RecordedEvent) -> None:
        self.got.append(("paid", event.amount, recorded.version))

    @event_handler
    async def closed(self, event: Closed) -> None:
        self.got.append(("closed", 0, 0))

    @event_handler
    def other(self, event: Event, recorded: RecordedEvent) -> None:
        self.got.append((type(event).__name__, 0, recorded.version))


async def test_a_page_of_several_types_comes_in_order_whatever_is_between_them(store: EventStore):
    class Noted(Event, name="ledger.noted"):
        text: str = ""

    @upcaster("ledger.torn", from_version=1, into={"ledger.paid": 1, "ledger.closed": 1})
    def torn(data: dict[str, int]) -> list[tuple[str, dict[str, int]]]:
        return [("ledger.paid", {"amount": data["sum"]}), ("ledger.closed", {})]

    Everything.got.clear()
    await store.append("account-a", [Paid(amount=1), Closed(), Noted(), Paid(amount=2), Paid(amount=3)])
    await run(store, Everything)
    plain = [("paid", 1, 1), ("closed", 0, 0), ("Noted", 0, 3), ("paid", 2, 4), ("paid", 3, 5)]
    assert Everything.got == plain
    # The same with an event among them that older code has stored.
    Everything.got.clear()
    await store.append("account-b", [Paid(amount=4), Noted()])
    await write_raw(store, "ledger.torn", b'{"sum":9}')
    await store.append("account-b", [Closed(), Paid(amount=5)])
    await run(store, Everything)
    older = [("paid", 9, 6), ("closed", 0, 0)]
    assert Everything.got == [("paid", 4, 1), ("Noted", 0, 2), *older, ("closed", 0, 0), ("paid", 5, 4)]
    checkpoint = await live_checkpoint(store, "everything")
    assert (checkpoint.events, (await check_completeness(store, Everything)).is_complete) == (10, True)


@pytest.mark.parametrize(
    ("type_", "schema_version", "payload", "reason"),
    [
        ("ledger.paid", 2, b'{"amount":7}', "EventTooNew"),
        ("ledger.paid", 1, b'{"amount":"much"}', "EventDecodeError"),
        # Two where one is stored, which look like two of the page when they stand between others.
        ("ledger.paid", 1, b'{"amount":7},{"amount":8}', "EventDecodeError"),
        ("ledger.unknown", 1, b"{}", "UnknownEventType"),
    ],
)
async def test_one_of_a_page_that_cannot_be_read_is_named_and_the_others_are_applied(
    store: EventStore, type_: str, schema_version: int, payload: bytes, reason: str
):
    Everything.got.clear()
    await store.append("account-a", [Paid(amount=1), Closed()])
    await write_raw(store, type_, payload, schema_version)
    await store.append("account-a", [Paid(amount=3)])

    class Parking(Everything, name="parking", kinds=("account",)):
        retries = 0

    await run(store, Parking)
    assert [got for got in Everything.got if got[0] == "paid"][-2:] == [("paid", 1, 1), ("paid", 3, 4)]
    [letter] = (await live_checkpoint(store, "parking")).letters
    assert (letter.stream_id, letter.version, letter.type) == ("account-a", 3, type_)
    assert letter.error.startswith(reason)


async def test_with_follow_it_gets_what_comes_until_it_is_cancelled(store: EventStore):
    task = asyncio.create_task(ProjectionRunner(store, PlainLedger).run())
    for amount in range(5):
        position = await pay(store, amount)
        if amount == 0:
            async with asyncio.timeout(20):
                while not PlainLedger.got:
                    await asyncio.sleep(0.01)
        assert await caught_up(store, PlainLedger, position, timeout=30) >= position
        assert len(PlainLedger.got) == amount + 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_runner_that_is_cancelled_while_it_waits_takes_nothing_from_the_one_that_works(
    store: EventStore, other: EventStore
):
    await pay(store, 1)
    works = asyncio.create_task(ProjectionRunner(store, PlainLedger, lease_seconds=600.0).run())
    await caught_up(store, PlainLedger, timeout=60)
    before = await live_checkpoint(store, "plain")
    waits = asyncio.create_task(ProjectionRunner(other, PlainLedger, lease_seconds=600.0).run())
    await asyncio.sleep(0)
    waits.cancel()
    await asyncio.wait([waits])
    assert (await live_checkpoint(store, "plain")).runner == before.runner != ""
    works.cancel()
    await asyncio.wait([works])


@pytest.mark.parametrize("projection", [PlainLedger, PlainPartedLedger])
async def test_a_runner_that_is_cancelled_lets_another_go_on_at_once(
    store: EventStore, other: EventStore, projection: type[Projection]
):
    await pay(store, 1)
    runner = asyncio.create_task(ProjectionRunner(store, projection, lease_seconds=600.0).run())
    await caught_up(other, projection, timeout=60)
    runner.cancel()
    await asyncio.wait([runner])
    assert runner.cancelled()
    assert {one.runner for one in await other.checkpoints()} == {""}
    await pay(store, 2)
    async with asyncio.timeout(60):
        await ProjectionRunner(other, projection, lease_seconds=600.0).run(follow=False)
    assert {one.position for one in await other.checkpoints()} == {2}


@pytest.mark.parametrize("is_another_machine", [False, True])
async def test_a_process_that_is_not_there_has_ended_unless_it_is_anothers_of_the_same_name(
    store: EventStore, is_another_machine: bool
):
    """Two machines, or containers, may have one name, and each its own numbers of processes."""
    await pay(store, 1)
    await run(store, PlainLedger)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    ended = f"{platform.node()}:{process.pid}"
    checkpoint = await live_checkpoint(store, "plain")
    mark = "f" * 32 if is_another_machine else ProjectionRunner(store, PlainLedger)._id
    assert await store.save_checkpoint(replace(checkpoint, runner=mark, runner_name=ended))
    await pay(store, 2)
    runner = asyncio.create_task(ProjectionRunner(store, PlainLedger, lease_seconds=600.0, poll_seconds=0.01).run())
    if is_another_machine:
        # It looks often enough in that time.
        await asyncio.sleep(1.0)
        assert (await live_checkpoint(store, "plain")).runner == mark
    else:
        await caught_up(store, PlainLedger, timeout=60)
    runner.cancel()
    await asyncio.wait([runner])


@pytest.mark.sql_alone
async def test_of_two_runners_one_works_and_the_other_takes_over_when_that_is_gone(
    store: EventStore, other: EventStore
):
    first, second = (
        asyncio.create_task(ProjectionRunner(each, Ledger, lease_seconds=1.5, poll_seconds=0.05).run())
        for each in (store, other)
    )
    await pay(store, *range(20))
    async with asyncio.timeout(30):
        while True:
            try:
                await caught_up(store, Ledger)
                break
            except ProjectionError:
                await asyncio.sleep(0.01)
    # It is heard of although nothing happens; a busy machine may keep it from that once, and not time after time.
    for _ in range(10):
        runner = (await live_checkpoint(store, "ledger")).runner
        await asyncio.sleep(2.0)
        if (await live_checkpoint(store, "ledger")).runner == runner:
            break
    else:
        pytest.fail("it is not heard of while nothing happens")
    first.cancel()
    position = await pay(store, *range(20, 40))
    await caught_up(store, Ledger, position, timeout=30)
    second.cancel()
    assert await amounts(store) == list(range(40))
    await asyncio.gather(first, second, return_exceptions=True)


@pytest.mark.sql_alone
async def test_two_that_both_believe_it_is_their_turn_never_both_apply(store: EventStore, other: EventStore):
    await pay(store, *range(60))
    runners = [ProjectionRunner(each, Ledger, lease_seconds=0.0) for each in (store, other, store, other)]
    await asyncio.gather(*(runner.run(follow=False) for runner in runners))
    await run(store)
    assert await amounts(store) == list(range(60))
    assert (await live_checkpoint(store, "ledger")).events == 60


@pytest.mark.sql_alone
async def test_of_those_that_bring_the_same_checkpoint_forward_one_applies_the_events(
    store: EventStore, other: EventStore
):
    await run(store)
    await pay(store, *range(5))
    checkpoint = await live_checkpoint(store, "ledger")
    page = await store.read_page(after=checkpoint.position, where=Ledger.where())
    behind = checkpoint.advanced(page.position, [recorded.event_id for recorded in page.events])
    outcomes = await asyncio.gather(
        *(apply_events(each, Ledger, behind, page.events) for each in (store, other, store, other)),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Lost", "Lost", "Lost", "float"]
    assert await amounts(store) == list(range(5))


async def test_a_paused_projection_is_left_alone_until_it_is_resumed(store: EventStore):
    await run(store, PlainLedger)
    await pause(store, "plain", "a look at it")
    await pay(store, 1)
    with pytest.raises(ProjectionStopped, match="'plain' is stopped: a look at it"):
        await run(store, PlainLedger)
    assert PlainLedger.got == []
    with pytest.raises(ProjectionBehind, match="it is paused"):
        await caught_up(store, PlainLedger, timeout=0.05)
    await resume(store, "plain")
    await run(store, PlainLedger)
    assert PlainLedger.got == [("account-a", 1)]


async def test_pausing_reaches_a_runner_that_works(store: EventStore):
    task = asyncio.create_task(ProjectionRunner(store, PlainLedger, poll_seconds=0.02).run())
    async with asyncio.timeout(20):
        while not await store.checkpoints():
            await asyncio.sleep(0.01)
    await pause(store, "plain", "test")
    await pay(store, 1)
    await asyncio.sleep(0.2)
    assert PlainLedger.got == []
    await resume(store, "plain")
    await caught_up(store, PlainLedger, timeout=30)
    assert PlainLedger.got == [("account-a", 1)]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_seeking_back_lets_events_come_again(store: EventStore):
    positions = [await pay(store, amount) for amount in (1, 2, 3)]
    await run(store, PlainLedger)
    await seek(store, PlainLedger, positions[0])
    await run(store, PlainLedger)
    assert [amount for _, amount in PlainLedger.got] == [1, 2, 3, 2, 3]
    assert (await live_checkpoint(store, "plain")).events == 3


async def test_events_that_a_projection_still_needs_are_not_truncated(store: EventStore):
    await pay(store, 1, 2)
    await run(store, PlainLedger)
    await pay(store, 3)
    await pay(store, 4, account="other-a")
    with pytest.raises(ProjectionBehind, match="'account-a' cannot be truncated, nothing was removed"):
        await store.truncate("account-a", 3, reason="test")
    assert [recorded.version async for recorded in store.read("account-a")] == [1, 2, 3]
    assert await store.truncate("account-a", 2, reason="test") == 2
    assert await store.truncate("other-a", 1, reason="no projection wants that kind") == 1
    await run(store, PlainLedger)
    assert await store.truncate("account-a", 3, reason="test") == 1


async def test_events_of_kinds_that_a_projection_wants_by_now_are_not_truncated(store: EventStore):
    await pay(store, 1)
    await run(store, PlainLedger)

    class Wider(PlainLedger, name="plain", kinds=("account", "other")):
        pass

    await run(store, Wider)
    await pay(store, 2, account="other-a")
    with pytest.raises(ProjectionBehind, match="'other-a' cannot be truncated, nothing was removed"):
        await store.truncate("other-a", 1, reason="test")
    await run(store, Wider)
    assert await store.truncate("other-a", 1, reason="test") == 1


async def test_a_projection_that_was_never_run_is_waited_for_in_vain(store: EventStore):
    with pytest.raises(ProjectionError, match="never been run"):
        await caught_up(store, PlainLedger, timeout=0.05)


async def test_a_projection_with_tables_is_refused_where_there_is_no_sql():
    async with EventStore.open("memory://") as store:
        with pytest.raises(CapabilityError, match=r"'ledger' has tables.* memory:// has no SQL"):
            ProjectionRunner(store, Ledger)


def test_wrong_handlers_are_errors_when_the_class_is_defined():
    with pytest.raises(DefinitionError, match="annotate `event` with the event it handles"):

        class Unannotated(Projection):
            @event_handler
            def paid(self, event): ...  # type: ignore[no-untyped-def]

    with pytest.raises(DefinitionError, match="annotated with a subclass of Event"):

        class Wrong(Projection):
            @event_handler
            def paid(self, event: int) -> None: ...

    with pytest.raises(DefinitionError, match="Paid already has a handler"):

        class Twice(Projection):
            @event_handler
            def one(self, event: Paid) -> None: ...
            @event_handler
            def other(self, event: Paid | Closed) -> None: ...

    with pytest.raises(DefinitionError, match="takes an event, and then"):

        class Many(Projection):
            @event_handler
            def paid(self, event: Paid, recorded: RecordedEvent, connection: object, more: int) -> None: ...

    with pytest.raises(DefinitionError, match="annotate it with RecordedEvent"):

        class Swapped(Projection):
            @event_handler
            def paid(self, event: Paid, connection: int) -> None: ...

    with pytest.raises(DefinitionError, match="Yielding.paid: it has a `yield`, so that to call it runs nothing"):

        class Yielding(Projection):
            @event_handler
            def paid(self, event: Paid) -> Any:
                yield

    with pytest.raises(
        DefinitionError, match="Static.paid: it is a plain method that @event_handler marks, not a staticmethod"
    ):

        class Static(Projection):
            @staticmethod
            @event_handler
            def paid(event: Paid) -> None: ...


def test_a_decorator_leaves_an_async_handler_what_it_is():
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any) -> Any:
            return function(*args)

        return call

    class Wrapped(Projection):
        @event_handler
        @logged
        async def paid(self, event: Paid) -> None: ...

    assert Wrapped.handlers[Paid].is_async


@pytest.mark.parametrize("given", [Ledger(), "ledger", Paid])
async def test_a_runner_is_given_the_class(store: EventStore, given: Any):
    with pytest.raises(DefinitionError, match="ProjectionRunner takes a subclass of Projection, not "):
        ProjectionRunner(store, given)
