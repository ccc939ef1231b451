"""An inline projection is written in the transaction that stores its events, or neither is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, insert, select

from actors import ActorSystem, CommandRejected, Transaction
from eventstore import (
    CapabilityError,
    ConcurrencyError,
    DefinitionError,
    EventStore,
    InlineProjections,
    OutcomeUnknown,
    ProjectionFailed,
    ProjectionRunner,
    ProjectionStopped,
    caught_up,
    rebuild,
)
from eventstore.backend import AppendOutcome, Batch, CommandLookup, StoredCheckpoint
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.read_models import inline
from eventstore.read_models.completeness import check_completeness
from eventstore.read_models.projection_control import live_checkpoint, pause, resume

from .bank import Account, Close, Other, Pay, PayLater
from .ledger import ENTRIES, Ledger, Paid, PlainLedger, amounts, entries, pay

pytestmark = pytest.mark.sql_alone


@pytest.fixture(autouse=True)
def nothing_fails() -> Iterator[None]:
    yield
    Ledger.fails_on = None


@pytest_asyncio.fixture
async def system(store: EventStore) -> AsyncIterator[ActorSystem]:
    async with ActorSystem(store, inline=(Ledger,)) as system:
        yield system


async def is_complete(store: EventStore) -> bool:
    """Whether the projection has every event, and the read model the same ones."""
    found = await check_completeness(store, Ledger)
    return found.is_complete and len(await entries(store)) == found.expected


async def test_who_has_the_reply_finds_it_in_the_read_model(system: ActorSystem, store: EventStore):
    for number in range(1, 6):
        assert await system.ref(Account, "a").ask(Pay(amount=number)) == number
        assert await amounts(store) == list(range(1, number + 1))
    positions = [recorded.position async for recorded in store.read("account-a")]
    assert [position for position, *_ in await entries(store)] == positions
    checkpoint = await live_checkpoint(store, "ledger")
    assert (checkpoint.events, checkpoint.position, checkpoint.runner) == (5, positions[-1], "")
    assert await is_complete(store)


async def test_many_actors_at_once_share_commits_and_all_is_there(system: ActorSystem, store: EventStore):
    before = (await live_checkpoint(store, "ledger")).revision
    refs = [system.ref(Account, str(number)) for number in range(40)]
    await asyncio.gather(*(ref.ask(Pay(amount=number)) for number in range(1, 6) for ref in refs))
    assert sorted(await amounts(store)) == sorted(list(range(1, 6)) * 40)
    assert await is_complete(store)
    assert (await live_checkpoint(store, "ledger")).revision - before < 100, "groups, and not one by one"


async def test_a_handlers_error_refuses_the_command_alone_and_stores_nothing_of_it(
    system: ActorSystem, store: EventStore
):
    Ledger.fails_on = 13
    refs = [system.ref(Account, str(number % 3)) for number in range(30)]
    answers = await asyncio.gather(
        *(ref.ask(Pay(amount=number)) for number, ref in enumerate(refs, start=1)), return_exceptions=True
    )
    failed = [number for number, answer in enumerate(answers, start=1) if isinstance(answer, BaseException)]
    assert failed == [13]
    error = answers[12]
    assert isinstance(error, ProjectionFailed)
    assert isinstance(error.__cause__, ValueError)
    assert str(error) == (
        "projection 'ledger' could not apply the events, so nothing was stored: ValueError: this amount cannot be"
    )
    expected = sorted(set(range(1, 31)) - {13})
    assert sorted(await amounts(store)) == expected
    assert sorted([recorded.json()["amount"] async for recorded in store.read_all()]) == expected
    # Its actor goes on from what is stored.
    assert await system.ref(Account, "0").ask(Pay(amount=31)) == 10
    assert await is_complete(store)


async def test_a_command_without_events_is_remembered_beside_others_whose_events_are_refused(
    system: ActorSystem, store: EventStore
):
    account = system.ref(Account, "a")
    await account.ask(Pay(amount=1), command_id="first")
    # Both are submitted in one turn of the loop, so they go in one group.
    overtaken, rejected = await asyncio.gather(
        store.append("account-b", [Paid(amount=1)], expected_version=7),
        account.ask(Pay(amount=0), command_id="second"),
        return_exceptions=True,
    )
    assert (type(overtaken), type(rejected)) == (ConcurrencyError, CommandRejected)
    found = await store.find_command(CommandLookup("account-a", "second", 0))
    assert found.outcome is not None
    assert found.outcome.is_rejection
    assert await is_complete(store)


async def test_an_async_handlers_command_is_refused_for_its_own_events_alone(system: ActorSystem, store: EventStore):
    Ledger.fails_on = 3
    ref = system.ref(Account, "a")
    commands = [Pay(amount=1), PayLater(amount=2), Pay(amount=3), PayLater(amount=4), PayLater(amount=3), Pay(amount=5)]
    answers = await asyncio.gather(*(ref.ask(command) for command in commands), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == [
        "int", "int", "ProjectionFailed", "int", "ProjectionFailed", "int",
    ]  # fmt: skip
    assert await amounts(store) == [1, 2, 4, 5]


async def test_an_async_handlers_command_shares_no_batch_with_one_that_may_be_refused(
    system: ActorSystem, store: EventStore
):
    """It is not run again, so it must not be refused for what was decided behind it."""
    Ledger.fails_on = 3
    ref, others = system.ref(Account, "a"), [system.ref(Account, str(number)) for number in range(20)]
    await asyncio.gather(*(each.ask(Pay(amount=1)) for each in (ref, *others)))
    # While these are being stored, the commands of the other one wait, and might be put together.
    busy = [asyncio.create_task(each.ask(Pay(amount=1))) for each in others]
    await asyncio.sleep(0)
    answers = await asyncio.gather(ref.ask(PayLater(amount=2)), ref.ask(Pay(amount=3)), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["int", "ProjectionFailed"]
    await asyncio.gather(*busy)
    assert await store.version("account-a") == 2
    assert await is_complete(store)


async def test_a_transaction_over_actors_is_one_with_the_read_model(system: ActorSystem, store: EventStore):
    alice, bob = system.ref(Account, "alice"), system.ref(Account, "bob")
    async with system.transaction() as tx:
        await tx.ask(alice, Pay(amount=1))
        await tx.ask(bob, Pay(amount=2))
    assert await amounts(store) == [1, 2]
    Ledger.fails_on = 4
    with pytest.raises(ProjectionFailed):
        async with system.transaction() as tx:
            await tx.ask(alice, Pay(amount=3))
            await tx.ask(bob, Pay(amount=4))
    assert await amounts(store) == [1, 2]
    assert (await store.version("account-alice"), await store.version("account-bob")) == (1, 1)
    assert await alice.ask(Pay(amount=5)) == 2
    assert await is_complete(store)


async def test_statements_of_the_users_own_are_in_the_same_commit_too(system: ActorSystem, store: EventStore):
    alice = system.ref(Account, "alice")
    note = {"position": 0, "account": "note", "amount": 7}
    async with system.transaction() as tx:
        await tx.ask(alice, Pay(amount=1))
        await tx.connection.execute(insert(ENTRIES).values(note))
        assert await tx.connection.scalar(select(func.count()).select_from(ENTRIES)) == 1, "events come at the commit"
    assert await amounts(store) == [7, 1]
    Ledger.fails_on = 2
    with pytest.raises(ProjectionFailed):
        async with system.transaction() as tx:
            await tx.ask(alice, Pay(amount=2))
            await tx.connection.execute(insert(ENTRIES).values(note))
    assert await amounts(store) == [7, 1]
    assert await store.version("account-alice") == 1
    assert (await check_completeness(store, Ledger)).is_complete


async def test_plain_appends_through_the_systems_store_are_applied_too(system: ActorSystem, store: EventStore):
    await pay(store, 1, 2)
    assert await amounts(store) == [1, 2]


async def test_a_command_with_an_id_is_applied_once(system: ActorSystem, store: EventStore):
    ref = system.ref(Account, "a")
    for _ in range(2):
        assert await ref.ask(Pay(amount=1), command_id="once") == 1
    assert await amounts(store) == [1]
    assert await is_complete(store)


@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_append_that_nobody_answered_is_applied_once(
    system: ActorSystem, store: EventStore, monkeypatch: pytest.MonkeyPatch, is_stored: bool
):
    """It comes again as it was, and its ids tell whether it is stored: the read model is as the events are."""
    backend = store._backend
    begin, lost = backend.begin_sql, [2]

    async def begin_sql(*, seconds: float) -> SqlTransaction:
        transaction = await begin(seconds=seconds)
        commit = transaction.commit

        async def answer_lost(batch: Batch, checkpoints: Sequence[StoredCheckpoint] = ()) -> AppendOutcome:
            if not lost[0]:
                return await commit(batch, checkpoints)
            lost[0] -= 1
            await (commit(batch, checkpoints) if is_stored else transaction.rollback())
            raise OutcomeUnknown("the answer was lost")

        monkeypatch.setattr(transaction, "commit", answer_lost)
        return transaction

    monkeypatch.setattr(backend, "begin_sql", begin_sql)
    refs = [system.ref(Account, str(number)) for number in range(5)]
    assert await asyncio.gather(*(ref.ask(Pay(amount=1)) for ref in refs)) == [1] * 5
    assert lost == [0] if not is_stored else lost[0] < 2
    monkeypatch.undo()
    assert await amounts(store) == [1] * 5
    assert await is_complete(store)


async def test_other_kinds_cost_nothing_and_are_not_waited_for(system: ActorSystem, store: EventStore):
    await system.ref(Account, "a").ask(Pay(amount=1))
    revision = (await live_checkpoint(store, "ledger")).revision
    await system.ref(Other, "a").ask(Pay(amount=2))
    assert (await live_checkpoint(store, "ledger")).revision == revision
    await caught_up(store, Ledger, timeout=5)
    # Of its kinds it passes every event, so that all can be truncated.
    await system.ref(Account, "a").ask(Close())
    assert await store.truncate("account-a", 2, reason="test") == 2


async def test_what_others_have_stored_is_applied_before_in_the_order_of_the_log(
    system: ActorSystem, store: EventStore, other: EventStore
):
    """A process that does not run it inline leaves events behind: the next commit has them, each once."""
    await system.ref(Account, "a").ask(Pay(amount=1))
    await pay(other, 2, 3, account="account-b")
    assert await amounts(store) == [1]
    assert (await live_checkpoint(store, "ledger")).position < (await store.read_page()).end
    await system.ref(Account, "a").ask(Pay(amount=4))
    assert await amounts(store) == [1, 2, 3, 4]
    assert await is_complete(store)


async def test_many_events_of_others_are_caught_up_with_beforehand(
    system: ActorSystem, store: EventStore, other: EventStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inline, "_MOST_BEHIND", 20)
    await other.append("account-b", [Paid(amount=number) for number in range(50)])
    await system.ref(Account, "a").ask(Pay(amount=50))
    assert await amounts(store) == list(range(51))
    assert await is_complete(store)


async def test_a_transaction_with_statements_is_run_again_when_it_had_to_be_caught_up_first(
    system: ActorSystem, store: EventStore, other: EventStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(inline, "_MOST_BEHIND", 20)
    await other.append("account-b", [Paid(amount=number) for number in range(50)])
    runs = 0

    async def work(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        version = await tx.ask(system.ref(Account, "a"), Pay(amount=50))
        await tx.connection.scalar(select(func.count()).select_from(ENTRIES))
        return version

    assert await system.transact(work) == 1
    assert runs == 2
    assert await amounts(store) == list(range(51))
    assert await is_complete(store)


async def test_what_others_have_stored_and_cannot_be_applied_refuses_no_command(
    system: ActorSystem, store: EventStore, other: EventStore
):
    Ledger.fails_on = 2
    await pay(other, 2, account="account-b")
    assert await system.ref(Account, "a").ask(Pay(amount=1)) == 1
    assert await amounts(store) == [1]
    checkpoint = await live_checkpoint(store, "ledger")
    assert ([letter.stream_id for letter in checkpoint.letters], checkpoint.events) == (["account-b"], 2)


async def test_it_begins_where_a_runner_was_and_a_runner_goes_on_where_it_was(store: EventStore):
    await pay(store, 1, 2)
    await ProjectionRunner(store, Ledger).run(follow=False)
    await pay(store, 3)
    async with ActorSystem(store, inline=(Ledger,)) as system:
        assert await amounts(store) == [1, 2, 3]
        await system.ref(Account, "a").ask(Pay(amount=4))
    await pay(store, 5)
    assert await amounts(store) == [1, 2, 3, 4]
    await ProjectionRunner(store, Ledger).run(follow=False)
    assert await amounts(store) == [1, 2, 3, 4, 5]
    assert await is_complete(store)


async def test_two_processes_a_plain_writer_a_runner_and_rebuilds_at_once_apply_each_event_once(
    store: EventStore, other: EventStore, url: str
):
    async with (
        ActorSystem(store, inline=(Ledger,)) as first,
        ActorSystem(other, inline=(Ledger,)) as second,
        EventStore.open(url) as plain,
    ):
        running = asyncio.create_task(ProjectionRunner(plain, Ledger, poll_seconds=0.05, lease_seconds=1.0).run())

        async def ask(system: ActorSystem, start: int) -> None:
            for number in range(start, start + 25):
                # Who has lost three times in a row is told so, and asks again.
                while True:
                    with suppress(ConcurrencyError):
                        await system.ref(Account, str(number % 4)).ask(Pay(amount=number))
                        break

        async def build() -> None:
            for _ in range(2):
                await rebuild(plain, Ledger)

        await asyncio.gather(
            ask(first, 1000), ask(second, 2000), ask(first, 3000), pay(plain, *range(4000, 4025), account="account-9"),
            build(),
        )  # fmt: skip
        await caught_up(plain, Ledger, timeout=30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    expected = sorted(number for start in (1000, 2000, 3000, 4000) for number in range(start, start + 25))
    assert sorted(await amounts(store)) == expected
    assert await is_complete(store)
    found = [position for position, *_ in await entries(store)]
    assert found == sorted(found), "in the order of the log"
    assert (await live_checkpoint(store, "ledger")).version == 3


async def test_a_paused_one_refuses_commands_until_it_is_resumed(system: ActorSystem, store: EventStore):
    await pause(store, "ledger", "a look at it")
    ref = system.ref(Account, "a")
    with pytest.raises(ProjectionStopped, match="a look at it; it is inline, so nothing was stored"):
        await ref.ask(Pay(amount=1))
    assert await store.version("account-a") == 0
    assert await system.ref(Other, "a").ask(Pay(amount=1)) == 1
    await resume(store, "ledger")
    assert await ref.ask(Pay(amount=1)) == 1
    assert await amounts(store) == [1]


async def test_a_paused_one_refuses_its_kinds_alone_whoever_they_share_a_commit_with(
    system: ActorSystem, store: EventStore
):
    await pause(store, "ledger", "a look at it")
    # All but the first wait for its commit, and share the next one.
    commands = [system.ref(Other, "first").ask(Pay(amount=1))]
    for number in range(3):
        commands += [system.ref(actor, str(number)).ask(Pay(amount=1)) for actor in (Account, Other)]
    answers = await asyncio.gather(*commands, return_exceptions=True)
    refused = [isinstance(answer, ProjectionStopped) for answer in answers]
    assert refused == [False, *[True, False] * 3]
    assert [answer for answer in answers if not isinstance(answer, BaseException)] == [1] * 4
    assert [recorded.stream_id async for recorded in store.read_all()] == [
        "other-first", "other-0", "other-1", "other-2",
    ]  # fmt: skip


async def test_a_system_starts_while_one_is_paused(store: EventStore):
    await ProjectionRunner(store, Ledger).run(follow=False)
    await pause(store, "ledger", "a look at it")
    async with ActorSystem(store, inline=(Ledger,)) as system:
        with pytest.raises(ProjectionStopped):
            await system.ref(Account, "a").ask(Pay(amount=1))
        assert await system.ref(Other, "a").ask(Pay(amount=1)) == 1
        await resume(store, "ledger")
        assert await system.ref(Account, "a").ask(Pay(amount=1)) == 1
    assert await amounts(store) == [1]


async def test_an_error_at_the_commit_refuses_the_command_too(store: EventStore):
    class Slow(Ledger, name="ledger", kinds=("account",)):
        async def flush(self, connection):  # type: ignore[no-untyped-def]
            await super().flush(connection)
            await connection.execute(select(func.nothing_of_that_name()))

    async with ActorSystem(store, inline=(Slow,)) as system:
        with pytest.raises(ProjectionFailed, match="nothing_of_that_name"):
            await system.ref(Account, "a").ask(Pay(amount=1))
    assert await store.version("account-a") == 0
    assert await amounts(store) == []


async def test_one_store_has_its_inline_projections_from_one_place(system: ActorSystem, store: EventStore):
    with pytest.raises(DefinitionError, match="this store has inline projections already"):
        await InlineProjections(store, (PlainLedger,)).open()
    with pytest.raises(DefinitionError, match="inline projections with one name would share a read model: ledger"):
        InlineProjections(store, (Ledger, Ledger))


@pytest.mark.parametrize(
    ("given", "message"),
    [((Account,), "a subclass of Projection, not .*Account"), ("x", "not 'x'"), (Ledger, r"inline=\(Ledger,\)")],
)
async def test_what_is_no_projection_cannot_be_inline(store: EventStore, given: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        ActorSystem(store, inline=given)


@pytest.mark.parametrize("url_", ["memory://", "redis://localhost:1/0"])
async def test_it_is_refused_where_there_is_no_sql(url_: str):
    with pytest.raises(CapabilityError, match="has no SQL, so no read model can be written together with events"):
        ActorSystem(url_, inline=(Ledger,))
