"""Version conflicts: who loses catches up and decides again, in order, and no reply of a lost decision ever left."""

from __future__ import annotations

import asyncio

import pytest

from actors import ActorSystem, CommandRejected, command_handler
from eventstore import ConcurrencyError, EventStore, Metadata
from tests.actors.faults import Direct, Faults
from tests.actors.notebook import (
    Notebook,
    Read,
    Refuse,
    Wait,
    Write,
    WriteAndRefuse,
    WriteSlowly,
    Written,
    texts,
)


async def overtake(other: EventStore | Direct, *lines: str, kind: str = "Notebook") -> None:
    """Let the other writer reach the stream first."""
    await other.append(f"{kind}-a", [Written(text=line) for line in lines or ("other",)])


async def test_a_command_that_lost_a_conflict_is_decided_again_on_the_new_state(system: ActorSystem, other: EventStore):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Write(text="1"))
    await overtake(other)
    assert await notebook.ask(Write(text="2")) == 3
    assert await notebook.ask(Read()) == ["1", "other", "2"]
    assert await texts(system.store) == ["1", "other", "2"]


async def test_a_conflict_on_a_new_stream_is_decided_again(system: ActorSystem, other: EventStore):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    await overtake(other, "o", "p")
    assert await notebook.ask(Write(text="1")) == 3


async def test_pipelined_commands_behind_a_conflict_are_all_decided_again_in_their_order(
    system: ActorSystem, other: EventStore
):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    await overtake(other)
    numbers = [str(number) for number in range(50)]
    assert await asyncio.gather(*(notebook.ask(Write(text=text)) for text in numbers)) == list(range(2, 52))
    assert await texts(system.store) == ["other", *numbers]


