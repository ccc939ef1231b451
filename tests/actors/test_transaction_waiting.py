"""Who wants an actor that a transaction has waits for it, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from actors import (
    ActorRef,
    ActorSystem,
    AskCycle,
    AskTimeout,
    MailboxFull,
    Transaction,
    TransactionError,
    TransactionOvertaken,
    command_handler,
)
from eventstore import EventStore
from tests.actors.notebook import Notebook, Read, Wait, Write, WriteSlowly, Written, texts, until
from tests.actors.outside import outside


class Calling(Notebook, kind="Notebook"):
    """`Wait(text)` does what the test has registered under that text, and writes the text."""

    calls: dict[str, Callable[[], Awaitable[object]]]

    @command_handler
    async def wait(self, command: Wait) -> int:
        await type(self).calls[command.text]()
        self.persist(Written(text=command.text))
        return len(self.state.lines)


Calls = dict[str, Callable[[], Awaitable[object]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = {}
    monkeypatch.setattr(Calling, "calls", calls, raising=False)
    return calls


@pytest_asyncio.fixture
async def a(system: ActorSystem) -> ActorRef[Calling]:
    return await live(system, "a")


@pytest_asyncio.fixture
async def b(system: ActorSystem) -> ActorRef[Calling]:
    return await live(system, "b")


async def live(system: ActorSystem, key: str) -> ActorRef[Calling]:
    """An actor that is there already."""
    ref = system.ref(Calling, key)
    await ref.ask(Read())
    return ref


async def turn() -> None:
    """Let everybody come to where they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


class Silent(Calling, kind="Notebook"):
    """Stores nothing when it is done, so that whoever is next gets it in that very step."""

    @command_handler
    async def wait(self, command: Wait) -> int:
        await type(self).calls[command.text]()
        return 0


# In order


async def test_others_wait_and_are_served_in_order_after_it(a: ActorRef[Calling], system: ActorSystem):
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        waiting = [
            outside(a.ask(command))
            for command in (Write(text="2"), WriteSlowly(text="3"), Write(text="4"), Write(text="5"))
        ]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in waiting)
        await tx.ask(a, Write(text="still 1"))
    assert await asyncio.gather(*waiting) == [3, 4, 5, 6]
    assert await a.ask(Read()) == ["1", "still 1", "2", "3", "4", "5"]


async def test_others_wait_no_longer_than_they_said(a: ActorRef[Calling], system: ActorSystem):
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        began = time.monotonic()
        with pytest.raises(AskTimeout):
            await outside(a.ask(Write(text="2"), timeout=0.1))
        assert time.monotonic() - began >= 0.1
    # The waiting was given up, and not the command.
    assert await a.ask(Read()) == ["1", "2"]


async def test_told_commands_wait_as_well(a: ActorRef[Calling], system: ActorSystem):
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        await a.tell(Write(text="told"))
        await turn()
        assert await tx.ask(a, Read()) == ["1"]
    assert await a.ask(Read()) == ["1", "told"]


async def test_an_actor_that_no_transaction_has_serves_on(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem
):
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        assert await b.ask(Write(text="2")) == 1
        assert await outside(b.ask(WriteSlowly(text="3"))) == 2


async def test_of_transactions_that_wait_the_oldest_is_next_and_commands_keep_their_places(
    a: ActorRef[Calling], system: ActorSystem
):
    begun = [asyncio.Event() for _ in range(4)]
    may_ask = [asyncio.Event() for _ in range(4)]

    async def work(number: int) -> None:
        async with system.transaction() as tx:
            begun[number].set()
            await may_ask[number].wait()
            await tx.ask(a, Write(text=f"tx{number}"))
            if number == 0:
                await may_end.wait()

    may_end = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []
    for number in range(4):
        tasks.append(asyncio.create_task(work(number)))
        await begun[number].wait()
    may_ask[0].set()
    await turn()
    for number in (3, 2, 1):
        tasks.append(asyncio.create_task(a.ask(Write(text=f"before {number}"))))
        await turn()
        may_ask[number].set()
        await turn()
    may_end.set()
    await asyncio.gather(*tasks)
    assert await a.ask(Read()) == ["tx0", "before 3", "tx1", "before 2", "tx2", "before 1", "tx3"]


# No deadlock


async def test_the_younger_of_two_that_want_each_others_actors_gives_way(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, store: EventStore
):
    """The younger waits already when the older closes the circle."""
    began = time.monotonic()
    old = system.transaction()
    async with old:
        await old.ask(a, Write(text="old"))

        async def young() -> None:
            async with system.transaction() as tx:
                await tx.ask(b, Write(text="young"))
                await tx.ask(a, Write(text="young"))

        overtaken = outside(young())
        await turn()
        assert not overtaken.done()
        assert await old.ask(b, Write(text="old")) == 1
    with pytest.raises(TransactionOvertaken, match="Notebook-a"):
        await overtaken
    assert time.monotonic() - began < 20
    assert (await texts(store, "a"), await texts(store, "b")) == (["old"], ["old"])


