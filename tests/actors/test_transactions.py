"""Commands to several actors are stored together or not at all."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from actors import (
    ActorSystem,
    CommandRejected,
    ConcurrencyError,
    DefinitionError,
    SnapshotPolicy,
    Transaction,
    TransactionError,
    command_handler,
    fold,
)
from actors.transactions.transacting import RETRIES
from backends.conformance.cases import case
from eventstore import BackendUnavailable, EventStore, InvalidArgument, Metadata, RecordedEvent
from tests.actors.faults import Faults, refused
from tests.actors.notebook import (
    Break,
    Notebook,
    Read,
    Refuse,
    Unhandled,
    Wait,
    Write,
    WriteAll,
    WriteAndBreak,
    WriteAndRefuse,
    WriteSlowly,
    Written,
    texts,
    until,
)
from tests.actors.outside import outside


class Always(Notebook, kind="Notebook"):
    always_fresh = True


class Patient(Notebook, kind="Notebook"):
    """Its `Wait` is handled by an `async def` handler, which persists at its end."""

    handled = 0

    @command_handler
    async def wait(self, command: Wait) -> int:
        type(self).handled += 1
        await asyncio.sleep(0)
        self.persist(Written(text=command.text))
        return len(self.state.lines)


async def log(store: EventStore) -> list[RecordedEvent]:
    return [recorded async for recorded in store.read_all()]


async def write_elsewhere(other: EventStore, key: str, *lines: str) -> None:
    """As another process would."""
    await other.append(f"Notebook-{key}", [Written(text=line) for line in lines])


# All or none


async def test_commands_to_several_actors_are_stored_together_in_the_order_of_the_asks(system: ActorSystem):
    a, b, c = (system.ref(Notebook, key) for key in "abc")
    await b.ask(Write(text="before"))
    async with system.transaction() as tx:
        assert await tx.ask(a, Write(text="1")) == 1
        assert await tx.ask(b, WriteAll(texts=("2", "3"))) == 3
        assert await tx.ask(a, Write(text="4")) == 2
        assert await tx.ask(c, Read()) == []
        assert await tx.ask(b, Read()) == ["before", "2", "3"]
    before, *stored = await log(system.store)
    assert [(recorded.stream_id, recorded.version, recorded.json()["text"]) for recorded in stored] == [
        ("Notebook-a", 1, "1"),
        ("Notebook-b", 2, "2"),
        ("Notebook-b", 3, "3"),
        ("Notebook-a", 2, "4"),
    ]
    assert tx.replies == (1, 3, 2, [], ["before", "2", "3"])
    assert before.batch_id != stored[0].batch_id


@case("C058")
async def test_its_events_have_one_batch_and_one_correlation_and_follow_each_other_in_the_log(
    system: ActorSystem, other: EventStore
):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        await write_elsewhere(other, "x", "in between")
        await tx.ask(b, Write(text="2"))
        await tx.ask(a, Write(text="3"))
    stored = [recorded for recorded in await log(system.store) if recorded.stream_id != "Notebook-x"]
    assert [(recorded.stream_id, recorded.version) for recorded in stored] == [
        ("Notebook-a", 1),
        ("Notebook-b", 1),
        ("Notebook-a", 2),
    ]
    assert stored[2].position - stored[0].position == 2
    assert {recorded.batch_id for recorded in stored} == {stored[0].event_id}
    assert len({recorded.metadata and recorded.metadata.correlation_id for recorded in stored}) == 1
    assert stored[0].metadata is not None
    assert stored[0].metadata.correlation_id is not None


async def test_what_the_user_says_of_the_events_is_kept(system: ActorSystem):
    metadata = Metadata(correlation_id="order-7", causation_id="ann")
    async with system.transaction(metadata=metadata, command_id="x") as tx:
        await tx.ask(system.ref(Notebook, "a"), Write(text="1"))
    async with system.transaction(metadata=Metadata(causation_id="bob"), command_id="y") as tx:
        await tx.ask(system.ref(Notebook, "b"), Write(text="2"))
        await tx.ask(system.ref(Notebook, "a"), Write(text="2"))
    found = [recorded.metadata for recorded in await log(system.store)]
    assert [said and (said.command_id, said.correlation_id, said.causation_id) for said in found] == [
        ("x", "order-7", "ann"),
        ("y", "y", "bob"),
        ("y", "y", "bob"),
    ]


async def test_what_comes_after_it_needs_no_second_append(faults: Faults, faulty: ActorSystem):
    a = faulty.ref(Notebook, "a")
    async with faulty.transaction() as tx:
        await tx.ask(a, WriteAll(texts=("1", "2")))
    assert await a.ask(Write(text="3")) == 3
    assert len(faults.appends) == 2


async def test_the_actors_go_on_from_what_was_stored(system: ActorSystem, store: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        await tx.ask(b, Write(text="2"))
    # Nothing is recovered for it, and nobody is told of a conflict.
    assert await asyncio.gather(a.ask(Write(text="3")), b.ask(Write(text="4")), a.ask(Read())) == [2, 2, ["1", "3"]]
    assert (await texts(store, "a"), await texts(store, "b")) == (["1", "3"], ["2", "4"])
    assert system.stats().failures == {}


async def test_before_it_is_stored_nobody_sees_it(faults: Faults, faulty: ActorSystem):
    a, b = faulty.ref(Notebook, "a"), faulty.ref(Notebook, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    reads: list[asyncio.Task[list[str]]] = []
    faults.hold()

    async def transfer() -> None:
        async with faulty.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            reads.append(asyncio.create_task(a.ask(Read())))
            await tx.ask(b, Write(text="2"))
            reads.append(asyncio.create_task(b.ask(Read())))

    transferring = asyncio.create_task(transfer())
    await faults.held()
    await asyncio.sleep(0.01)
    assert [read.done() for read in reads] == [False, False]
    assert not transferring.done()
    faults.release()
    await transferring
    assert await asyncio.gather(*reads) == [["1"], ["2"]]
    # All of it went in one batch of one append.
    assert [[len(batch) for batch in group] for group in faults.appends] == [[2]]


async def test_an_error_in_the_block_stores_nothing_and_the_actors_answer_from_the_journal(
    system: ActorSystem, store: EventStore
):
    a, b, c = (system.ref(Notebook, key) for key in "abc")
    await a.ask(Write(text="before"))
    with pytest.raises(ZeroDivisionError):
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            await tx.ask(b, Write(text="2"))
            await tx.ask(c, Read())
            raise ZeroDivisionError
    assert [await ref.ask(Read()) for ref in (a, b, c)] == [["before"], [], []]
    assert [await ref.ask(Write(text="next")) for ref in (a, b, c)] == [2, 1, 1]
    assert await texts(store, "a") == ["before", "next"]
    assert await texts(store, "b") == ["next"]
    # It was no failure of the actors.
    assert system.stats().failures == {}


@case("C066")
async def test_of_five_commands_the_fourth_is_rejected_and_nothing_is_stored(system: ActorSystem, store: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    await asyncio.gather(a.ask(Write(text="before")), b.ask(Write(text="before")))
    commands = [(a, Write(text="1")), (b, Write(text="2")), (a, Write(text="3")), (b, Refuse()), (a, Write(text="5"))]
    with pytest.raises(CommandRejected, match="no"):
        async with system.transaction() as tx:
            for ref, command in commands:
                await tx.ask(ref, command)  # type: ignore[arg-type]  # of either kind
    assert tx.replies == (2, 2, 3)
    assert [await ref.ask(Read()) for ref in (a, b)] == [["before"], ["before"]]
    assert await texts(store, "a") == await texts(store, "b") == ["before"]
    assert [(await fold(store, Notebook, key)).state.lines for key in "ab"] == [["before"], ["before"]]


@case("C066")
async def test_of_a_batch_of_five_the_fourth_is_rejected_and_no_reply_has_been_sent(
    system: ActorSystem, store: EventStore
):
    a = system.ref(Notebook, "a")
    await a.ask(Write(text="before"))
    batch = asyncio.create_task(
        a.batch([Write(text="1"), Write(text="2"), Write(text="3"), Refuse(), Write(text="5")])  # type: ignore[list-item]
    )
    with pytest.raises(CommandRejected, match="no"):
        await batch
    assert await a.ask(Read()) == await texts(store) == ["before"]


async def test_what_an_actor_was_asked_after_it_had_persisted_hides_nothing_of_that(system: ActorSystem):
    a = system.ref(Notebook, "a")
    await a.ask(Write(text="before"))
    with pytest.raises(ZeroDivisionError):
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            assert await tx.ask(a, Read()) == ["before", "1"]
            raise ZeroDivisionError
    assert await a.ask(Read()) == await texts(system.store) == ["before"]


async def test_a_rejection_that_the_block_catches_lets_it_go_on(system: ActorSystem, store: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    async with system.transaction() as tx:
        await tx.ask(a, Write(text="1"))
        with pytest.raises(CommandRejected):
            await tx.ask(a, Refuse())
        with pytest.raises(ValueError, match="broken"):
            await tx.ask(b, Break())
        await tx.ask(a, Write(text="2"))
        await tx.ask(b, Write(text="3"))
    assert (await texts(store, "a"), await texts(store, "b")) == (["1", "2"], ["3"])
    assert (await a.ask(Read()), await b.ask(Read())) == (["1", "2"], ["3"])


@pytest.mark.parametrize("failing", [WriteAndRefuse(text="2"), WriteAndBreak(text="2")], ids=["rejects", "breaks"])
async def test_a_command_that_fails_after_it_persisted_spoils_the_whole(
    system: ActorSystem, store: EventStore, failing: WriteAndRefuse | WriteAndBreak, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL, "actors")
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    with pytest.raises(TransactionError, match="Notebook-a.*failed after it had persisted"):
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="1"))
            with pytest.raises((CommandRejected, ValueError)):
                await tx.ask(a, failing)
            await tx.ask(b, Write(text="3"))
    assert (await a.ask(Read()), await b.ask(Read())) == ([], [])
    assert await log(store) == []
    # Supervision is told of what broke, and not of a change of mind.
    assert len(system.stats().failures) == isinstance(failing, WriteAndBreak)


async def test_what_a_handler_caught_of_its_own_persist_spoils_nothing(system: ActorSystem, store: EventStore):
    class Careful(Notebook, kind="Notebook"):
        @command_handler
        def wait(self, command: Wait) -> int:
            with pytest.raises(DefinitionError):
                self.persist(Written(text="1"), Unhandled())
            self.persist(Written(text=command.text))
            return len(self.state.lines)

    async with system.transaction() as tx:
        assert await tx.ask(system.ref(Careful, "a"), Wait(text="2")) == 1
    assert await texts(store) == ["2"]


async def test_an_async_handler_takes_part(system: ActorSystem, store: EventStore):
    a, b = system.ref(Patient, "a"), system.ref(Patient, "b")
    async with system.transaction() as tx:
        await tx.ask(a, Wait(text="1"))
        await tx.ask(b, Wait(text="2"))
        await tx.ask(a, Write(text="3"))
    assert (await texts(store, "a"), await texts(store, "b")) == (["1", "3"], ["2"])
    assert len({recorded.batch_id for recorded in await log(store)}) == 1


async def test_in_a_transaction_nothing_is_durable_before_its_end(system: ActorSystem, store: EventStore):
    a = system.ref(Notebook, "a")
    with pytest.raises(TransactionError, match="await no persist"):
        async with system.transaction() as tx:
            await tx.ask(a, WriteSlowly(text="1"))
    assert await texts(store) == []
    assert await a.ask(WriteSlowly(text="2")) == 1


async def test_what_was_decided_before_is_stored_first(faults: Faults, faulty: ActorSystem):
    a = faulty.ref(Notebook, "a")
    await a.ask(Read())
    faults.hold()
    before = asyncio.create_task(a.ask(Write(text="before")))
    await faults.held()
    whole = asyncio.create_task(a.batch([Write(text="1"), Write(text="2")]))
    after = asyncio.create_task(a.ask(Write(text="after")))
    await asyncio.sleep(0.01)
    assert [task.done() for task in (before, whole, after)] == [False, False, False]
    faults.release()
    assert (await before, await whole, await after) == (1, [2, 3], 4)
    assert await texts(faulty.store) == ["before", "1", "2", "after"]


async def test_it_decides_nothing_on_what_may_not_be_stored(faults: Faults, faulty: ActorSystem):
    a = faulty.ref(Notebook, "a")
    await a.ask(Read())
    faults.hold()
    before = asyncio.create_task(a.ask(Write(text="before")))
    await faults.held()
    seen: list[list[str]] = []

    async def work() -> None:
        async with faulty.transaction() as tx:
            seen.append(await tx.ask(a, Read()))

    working = asyncio.create_task(work())
    for _ in range(10):
        await asyncio.sleep(0)
    assert seen == []
    faults.next.append(refused(BackendUnavailable("gone")))
    faults.release()
    with pytest.raises(BackendUnavailable):
        await before
    await working
    assert seen == [[]]


async def test_a_block_without_commands_stores_nothing(faults: Faults, faulty: ActorSystem):
    async with faulty.transaction() as tx:
        pass
    assert tx.replies == ()
    assert faults.appends == []


@case("C057")
async def test_a_transaction_that_only_reads_stores_nothing_and_is_checked_all_the_same(
    system: ActorSystem, other: EventStore
):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    async with system.transaction() as tx:
        assert [await tx.ask(a, Read()), await tx.ask(b, Read())] == [[], []]
    with pytest.raises(ConcurrencyError, match="Notebook-a"):
        async with system.transaction() as tx:
            assert await tx.ask(a, Read()) == []
            await write_elsewhere(other, "a", "other")
            assert await tx.ask(b, Read()) == []
    assert await a.ask(Read()) == ["other"]
    assert [recorded.stream_id for recorded in await log(system.store)] == ["Notebook-a"]


async def test_a_snapshot_that_becomes_due_is_taken_at_its_end(system: ActorSystem, store: EventStore):
    class Kept(Notebook, kind="Notebook"):
        snapshot_policy = SnapshotPolicy(every=3)

    a = system.ref(Kept, "a")
    with pytest.raises(ZeroDivisionError):
        async with system.transaction() as tx:
            await tx.ask(a, WriteAll(texts=("1", "2", "3")))
            raise ZeroDivisionError
    assert (await fold(store, Kept, "a")).snapshot_version == 0
    assert await a.batch([Write(text="1"), Write(text="2"), Write(text="3"), Write(text="4")]) == [1, 2, 3, 4]
    async with asyncio.timeout(20):
        while (folded := await fold(store, Kept, "a")).snapshot_version == 0:
            await asyncio.sleep(0.01)
    assert (folded.snapshot_version, folded.state.lines) == (4, ["1", "2", "3", "4"])


async def test_a_batch_is_a_transaction_over_one_actor(system: ActorSystem, store: EventStore):
    a = system.ref(Notebook, "a")
    assert await a.batch([]) == []
    assert await a.batch(Write(text=text) for text in "123") == [1, 2, 3]
    assert len({recorded.batch_id for recorded in await log(store)}) == 1
    assert await a.ask(Read()) == ["1", "2", "3"]


# How it must not be used


async def test_it_is_begun_by_its_block_and_ends_with_it(system: ActorSystem):
    a = system.ref(Notebook, "a")
    tx = system.transaction()
    with pytest.raises(TransactionError, match="has not begun"):
        await tx.ask(a, Read())
    async with tx:
        await tx.ask(a, Read())
    with pytest.raises(TransactionError, match="over"):
        await tx.ask(a, Read())
    with pytest.raises(TransactionError, match="over"):
        tx.expect(a, version=0)
    with pytest.raises(TransactionError, match="begun before"):
        async with tx:
            pass


async def test_asks_at_the_same_time_are_refused_and_nothing_is_stored(system: ActorSystem, store: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    with pytest.raises(TransactionError, match="follow each other"):
        async with system.transaction() as tx:
            await asyncio.gather(tx.ask(a, Write(text="1")), tx.ask(b, Write(text="2")))
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [[], []]
    assert await log(store) == []


async def test_an_ask_that_the_block_has_not_awaited_does_not_outlive_it(system: ActorSystem, store: EventStore):
    goes_on = asyncio.Event()

    class Slow(Notebook, kind="Notebook"):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await goes_on.wait()
            self.persist(Written(text=command.text))
            return len(self.state.lines)

    a, b = system.ref(Slow, "a"), system.ref(Slow, "b")
    left: asyncio.Task[int] | None = None
    with pytest.raises(TransactionError, match="await every one"):
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="1"))
            left = asyncio.create_task(tx.ask(a, Wait(text="2")))
            await asyncio.sleep(0.05)
    assert left is not None
    with pytest.raises(TransactionError):
        await left
    goes_on.set()
    assert await asyncio.gather(a.ask(Write(text="3")), b.ask(Read())) == [1, []]
    assert [recorded.json()["text"] for recorded in await log(store)] == ["3"]


async def test_while_it_is_being_stored_it_takes_no_more(faults: Faults, faulty: ActorSystem):
    a, b = faulty.ref(Notebook, "a"), faulty.ref(Notebook, "b")
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def whole() -> asyncio.Task[int]:
        async with faulty.transaction() as tx:
            await tx.ask(a, Write(text="1"))

            async def more() -> int:
                begun.set()
                await goes_on.wait()
                return await tx.ask(a, Write(text="2"))

            left = asyncio.create_task(more())
            await begun.wait()
        return left

    faults.hold()
    storing = asyncio.create_task(whole())
    await faults.held()
    goes_on.set()
    await asyncio.sleep(0.01)
    faults.release()
    with pytest.raises(TransactionError, match="block has ended"):
        await (await storing)
    assert await a.ask(Read()) == await texts(faulty.store) == ["1"]
    assert await b.ask(Write(text="3")) == 1


async def test_an_actor_of_another_system_cannot_take_part(system: ActorSystem, other: EventStore):
    async with ActorSystem(other) as second:
        with pytest.raises(DefinitionError, match="another actor system"):
            async with system.transaction() as tx:
                await tx.ask(second.ref(Notebook, "a"), Write(text="1"))


async def test_a_command_without_a_handler_changes_nothing(system: ActorSystem, store: EventStore):
    a = system.ref(Notebook, "a")
    async with system.transaction() as tx:
        with pytest.raises(DefinitionError, match="no @command_handler"):
            await tx.ask(a, Wait())
        await tx.ask(a, Write(text="1"))
    assert await texts(store) == ["1"]


# Expectations


async def test_a_stream_that_is_only_read_can_be_asserted(system: ActorSystem, other: EventStore):
    a, b, unknown = (system.ref(Notebook, key) for key in ("a", "b", "unknown"))
    await write_elsewhere(other, "b", "1", "2")
    async with system.transaction() as tx:
        tx.expect(b, version=2)
        tx.expect(unknown, version=0)
        await tx.ask(a, Write(text="1"))
    async with system.transaction() as tx:
        tx.expect(b, version=2)
    assert await texts(system.store, "a") == ["1"]


@pytest.mark.parametrize(("key", "version"), [("b", 1), ("b", 3), ("b", 0), ("unknown", 1)])
async def test_without_what_is_expected_nothing_is_stored(
    system: ActorSystem, other: EventStore, key: str, version: int
):
    a = system.ref(Notebook, "a")
    await write_elsewhere(other, "b", "1", "2")
    for has_command in (True, False):
        with pytest.raises(ConcurrencyError, match=f"Notebook-{key}"):
            async with system.transaction() as tx:
                if has_command:
                    await tx.ask(a, Write(text="1"))
                tx.expect(system.ref(Notebook, key), version=version)
    assert await a.ask(Read()) == await texts(system.store, "a") == []
    assert await a.ask(Write(text="1")) == 1


async def test_what_is_expected_must_hold_until_it_is_stored(system: ActorSystem, other: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    with pytest.raises(ConcurrencyError, match="Notebook-b"):
        async with system.transaction() as tx:
            tx.expect(b, version=0)
            await tx.ask(a, Write(text="1"))
            await write_elsewhere(other, "b", "other")
    with pytest.raises(ConcurrencyError, match="Notebook-b"):
        async with system.transaction() as tx:
            # Here nobody else has it, elsewhere everybody may.
            await tx.hold(b)
            tx.expect(b, version=1)
            await tx.ask(a, Write(text="1"))
            await write_elsewhere(other, "b", "another")
    with pytest.raises(ConcurrencyError, match="Notebook-b"):
        async with system.transaction() as tx:
            tx.expect(b, version=2)
            await tx.ask(a, Write(text="1"))
            # In this process as well: an actor that only is expected to be so is not held.
            await b.ask(Write(text="own"))
    assert await texts(system.store, "a") == []


async def test_an_actor_that_takes_part_can_be_expected_too(system: ActorSystem, store: EventStore):
    a = system.ref(Notebook, "a")
    await a.ask(Write(text="before"))
    async with system.transaction() as tx:
        tx.expect(a, version=1)
        await tx.ask(a, Write(text="1"))
        # It is the version that it had for others.
        tx.expect(a, version=1)
    assert await texts(store) == ["before", "1"]


@pytest.mark.parametrize("is_before", [True, False])
async def test_an_expectation_that_failed_cannot_be_passed_over(
    system: ActorSystem, store: EventStore, is_before: bool
):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    await a.ask(Write(text="before"))
    with pytest.raises(ConcurrencyError, match="Notebook-a"):
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="1"))
            if is_before:
                tx.expect(a, version=7)
            else:
                await tx.ask(a, Read())
            with pytest.raises(ConcurrencyError):
                if is_before:
                    await tx.ask(a, Read())
                else:
                    tx.expect(a, version=7)
    assert await texts(store, "b") == []
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [["before"], []]


@pytest.mark.parametrize("is_before", [True, False])
async def test_an_actor_that_is_behind_what_is_expected_of_it_catches_up(
    system: ActorSystem, other: EventStore, is_before: bool
):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    await a.ask(Write(text="before"))
    await write_elsewhere(other, "a", "other")

    async def work(tx: Transaction) -> list[str]:
        if is_before:
            tx.expect(a, version=2)
        found = await tx.ask(a, Read())
        tx.expect(a, version=2)
        await tx.ask(b, Write(text="1"))
        return found

    assert await system.transact(work, retries=0 if is_before else 1) == ["before", "other"]
    assert await texts(system.store, "b") == ["1"]


async def test_two_expectations_of_one_actor_must_agree(system: ActorSystem):
    with pytest.raises(ConcurrencyError):
        async with system.transaction() as tx:
            tx.expect(system.ref(Notebook, "a"), version=0)
            tx.expect(system.ref(Notebook, "a"), version=1)


async def test_a_version_is_no_negative_number(system: ActorSystem):
    async with system.transaction() as tx:
        with pytest.raises(ValueError, match="not -1"):
            tx.expect(system.ref(Notebook, "a"), version=-1)


# Other processes


@case("C059")
async def test_a_block_is_told_when_another_process_was_faster(system: ActorSystem, other: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    await asyncio.gather(a.ask(Write(text="before")), b.ask(Write(text="before")))
    with pytest.raises(ConcurrencyError, match="Notebook-b") as caught:
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            await tx.ask(b, Write(text="2"))
            await write_elsewhere(other, "b", "other", "other")
    assert (caught.value.stream_id, caught.value.expected, caught.value.actual) == ("Notebook-b", 1, 3)
    assert await texts(system.store, "a") == ["before"]
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [["before"], ["before", "other", "other"]]
    # Where it was refused nothing is stale: the next one gets through.
    async with system.transaction() as tx:
        assert (await tx.ask(a, Write(text="1")), await tx.ask(b, Write(text="2"))) == (2, 4)


async def test_a_function_is_run_again_when_another_process_was_faster(system: ActorSystem, other: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    runs = 0

    async def work(tx: Transaction) -> tuple[int, int]:
        nonlocal runs
        runs += 1
        replies = await tx.ask(a, Write(text="1")), await tx.ask(b, Write(text="2"))
        if runs <= 2:
            await write_elsewhere(other, "ab"[runs % 2], "other")
        return replies

    assert await system.transact(work) == (2, 2)
    assert runs == 3
    assert await texts(system.store, "a") == ["other", "1"]
    assert await texts(system.store, "b") == ["other", "2"]


async def test_what_a_function_took_is_taken_before_it_is_run_again(system: ActorSystem, other: EventStore):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    early: list[asyncio.Task[list[str]]] = []
    runs = 0

    async def work(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            early.append(outside(b.ask(Read())))
            await asyncio.sleep(0)
        await tx.ask(a, Write(text="1"))
        await tx.ask(b, Write(text="2"))
        if runs == 1:
            await write_elsewhere(other, "b", "other")

    await system.transact(work)
    # Who asked at the beginning of the second run came after it.
    assert [await reading for reading in early] == [["other", "2"]]


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_a_function_is_run_so_often_and_no_more(system: ActorSystem, other: EventStore, retries: int):
    a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
    runs = 0

    async def work(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.ask(a, Write(text="1"))
        await tx.ask(b, Write(text="2"))
        await write_elsewhere(other, "a", "other")

    with pytest.raises(ConcurrencyError):
        await system.transact(work, retries=retries)
    assert runs == retries + 1
    assert await texts(system.store, "b") == []
    assert await a.ask(Read()) == ["other"] * (retries + 1)


@pytest.mark.parametrize("retries", [-1, 1.5, "3", None])
async def test_retries_that_are_no_number_are_refused_before_anything_is_done(system: ActorSystem, retries: Any):
    a = system.ref(Notebook, "a")
    with pytest.raises(InvalidArgument, match="retries is 0 or more, not "):
        await system.transact(lambda tx: tx.ask(a, Write(text="1")), retries=retries)
    assert await texts(system.store) == []


async def test_a_batch_is_decided_again_as_a_whole(system: ActorSystem, other: EventStore):
    a = system.ref(Notebook, "a")
    await a.ask(Read())
    await write_elsewhere(other, "a", "other")
    assert await a.batch([Write(text="1"), Write(text="2")]) == [2, 3]
    assert await texts(system.store) == ["other", "1", "2"]


async def test_an_async_handler_is_never_run_twice(system: ActorSystem, other: EventStore):
    a, b = system.ref(Patient, "a"), system.ref(Patient, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    Patient.handled = 0
    overtakings = iter(["other"])

    async def work(tx: Transaction) -> None:
        await tx.ask(a, Wait(text="1"))
        await tx.ask(b, Write(text="2"))
        for text in overtakings:
            await write_elsewhere(other, "b", text)

    with pytest.raises(ConcurrencyError):
        await system.transact(work)
    assert Patient.handled == 1
    assert await texts(system.store, "a") == []
    await system.transact(work)
    assert Patient.handled == 2


async def test_a_state_that_is_known_to_be_old_is_brought_up_to_date_first(system: ActorSystem, other: EventStore):
    a, b = system.ref(Always, "a"), system.ref(Always, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    await write_elsewhere(other, "a", "other")
    async with system.transaction() as tx:
        assert await tx.ask(a, Write(text="1")) == 2
        assert await tx.ask(b, Write(text="2")) == 1
    assert await texts(system.store, "a") == ["other", "1"]


async def test_two_processes_that_transfer_to_and_fro_lose_nothing(store: EventStore, other: EventStore):
    async with ActorSystem(store) as one, ActorSystem(other) as two:

        async def transfers(system: ActorSystem, name: str, first: str, second: str) -> None:
            for number in range(10):
                text = f"{name}{number}"

                async def work(tx: Transaction, text: str = text) -> None:
                    await tx.ask(system.ref(Notebook, first), Write(text=text))
                    await tx.ask(system.ref(Notebook, second), Write(text=text))

                await system.transact(work)

        await asyncio.gather(
            *(transfers(system, f"{system is one}{order}-", *order) for system in (one, two) for order in ("ab", "ba"))
        )
        in_a, in_b = await texts(store, "a"), await texts(store, "b")
        assert in_a == in_b
        assert len(in_a) == len(set(in_a)) == 40
        for system in (one, two):
            assert await system.ref(Notebook, "a").ask(Read(), fresh=True) == in_a


async def test_retries_have_a_bound_that_is_not_small() -> None:
    assert RETRIES >= 10


# What a failed append leaves


async def test_an_append_that_is_refused_leaves_every_actor_as_the_journal_is(faults: Faults):
    async with faults.store() as store, ActorSystem(store) as system:
        a, b, c = (system.ref(Notebook, key) for key in "abc")
        await asyncio.gather(*(ref.ask(Write(text="before")) for ref in (a, b, c)))
        faults.hold()

        async def work() -> None:
            async with system.transaction() as tx:
                await tx.ask(a, Write(text="1"))
                await tx.ask(b, Write(text="2"))
                await tx.ask(c, Read())

        faults.appends.clear()
        working = asyncio.create_task(work())
        await faults.held()
        waiting = [asyncio.create_task(ref.ask(Write(text="after"))) for ref in (a, b, c)]
        await faults.direct.append("Notebook-b", [Written(text="other")])
        faults.release()
        with pytest.raises(ConcurrencyError, match="Notebook-b"):
            await working
        assert await asyncio.gather(*waiting) == [2, 3, 2]
        assert [await texts(store, key) for key in "abc"] == [
            ["before", "after"],
            ["before", "other", "after"],
            ["before", "after"],
        ]


async def test_a_participant_that_only_read_asserts_its_version(faults: Faults, faulty: ActorSystem):
    a, b = faulty.ref(Notebook, "a"), faulty.ref(Notebook, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    faults.hold()

    async def work() -> None:
        async with faulty.transaction() as tx:
            await tx.ask(a, Read())
            await tx.ask(b, Write(text="1"))

    working = asyncio.create_task(work())
    await faults.held()
    await faults.direct.append("Notebook-a", [Written(text="other")])
    faults.release()
    with pytest.raises(ConcurrencyError, match="Notebook-a"):
        await working
    assert await texts(faulty.store, "b") == []
    assert await a.ask(Read()) == ["other"]


async def test_transactions_of_disjoint_actors_share_an_append(faults: Faults, faulty: ActorSystem):
    refs = [faulty.ref(Notebook, f"{number}") for number in range(20)]
    await asyncio.gather(*(ref.ask(Read()) for ref in refs))
    faults.hold()

    async def work(number: int) -> None:
        async with faulty.transaction() as tx:
            await tx.ask(refs[number], Write(text="1"))
            await tx.ask(refs[number + 1], Write(text="2"))

    working = [asyncio.create_task(work(number)) for number in range(0, 20, 2)]
    await faults.held()
    await until(lambda: len(faulty.store.commits._waiting) + len(faults.appends[0]) == 10)
    faults.release()
    await asyncio.gather(*working)
    assert len(faults.appends) == 2
    assert sum(len(group) for group in faults.appends) == 10