async def test_commands_behind_the_batch_in_flight_are_decided_again_behind_it(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [asyncio.create_task(notebook.ask(Write(text="1")))]
    await faults.held()
    asks += [asyncio.create_task(notebook.ask(Write(text=text))) for text in "23"]
    await asyncio.sleep(0)
    await overtake(faults.direct)
    faults.release()
    assert await asyncio.gather(*asks) == [2, 3, 4]
    assert await texts(faulty.store) == ["other", "1", "2", "3"]


async def test_commands_that_wait_in_the_mailbox_stay_behind_those_that_are_decided_again(
    system: ActorSystem, other: EventStore
):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    await overtake(other)
    replies = await asyncio.gather(
        notebook.ask(Write(text="1")),
        notebook.ask(Write(text="2")),
        notebook.ask(WriteSlowly(text="3")),  # It waits in the mailbox until what is before it is durable.
        notebook.ask(Write(text="4")),
    )
    assert replies == [2, 3, 4, 5]
    assert await texts(system.store) == ["other", "1", "2", "3", "4"]


async def test_a_read_behind_a_lost_write_is_answered_from_the_new_state(system: ActorSystem, other: EventStore):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    await overtake(other)
    assert await asyncio.gather(notebook.ask(Write(text="1")), notebook.ask(Read())) == [2, ["other", "1"]]


async def test_a_refusal_behind_a_lost_write_is_decided_again(system: ActorSystem, other: EventStore):
    class Single(Notebook):
        @command_handler
        def write(self, command: Write) -> int:
            if "other" in self.state.lines:
                raise CommandRejected("the other was first")
            self.persist(Written(text=command.text))
            return len(self.state.lines)

        @command_handler
        def wait(self, command: Wait) -> int:
            if "other" not in self.state.lines:
                raise CommandRejected("the other is missing")
            return len(self.state.lines)

    notebook = system.ref(Single, "a")
    await notebook.ask(Read())
    await overtake(other, kind="Single")
    replies = await asyncio.gather(notebook.ask(Write(text="1")), notebook.ask(Wait()), return_exceptions=True)
    assert isinstance(replies[0], CommandRejected)
    assert replies[1] == 1
    assert await texts(system.store, kind="Single") == ["other"]


async def test_a_plain_refusal_without_a_write_before_it_needs_no_second_decision(
    system: ActorSystem, other: EventStore
):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    await overtake(other)
    for command in (Refuse(), WriteAndRefuse(text="x")):
        with pytest.raises(CommandRejected):
            await notebook.ask(command)
    assert await texts(system.store) == ["other"]


async def test_what_is_decided_again_keeps_its_metadata(system: ActorSystem, other: EventStore):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    await overtake(other)
    await asyncio.gather(
        notebook.ask(Write(text="1"), metadata=Metadata(user="ann")),
        notebook.ask(Write(text="2")),
        notebook.ask(Write(text="3"), metadata=Metadata(user="bob")),
    )
    users = [record.metadata and record.metadata.user async for record in system.store.read("Notebook-a")]
    assert users == [None, "ann", None, "bob"]


async def test_a_conflict_is_no_failure_of_the_actor(system: ActorSystem, other: EventStore):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    await overtake(other)
    await notebook.ask(Write(text="1"))
    assert system.stats().failures == {}


async def test_after_three_lost_decisions_the_asker_gets_the_conflict(faults: Faults, faulty: ActorSystem):
    decisions: list[int] = []

    class Counting(Notebook):
        @command_handler
        def write(self, command: Write) -> int:
            decisions.append(len(self.state.lines))
            self.persist(Written(text=command.text))
            return len(self.state.lines)

    notebook = faulty.ref(Counting, "a")
    await notebook.ask(Read())
    faults.before_append = lambda: overtake(faults.direct, kind="Counting")
    with pytest.raises(ConcurrencyError) as raised:
        await notebook.ask(Write(text="1"))
    assert decisions == [0, 1, 2]
    assert (raised.value.stream_id, raised.value.expected, raised.value.actual) == ("Counting-a", 2, 3)


async def test_an_actor_that_lost_too_often_serves_the_next_command_from_the_journal(
    faults: Faults, faulty: ActorSystem
):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.before_append = lambda: overtake(faults.direct)
    with pytest.raises(ConcurrencyError):
        await notebook.ask(Write(text="1"))
    faults.before_append = None
    assert await notebook.ask(Read()) == ["other", "other", "other"]
    assert await notebook.ask(Write(text="2")) == 4
    assert faulty.stats().failures == {}


async def test_every_command_has_attempts_of_its_own(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    lost = 0

    async def overtake_twice() -> None:
        nonlocal lost
        lost += 1
        if lost <= 2:
            await overtake(faults.direct)

    faults.before_append = overtake_twice
    assert await notebook.ask(Write(text="1")) == 3
    lost = 0
    assert await notebook.ask(Write(text="2")) == 6


async def test_an_async_handler_is_never_run_twice_and_its_asker_gets_the_conflict(
    system: ActorSystem, other: EventStore
):
    runs: list[str] = []

    class Once(Notebook):
        @command_handler
        async def write_slowly(self, command: WriteSlowly) -> int:
            runs.append(command.text)
            # By now it is not looked any more whether another one was faster.
            await overtake(other, kind="Once")
            self.persist(Written(text=command.text))
            return 0

    notebook = system.ref(Once, "a")
    await notebook.ask(Read())
    with pytest.raises(ConcurrencyError):
        await notebook.ask(WriteSlowly(text="1"))
    assert runs == ["1"]
    assert await notebook.ask(Read()) == ["other"]


async def test_an_async_handler_that_waits_for_its_events_gets_the_conflict_itself(
    system: ActorSystem, other: EventStore
):
    seen: list[BaseException] = []

    class Catching(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await overtake(other, kind="Catching")
            try:
                await self.persist(Written(text="lost"))
            except ConcurrencyError as error:
                seen.append(error)
                raise
            return 0

    notebook = system.ref(Catching, "a")
    await notebook.ask(Read())
    with pytest.raises(ConcurrencyError):
        await notebook.ask(Wait())
    assert len(seen) == 1
    assert await notebook.ask(Read()) == ["other"]


async def test_a_handler_cannot_hide_that_its_events_were_not_stored(system: ActorSystem, other: EventStore):
    class Hiding(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await overtake(other, kind="Hiding")
            try:
                await self.persist(Written(text="lost"))
            except ConcurrencyError:
                pass
            if command.text:
                self.persist(Written(text=command.text))
            return len(self.state.lines)

    notebook = system.ref(Hiding, "a")
    for text in ("", "more"):
        await notebook.ask(Read())
        with pytest.raises(ConcurrencyError):
            await notebook.ask(Wait(text=text))
    assert await notebook.ask(Read()) == ["other", "other"]


async def test_plain_commands_behind_a_lost_async_one_are_decided_again(system: ActorSystem, other: EventStore):
    class Mixed(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await overtake(other, kind="Mixed")
            self.persist(Written(text=command.text))
            return len(self.state.lines)

    notebook = system.ref(Mixed, "a")
    await notebook.ask(Read())
    replies = await asyncio.gather(
        notebook.ask(Wait(text="1")), notebook.ask(Write(text="2")), notebook.ask(Read()), return_exceptions=True
    )
    assert isinstance(replies[0], ConcurrencyError)
    assert replies[1:] == [2, ["other", "2"]]


async def test_a_conflict_of_one_actor_leaves_its_neighbours_in_the_same_commit(system: ActorSystem, other: EventStore):
    refs = {key: system.ref(Notebook, key) for key in "abc"}
    await asyncio.gather(*(ref.ask(Read()) for ref in refs.values()))
    await overtake(other)
    assert await asyncio.gather(*(ref.ask(Write(text="1")) for ref in refs.values())) == [2, 1, 1]


async def test_two_systems_on_one_journal_lose_nothing(url: str):
    async with (
        EventStore.open(url) as one,
        EventStore.open(url) as another,
        ActorSystem(one) as left,
        ActorSystem(another) as right,
    ):

        async def write(system: ActorSystem, name: str) -> list[str]:
            stored: list[str] = []
            for number in range(20):
                try:
                    await system.ref(Notebook, "a").ask(Write(text=f"{name}{number}"))
                except ConcurrencyError:
                    continue
                stored.append(f"{name}{number}")
            return stored

        by_left, by_right = await asyncio.gather(write(left, "l"), write(right, "r"))
        lines = await texts(one)
        assert sorted(lines) == sorted(by_left + by_right)
        assert [line for line in lines if line[0] == "l"] == by_left
        assert [line for line in lines if line[0] == "r"] == by_right