async def test_the_younger_gives_way_also_when_the_older_waits_already(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, store: EventStore
):
    old_waits = asyncio.Event()

    async def old() -> None:
        async with system.transaction() as tx:
            old_begun.set()
            await tx.ask(a, Write(text="old"))
            await old_waits.wait()
            await tx.ask(b, Write(text="old"))

    old_begun = asyncio.Event()
    older = asyncio.create_task(old())
    await old_begun.wait()
    with pytest.raises(TransactionOvertaken, match="Notebook-a"):
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="young"))
            old_waits.set()
            await turn()
            assert not older.done()
            with pytest.raises(TransactionOvertaken):
                await tx.ask(a, Write(text="young"))
            # It need not be over for the other to go on, and it cannot go on itself.
            await older
            with pytest.raises(TransactionOvertaken):
                await tx.ask(b, Write(text="young"))
    assert (await texts(store, "a"), await texts(store, "b")) == (["old"], ["old"])


async def test_a_function_that_gave_way_is_run_again_and_keeps_its_age(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem
):
    ages: list[int] = []
    has_b = asyncio.Event()

    async def young(tx: Transaction) -> None:
        ages.append(tx.age)
        await tx.ask(b, Write(text="young"))
        has_b.set()
        await tx.ask(a, Write(text="young"))

    async with system.transaction() as old:
        await old.ask(a, Write(text="old"))
        younger = outside(system.transact(young))
        await has_b.wait()
        await turn()
        await old.ask(b, Write(text="old"))
    # One that is begun while it is on its way again is the younger of them.
    youngest = system.transaction()
    await younger
    assert len(ages) >= 2
    assert len(set(ages)) == 1
    assert old.age < ages[0] < youngest.age
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [["old", "young"]] * 2


async def test_of_three_in_a_ring_the_youngest_gives_way_and_all_get_through(system: ActorSystem):
    refs = [await live(system, key) for key in "abc"]
    first_asked = asyncio.Event()
    asked = Counter[int]()
    finished: list[int] = []

    async def work(number: int) -> None:
        async def transfer(tx: Transaction) -> None:
            await tx.ask(refs[number], Write(text=f"{number}"))
            asked[number] += 1
            if len(asked) == 3:
                first_asked.set()
            await first_asked.wait()
            await tx.ask(refs[(number + 1) % 3], Write(text=f"{number}"))

        await system.transact(transfer)
        finished.append(number)

    await asyncio.gather(*(work(number) for number in range(3)))
    # Only the youngest is run again.
    assert (asked[0], asked[1], finished[2]) == (1, 1, 2)
    assert asked[2] > 1
    for number, ref in enumerate(refs):
        assert sorted(await ref.ask(Read())) == sorted([f"{number}", f"{(number - 1) % 3}"])


async def test_many_over_random_actors_in_any_order_all_get_through(store: EventStore):
    keys, count = "abcd", 150
    chance = random.Random(5)
    runs = Counter[int]()

    async def work(system: ActorSystem, number: int, chosen: list[str]) -> None:
        async def transfer(tx: Transaction) -> None:
            runs[number] += 1
            for key in chosen:
                await tx.ask(system.ref(Notebook, key), Write(text=f"{number}"))
                await asyncio.sleep(0)

        await system.transact(transfer)

    chosen = [chance.sample(keys, chance.randint(2, 4)) for _ in range(count)]
    # The last waits for all others, which on a busy machine takes longer than a transaction may by default.
    async with ActorSystem(store, transaction_timeout=120) as system:
        await asyncio.gather(*(work(system, number, keys) for number, keys in enumerate(chosen)))
        assert sum(runs.values()) > count
        for key in keys:
            written = await system.ref(Notebook, key).ask(Read())
            assert sorted(written) == sorted(f"{number}" for number, keys in enumerate(chosen) if key in keys)
            assert await texts(store, key) == written


async def test_a_transaction_gives_way_to_a_handler_that_waits_for_its_actor(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls
):
    """The handler waits already when the transaction closes the circle."""
    calls["from a"] = lambda: b.ask(Write(text="from a"))
    runs: list[asyncio.Task[int]] = []

    async def work(tx: Transaction) -> int:
        await tx.ask(b, Write(text="tx"))
        if not runs:
            runs.append(outside(a.ask(Wait(text="from a"))))
            await turn()
        return await tx.ask(a, Write(text="tx"))

    assert await system.transact(work) == 2
    assert await runs[0] == 1
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [["from a", "tx"]] * 2


