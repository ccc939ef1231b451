"""A transaction with an id is stored once as a whole, and answered with what came of it from then on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from actors import (
    ActorRef,
    ActorSystem,
    BackendUnavailable,
    Command,
    CommandForgotten,
    CommandRejected,
    CommandRetention,
    ConcurrencyError,
    DuplicateCommandMismatch,
    InvalidCommandId,
    OutcomeUnknown,
    Transaction,
    command_handler,
    new_command_id,
)
from actors.command_identity import identify
from eventstore import CodecError, EventStore
from eventstore.backend import CommandLookup
from tests.actors.faults import Faults, answer_lost, request_lost
from tests.actors.notebook import Notebook, Read, Refuse, Wait, Write, Written, served, texts


class Poor(CommandRejected):
    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} missing")
        self.missing = missing


class Lie(Command[int]):
    pass


class Account(Notebook, kind="Notebook"):
    """What it handled is counted by the test."""

    handled: list[str] = []  # noqa: RUF012 (one for all)

    @command_handler
    def write(self, command: Write) -> int:
        self.handled.append(command.text)
        self.persist(Written(text=command.text))
        return len(self.state.lines)

    @command_handler
    def read(self, command: Read) -> list[str]:
        self.handled.append("read")
        return list(self.state.lines)

    @command_handler
    def wait(self, command: Wait) -> int:
        raise Poor(len(self.state.lines))

    @command_handler
    def lie(self, command: Lie) -> int:
        self.persist(Written(text="a lie"))
        return "no number"  # type: ignore[return-value]  # what is tested


@pytest.fixture(autouse=True)
def handled() -> list[str]:
    Account.handled.clear()
    return Account.handled


Asks = Sequence[tuple[str, Command[Any]]]
TRANSFER: Asks = [("a", Write(text="1")), ("b", Write(text="2")), ("c", Read()), ("a", Write(text="3"))]
REPLIES = (1, 1, [], 2)


def ref(system: ActorSystem, key: str) -> ActorRef[Account]:
    return system.ref(Account, key)


async def block(system: ActorSystem, command_id: str, asks: Asks = TRANSFER) -> Transaction:
    async with system.transaction(command_id=command_id) as tx:
        for key, command in asks:
            await tx.ask(ref(system, key), command)
    return tx


async def function(system: ActorSystem, command_id: str, asks: Asks = TRANSFER) -> tuple[Any, ...]:
    async def work(tx: Transaction) -> tuple[Any, ...]:
        for key, command in asks:
            await tx.ask(ref(system, key), command)
        return tx.replies

    return await system.transact(work, command_id=command_id)


async def lines(store: EventStore) -> dict[str, list[str]]:
    return {key: await texts(store, key) for key in "abc"}


STORED = {"a": ["1", "3"], "b": ["2"], "c": []}


async def test_the_same_id_again_returns_the_first_replies_and_handles_nothing(system: ActorSystem, handled: list[str]):
    first = await block(system, "x")
    assert (first.replies, first.is_repeated) == (REPLIES, False)
    await ref(system, "c").ask(Write(text="later"))
    handled.clear()
    for _ in range(2):
        again = await block(system, "x")
        assert (again.replies, again.is_repeated) == (REPLIES, True)
    assert await function(system, "x") == REPLIES
    assert handled == []
    assert await lines(system.store) == {**STORED, "c": ["later"]}
    assert await ref(system, "a").ask(Read()) == ["1", "3"]


async def test_after_a_restart_nothing_is_handled_again(store: EventStore, other: EventStore, handled: list[str]):
    async with ActorSystem(store) as system:
        await block(system, "x")
    handled.clear()
    async with ActorSystem(other) as system:
        again = await block(system, "x")
        assert (again.replies, again.is_repeated) == (REPLIES, True)
    assert handled == []
    assert await lines(store) == STORED


@pytest.mark.parametrize("live", ["", "a", "b", "ab", "c", "abc"])
async def test_what_another_process_stored_is_not_handled_again(store: EventStore, other: EventStore, live: str):
    """Whichever of the actors this process has in memory, with what it knows of their commands."""
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        for key in live:
            await ref(two, key).ask(Read(), command_id="before")
        await block(one, "x")
        assert await function(two, "x") == REPLIES
        again = await block(two, "x")
        assert (again.replies, again.is_repeated) == (REPLIES, True)
        assert await ref(two, "a").ask(Read(), fresh=True) == ["1", "3"]
    assert await lines(store) == STORED


async def test_a_block_is_told_to_begin_again_where_it_was_stored_elsewhere_meanwhile(
    store: EventStore, other: EventStore
):
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        await ref(two, "a").ask(Read(), command_id="before")
        await block(one, "x")
        with pytest.raises(ConcurrencyError, match="another process"):
            await block(two, "x")
        assert (await block(two, "x")).replies == REPLIES
    assert await lines(store) == STORED


class Mailing(Account, kind="Notebook"):
    """What its async handler did outside of the journal is counted by the test."""

    @command_handler
    async def wait(self, command: Wait) -> int:
        self.handled.append(command.text)
        self.persist(Written(text=command.text))
        return len(self.state.lines)


@pytest.mark.parametrize("asked", ["A", "aA", "aB", "bAa"])
async def test_an_async_handler_is_not_run_for_what_another_process_has_stored(
    store: EventStore, other: EventStore, handled: list[str], asked: str
):
    """Each letter is a command to that actor, a capital one to its async handler."""
    async with ActorSystem(store) as one, ActorSystem(other) as two:

        async def run(system: ActorSystem) -> list[int]:
            async def work(tx: Transaction) -> list[int]:
                return [
                    await tx.ask(
                        system.ref(Mailing, letter.lower()),
                        Wait(text="mailed") if letter.isupper() else Write(text="written"),
                    )
                    for letter in asked
                ]

            return await system.transact(work, command_id="x")

        for key in "ab":  # This process knows what was remembered until now, and takes what follows for new.
            await two.ref(Mailing, key).ask(Read(), command_id="before")
        replies = await run(one)
        assert await run(two) == replies
        assert handled.count("mailed") == 1


async def test_two_processes_at_once_store_it_once(store: EventStore, other: EventStore):
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        for number in range(10):
            asks: Asks = [("a", Write(text=f"{number}a")), ("b", Write(text=f"{number}b")), ("a", Read())]
            replies = await asyncio.gather(*(function(system, f"x{number}", asks) for system in (one, two, one, two)))
            assert replies == [replies[0]] * 4
    assert await texts(store, "a") == [f"{number}a" for number in range(10)]
    assert await texts(store, "b") == [f"{number}b" for number in range(10)]


async def test_sent_many_times_at_once_it_is_stored_once(system: ActorSystem):
    assert await asyncio.gather(*(function(system, "x") for _ in range(20))) == [REPLIES] * 20
    assert await lines(system.store) == STORED


OTHERS: dict[str, Asks] = {
    "another command": [("a", Write(text="other")), *TRANSFER[1:]],
    "another class": [("a", Read()), *TRANSFER[1:]],
    "another last command": [*TRANSFER[:3], ("a", Write(text="other"))],
    "fewer commands": TRANSFER[:3],
    "fewer actors": [TRANSFER[0], TRANSFER[1], TRANSFER[3]],
    "one actor": [TRANSFER[0], TRANSFER[3]],
    "more commands": [*TRANSFER, ("b", Write(text="more"))],
    "more actors": [*TRANSFER, ("d", Read())],
    "more actors first": [("d", Write(text="more")), *TRANSFER],
    "other actors": [("b", Write(text="1")), ("a", Write(text="2")), ("c", Read()), ("b", Write(text="3"))],
    "another order for one actor": [TRANSFER[3], TRANSFER[1], TRANSFER[2], TRANSFER[0]],
}


@pytest.mark.parametrize("others", OTHERS, ids=str)
async def test_another_transaction_under_the_same_id_is_an_error(store: EventStore, other: EventStore, others: str):
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        await block(one, "x")
        for system in (one, two):
            with pytest.raises(DuplicateCommandMismatch):
                await function(system, "x", OTHERS[others])
        assert await lines(store) == STORED
        assert await texts(store, "d") == []
        # It leaves no actor held, and what was stored can still be asked for.
        assert await function(two, "x") == REPLIES
        assert await ref(one, "d").ask(Read()) == []
        assert await ref(one, "a").ask(Read()) == ["1", "3"]


async def test_the_order_between_actors_makes_no_other_transaction(system: ActorSystem):
    await block(system, "x")
    swapped: Asks = [TRANSFER[1], TRANSFER[2], TRANSFER[0], TRANSFER[3]]
    assert await function(system, "x", swapped) == (1, [], 1, 2)
    assert await lines(system.store) == STORED


async def test_a_mismatch_that_the_block_catches_stores_nothing_of_it(system: ActorSystem):
    await block(system, "x", [("a", Write(text="1"))])
    with pytest.raises(DuplicateCommandMismatch):
        async with system.transaction(command_id="x") as tx:
            await tx.ask(ref(system, "b"), Write(text="2"))
            with pytest.raises(DuplicateCommandMismatch):
                await tx.ask(ref(system, "a"), Write(text="1"))
    assert await texts(system.store, "b") == []


@pytest.mark.parametrize("is_here", [True, False], ids=["same process", "another process"])
async def test_a_single_ask_under_the_id_of_a_transaction_is_an_error(
    store: EventStore, other: EventStore, is_here: bool
):
    async with ActorSystem(store) as one, ActorSystem(other) as two:
        asker = one if is_here else two
        await block(one, "x", [("a", Write(text="1"))])
        with pytest.raises(DuplicateCommandMismatch):
            await ref(asker, "a").ask(Write(text="1"), command_id="x")
        await ref(one, "b").ask(Write(text="1"), command_id="y")
        with pytest.raises(DuplicateCommandMismatch):
            await function(asker, "y", [("b", Write(text="1"))])
        assert await texts(store, "a") == await texts(store, "b") == ["1"]


class Tell(Command[dict[str, Any]]):
    """Answered with what a transaction remembers, as far as its form goes."""


class Impostor(Account, kind="Notebook"):
    @command_handler
    def tell(self, command: Tell) -> dict[str, Any]:
        told = identify(Write(text="1"), "c").fingerprint.hex(), "7", False
        return {"participants": ["Notebook-a"], "told": [list(told)]}


async def test_a_reply_that_looks_like_a_transaction_is_taken_for_none(system: ActorSystem):
    a = system.ref(Impostor, "a")
    await a.ask(Tell(), command_id="c")
    with pytest.raises(DuplicateCommandMismatch):
        async with system.transaction(command_id="c") as tx:
            await tx.ask(a, Write(text="1"))
    assert await texts(system.store) == []


@pytest.mark.parametrize("is_before", [True, False])
async def test_what_was_expected_then_is_not_expected_again(system: ActorSystem, is_before: bool):
    a = system.ref(Account, "a")
    for number in range(3):
        async with system.transaction(command_id="c") as tx:
            if is_before:
                tx.expect(a, version=0)
            assert await tx.ask(a, Write(text="1")) == 1
            if not is_before:
                tx.expect(a, version=0)
        assert tx.is_repeated == (number > 0)
        await a.ask(Write(text="later"))


async def test_what_transactions_leave_behind_is_forgotten_in_time(system: ActorSystem, store: EventStore):
    class Kiosk(Account):
        command_retention = CommandRetention(count=10)

    kiosk = system.ref(Kiosk, "a")
    for number in range(1500):
        await kiosk.batch([Read()], command_id=f"{number:05}")

    async def is_forgotten() -> bool:
        return (await store.find_command(CommandLookup("Kiosk-a", "00000"))).outcome is None

    for _ in range(2000):
        if await is_forgotten():
            break
        await asyncio.sleep(0.01)
    # One in 64 has the oldest forgotten: that none of 1,490 did so has a probability of 10 to the minus 10.
    assert await is_forgotten()


async def test_a_batch_with_an_id_is_stored_once(system: ActorSystem, store: EventStore):
    commands = [Write(text="1"), Write(text="2")]
    for _ in range(2):
        assert await ref(system, "a").batch(commands, command_id="x") == [1, 2]
    with pytest.raises(DuplicateCommandMismatch):
        await ref(system, "a").batch(commands[:1], command_id="x")
    assert await texts(store) == ["1", "2"]


async def test_a_transaction_that_stored_no_events_is_remembered_too(system: ActorSystem):
    reads: Asks = [("a", Read()), ("b", Read())]
    assert (await block(system, "x", reads)).replies == ([], [])
    await ref(system, "a").ask(Write(text="later"))
    assert (await block(system, "x", reads)).replies == ([], [])


async def test_a_rejected_transaction_is_not_remembered(system: ActorSystem, store: EventStore):
    async def work(tx: Transaction) -> int:
        await tx.ask(ref(system, "a"), Write(text="1"))
        if (await tx.ask(ref(system, "b"), Read())) == []:
            await tx.ask(ref(system, "b"), Refuse())
        return await tx.ask(ref(system, "b"), Write(text="2"))

    with pytest.raises(CommandRejected):
        await system.transact(work, command_id="x")
    await ref(system, "b").ask(Write(text="before"))
    # Nothing came of it, so it can still succeed.
    assert await system.transact(work, command_id="x") == 2
    assert await texts(store, "a") == ["1"]


async def test_a_rejection_that_the_block_caught_is_repeated(store: EventStore, other: EventStore):
    async def work(system: ActorSystem) -> tuple[int, int]:
        async with system.transaction(command_id="x") as tx:
            with pytest.raises(Poor, match="0 missing") as caught:
                await tx.ask(ref(system, "a"), Wait())
            return caught.value.missing, await tx.ask(ref(system, "b"), Write(text="1"))

    async with ActorSystem(store) as one, ActorSystem(other) as two:
        assert await work(one) == (0, 1)
        await ref(one, "a").ask(Write(text="later"))
        assert await work(one) == await work(two) == (0, 1)
        with pytest.raises(DuplicateCommandMismatch):
            await function(two, "x", [("a", Read()), ("b", Write(text="1"))])
    assert await texts(store, "b") == ["1"]


async def test_a_reply_that_cannot_be_remembered_stores_nothing(system: ActorSystem, store: EventStore):
    with pytest.raises(CodecError):
        async with system.transaction(command_id="x") as tx:
            await tx.ask(ref(system, "b"), Write(text="1"))
            with pytest.raises(CodecError):
                await tx.ask(ref(system, "a"), Lie())
    assert (await texts(store, "a"), await texts(store, "b")) == ([], [])
    assert await ref(system, "a").ask(Read()) == []
    # Without an id nothing is to be remembered.
    async with system.transaction() as tx:
        await tx.ask(ref(system, "a"), Lie())
    assert await texts(store, "a") == ["a lie"]


async def test_what_one_of_its_actors_has_forgotten_is_refused(system: ActorSystem, store: EventStore):
    for forgetful in "ab":
        for command_id in (new_command_id(), f"x{forgetful}"):
            await block(system, command_id)
            await store.forget_commands(f"Notebook-{forgetful}", keep=0)
            async with ActorSystem(store) as afterwards:
                # Whether the first of them has forgotten it, or another.
                with pytest.raises(CommandForgotten, match=f"Notebook-{forgetful}"):
                    await block(afterwards, command_id)
    assert len(await texts(store, "a")) == 8


async def test_an_id_that_tells_its_age_is_refused_when_all_have_forgotten(system: ActorSystem, store: EventStore):
    command_id = new_command_id()
    await block(system, command_id)
    for key in "abc":
        await store.forget_commands(f"Notebook-{key}", keep=0)
    async with ActorSystem(store) as afterwards:
        with pytest.raises(CommandForgotten):
            await block(afterwards, command_id)
    # An actor that is still here does not know, until the store says so.
    with pytest.raises(CommandForgotten):
        await function(system, command_id)
    assert await lines(store) == STORED


@pytest.mark.parametrize("command_id", ["", "x" * 256, "a\0b"])
async def test_an_id_that_cannot_be_stored_is_refused_at_once(system: ActorSystem, command_id: str):
    with pytest.raises(InvalidCommandId):
        system.transaction(command_id=command_id)


# Unknown outcomes


async def test_a_lost_answer_is_resolved(faults: Faults, faulty: ActorSystem):
    faults.next.append(answer_lost)
    assert (await block(faulty, "x")).replies == REPLIES
    faults.next.append(request_lost)
    assert (await block(faulty, "y")).replies == (3, 2, [], 4)
    assert await lines(faulty.store) == {"a": ["1", "3", "1", "3"], "b": ["2", "2"], "c": []}
    assert await ref(faulty, "a").ask(Write(text="next")) == 5


@pytest.mark.parametrize("fault", [answer_lost, request_lost], ids=["stored", "not stored"])
@pytest.mark.parametrize("first", [0, 2], ids=["a writer first", "a reader first"])
async def test_an_unknown_outcome_names_the_id_and_asking_again_finds_out(faults: Faults, fault: Any, first: int):
    asks: Asks = [*TRANSFER[first:], *TRANSFER[:first]]
    async with faults.store(resolve_within=0.1) as store, ActorSystem(store) as system:
        for key in "abc":
            await ref(system, key).ask(Read(), command_id="before")
        faults.always = fault
        with pytest.raises(OutcomeUnknown, match="ask again with command_id 'x'") as caught:
            await block(system, "x", asks)
        assert caught.value.command_id == "x"
        faults.always = None
        await asyncio.sleep(0.05)

        async def again() -> tuple[Any, ...]:
            async with asyncio.timeout(20):
                while True:
                    try:
                        return (await block(system, "x", asks)).replies
                    except BackendUnavailable:
                        await asyncio.sleep(0.02)

        replies = REPLIES if first == 0 else ([], 1, 2, 1)
        assert [await again(), await again()] == [replies, replies]
        assert await lines(store) == {"a": ["1", "3"] if first == 0 else ["3", "1"], "b": ["2"], "c": []}
        assert await ref(system, "b").ask(Read()) == ["2"]


async def test_an_unknown_outcome_without_an_id_leaves_the_actors_as_the_journal_is(faults: Faults):
    async with faults.store(resolve_within=0.1) as store, ActorSystem(store) as system:
        await asyncio.gather(*(ref(system, key).ask(Read()) for key in "ab"))
        faults.always = answer_lost
        with pytest.raises(OutcomeUnknown):
            async with system.transaction() as tx:
                await tx.ask(ref(system, "a"), Write(text="1"))
                await tx.ask(ref(system, "b"), Write(text="2"))
        faults.always = None

        assert [await served(ref(system, key).ask, Read()) for key in "ab"] == [["1"], ["2"]]