async def test_a_transaction_that_waits_gives_way_to_a_handler_that_asks_for_its_actor(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls
):
    """The transaction waits already when the handler closes the circle, which cannot be run again."""
    goes_on = asyncio.Event()

    async def ask_b() -> None:
        await goes_on.wait()
        await b.ask(Write(text="from a"))

    calls["from a"] = ask_b
    handling = asyncio.create_task(a.ask(Wait(text="from a")))
    await turn()
    runs = 0

    async def work(tx: Transaction) -> int:
        nonlocal runs
        runs += 1
        await tx.ask(b, Write(text="tx"))
        asyncio.get_running_loop().call_later(0.01, goes_on.set)
        return await tx.ask(a, Write(text="tx"))

    assert await system.transact(work) == 2
    assert (await handling, runs) == (1, 2)
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [["from a", "tx"]] * 2


async def test_full_mailboxes_in_which_others_wait_for_room_are_no_deadlock(url: str):
    async with ActorSystem(url, mailbox_size=1, mailbox_overflow="wait") as system:
        refs = [system.ref(Notebook, key) for key in "ab"]
        both = asyncio.Event()
        has = set[int]()

        async def work(number: int) -> None:
            async def transfer(tx: Transaction) -> None:
                await tx.ask(refs[number], Write(text=f"tx{number}"))
                has.add(number)
                if len(has) == 2:
                    both.set()
                await both.wait()
                await asyncio.sleep(0.02)
                await tx.ask(refs[1 - number], Write(text=f"tx{number}"))

            await system.transact(transfer, timeout=60)

        began = time.monotonic()
        transfers = [asyncio.create_task(work(number)) for number in range(2)]
        await both.wait()
        singles = [asyncio.create_task(ref.ask(Write(text="single"))) for ref in refs for _ in range(5)]
        await asyncio.gather(*transfers, *singles)
        assert time.monotonic() - began < 20
        for ref in refs:
            assert Counter(await ref.ask(Read())) == {"tx0": 1, "tx1": 1, "single": 5}


async def test_a_full_mailbox_refuses_a_transaction_which_may_go_on_without(url: str):
    async with ActorSystem(url, mailbox_size=1) as system:
        a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
        async with system.transaction() as first:
            await first.ask(a, Write(text="first"))
            waiting = outside(a.ask(Write(text="waiting")))
            await turn()

            async def second() -> None:
                async with system.transaction() as tx:
                    await tx.ask(b, Write(text="second"))
                    with pytest.raises(MailboxFull):
                        await tx.ask(a, Write(text="second"))

            await outside(second())
        await waiting
        assert await a.ask(Read()) == ["first", "waiting"]
        assert await texts(system.store, "b") == ["second"]


# What would wait for itself


async def test_asking_a_participant_past_the_transaction_is_an_error_at_once(
    a: ActorRef[Calling], system: ActorSystem, store: EventStore
):
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        for command in (Read(), WriteSlowly(text="x")):
            with pytest.raises(AskCycle, match="Notebook-a"):
                await a.ask(command)  # type: ignore[arg-type]  # of either kind
        await tx.ask(a, Write(text="2"))
    assert await texts(store) == ["1", "2"]


@pytest.mark.parametrize("asked", ["a", "b"], ids=["itself", "another participant"])
async def test_a_handler_that_asks_a_participant_is_told_at_once(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls, asked: str
):
    calls["ask"] = lambda: (a if asked == "a" else b).ask(Read())
    began = time.monotonic()
    with pytest.raises(AskCycle, match=f"Notebook-{asked}"):
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="1"))
            await tx.ask(a, Wait(text="ask"))
    assert time.monotonic() - began < 20
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [[], []]


async def test_whoever_is_asked_from_the_block_cannot_ask_a_participant(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls
):
    calls["ask a"] = lambda: a.ask(Read())
    with pytest.raises(AskCycle, match="Notebook-a"):
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            await b.ask(Wait(text="ask a"))
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [[], []]


async def test_a_block_may_ask_others_which_are_no_part_of_it(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem
):
    with pytest.raises(ZeroDivisionError):
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            assert await b.ask(Write(text="2")) == 1
            raise ZeroDivisionError
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [[], ["2"]]


async def test_a_transaction_within_another_is_refused(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls
):
    async def inner() -> None:
        with pytest.raises(TransactionError, match="open here already"):
            async with system.transaction():
                pass
        with pytest.raises(TransactionError, match="open here already"):
            await b.batch([Write(text="x")])

    calls["inner"] = inner
    async with system.transaction() as tx:
        await inner()
        await tx.ask(a, Wait(text="inner"))
        await inner()
    assert await a.ask(Read()) == ["inner"]
    # Beside each other they are two.
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        await outside(b.batch([Write(text="2")]))
    await b.batch([Write(text="3")])
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [["inner", "1"], ["2", "3"]]


async def test_a_handler_may_begin_a_transaction_over_others(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls
):
    c = await live(system, "c")

    async def transfer() -> None:
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="1"))
            await tx.ask(c, Write(text="2"))
            with pytest.raises(AskCycle, match="Notebook-a"):
                await tx.ask(a, Write(text="3"))

    calls["transfer"] = transfer
    assert await a.ask(Wait(text="transfer")) == 1
    assert await asyncio.gather(*(ref.ask(Read()) for ref in (a, b, c))) == [["transfer"], ["1"], ["2"]]


async def test_after_its_transaction_a_handler_still_cannot_ask_its_own_actor(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls
):
    async def transfer() -> None:
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="1"))
        with pytest.raises(AskCycle, match="Notebook-a"):
            await a.ask(Read())

    calls["transfer"] = transfer
    assert await a.ask(Wait(text="transfer")) == 1


async def test_handlers_that_want_each_other_in_transactions_are_told_at_once(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem, calls: Calls
):
    both: list[str] = []

    def wanting(ref: ActorRef[Calling], name: str) -> Callable[[], Awaitable[object]]:
        async def transfer() -> None:
            both.append(name)
            await until(lambda: len(both) == 2)
            await ref.batch([Write(text=name)])

        return transfer

    calls["a to b"], calls["b to a"] = wanting(b, "a to b"), wanting(a, "b to a")
    began = time.monotonic()
    replies = await asyncio.gather(a.ask(Wait(text="a to b")), b.ask(Wait(text="b to a")), return_exceptions=True)
    assert time.monotonic() - began < 20
    assert sorted(type(reply) for reply in replies if not isinstance(reply, int)) == [AskCycle]
    assert sorted([*await a.ask(Read()), *await b.ask(Read())]) in (
        ["a to b", "a to b"],
        ["b to a", "b to a"],
    )


# Fairness


async def test_single_commands_pass_a_storm_of_transactions_each_within_one_turn_of_all(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem
):
    """Ahead of a command is at most one transaction of each that storms."""
    storming, commands = 8, 100
    committed = 0
    is_over = False

    async def storm(number: int) -> None:
        nonlocal committed
        first, second = (a, b) if number % 2 else (b, a)

        async def transfer(tx: Transaction) -> None:
            await tx.ask(first, Write(text="tx"))
            await asyncio.sleep(0)
            await tx.ask(second, Write(text="tx"))

        while not is_over:
            await system.transact(transfer)
            committed += 1

    storms = [asyncio.create_task(storm(number)) for number in range(storming)]
    await until(lambda: committed > storming)
    passed: list[int] = []
    for number in range(commands):
        before = committed
        await (a if number % 2 else b).ask(Write(text="single"))
        passed.append(committed - before)
    is_over = True
    await asyncio.gather(*storms)
    assert max(passed) <= storming
    # They did meet.
    assert sum(passed) > commands / 2
    counts = [Counter(await ref.ask(Read())) for ref in (a, b)]
    assert counts == [{"tx": committed, "single": commands / 2}] * 2


async def test_a_transaction_passes_a_storm_of_single_commands(
    a: ActorRef[Calling], b: ActorRef[Calling], system: ActorSystem
):
    storming = 20
    served = 0
    is_over = False

    async def storm() -> None:
        nonlocal served
        while not is_over:
            await asyncio.gather(a.ask(Write(text="x")), b.ask(Write(text="x")))
            served += 1

    storms = [asyncio.create_task(storm()) for _ in range(storming)]
    await until(lambda: served > storming)
    for _ in range(20):
        before = served
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="tx"))
            await tx.ask(b, Write(text="tx"))
        assert served - before <= 6 * storming
    is_over = True
    await asyncio.gather(*storms)
    assert Counter(await a.ask(Read())) == Counter(await b.ask(Read())) == {"tx": 20, "x": served}


async def test_an_actor_that_is_given_to_somebody_who_goes_at_that_moment_serves_others(
    system: ActorSystem, calls: Calls
):
    a = system.ref(Silent, "a")
    await a.ask(Read())
    let_go, is_busy = asyncio.Event(), asyncio.Event()

    async def busy() -> None:
        is_busy.set()
        await let_go.wait()
        # Comes after the actor was given away, and before whoever got it is woken.
        asyncio.get_running_loop().call_soon(taking.cancel)

    async def take() -> None:
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="never"))

    calls["busy"] = busy
    handled = outside(a.ask(Wait(text="busy")))
    await is_busy.wait()
    taking = outside(take())
    await turn()
    let_go.set()
    assert await handled == 0
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert await a.ask(Write(text="next"), timeout=20) == 1
