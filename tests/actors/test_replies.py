"""Pipelined commits: the next command is decided at once, and no reply leaves before all earlier events are durable."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from actors import ActorSystem, Command, CommandRejected, PersistentActor, Restart, command_handler, event_handler
from backends.conformance.cases import case
from eventstore import ActorError, Event
from tests.actors.faults import Faults
from tests.actors.notebook import (
    Break,
    Notebook,
    Read,
    Refuse,
    Wait,
    Write,
    WriteAll,
    WriteAndBreak,
    WriteSlowly,
    Written,
    texts,
    until,
)


def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.create_task(work)


async def settled() -> None:
    """Let everything run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def decided() -> list[str]:
    return []


async def test_a_reply_waits_for_the_events_of_its_command(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    writing = start(notebook.ask(Write(text="x")))
    await faults.held()
    await settled()
    assert not writing.done()
    faults.release()
    assert await writing == 1


@pytest.mark.parametrize(
    "command",
    [Read(), Refuse(), Break(), Write(text="y"), WriteSlowly(text="y")],
    ids=lambda command: type(command).__name__,
)
async def test_a_reply_waits_for_the_events_of_all_earlier_commands(
    faults: Faults, faulty: ActorSystem, command: Command[Any]
):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    writing = start(notebook.ask(Write(text="x")))
    await faults.held()
    later = start(notebook.ask(command))
    await settled()
    assert not later.done()
    faults.release()
    await asyncio.wait([later], timeout=20)
    assert writing.done()
    assert later.done()
    later.exception()  # A refusal is an answer too.


@pytest.mark.parametrize("command", [Read(), Refuse(), Break()], ids=lambda command: type(command).__name__)
async def test_a_reply_waits_for_events_that_no_group_has_taken_yet(
    faults: Faults, faulty: ActorSystem, command: Command[Any]
):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    first = start(notebook.ask(Write(text="1")))
    await faults.held()
    second, later = start(notebook.ask(Write(text="2"))), start(notebook.ask(command))
    await settled()
    faults.hold()
    faults.before_append = lambda: _hold_again(faults)
    faults.release()
    await first
    await faults.held(2)
    await settled()
    assert not later.done()
    faults.before_append = None
    faults.release()
    assert await second == 2
    await asyncio.wait([later], timeout=20)
    later.exception()


async def _hold_again(faults: Faults) -> None:
    faults.hold()


async def test_commands_are_decided_while_an_append_is_in_flight(
    faults: Faults, faulty: ActorSystem, decided: list[str]
):
    class Noting(Notebook):
        @command_handler
        def write(self, command: Write) -> int:
            decided.append(command.text)
            self.persist(Written(text=command.text))
            return len(self.state.lines)

    notebook = faulty.ref(Noting, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [start(notebook.ask(Write(text=text))) for text in "xyz"]
    await faults.held()
    await settled()
    assert decided == ["x", "y", "z"]
    faults.release()
    assert await asyncio.gather(*asks) == [1, 2, 3]


async def test_an_actor_that_broke_recovers_only_when_what_is_in_flight_is_known(faults: Faults, faulty: ActorSystem):
    class Quick(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

    notebook = faulty.ref(Quick, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [start(notebook.ask(Write(text="1")))]
    await faults.held()
    asks += [start(notebook.ask(command)) for command in (WriteAndBreak(text="x"), Read(), Write(text="2"))]
    await settled()
    faults.release()
    replies = await asyncio.gather(*asks, return_exceptions=True)
    assert isinstance(replies[1], ValueError)
    assert [replies[0], *replies[2:]] == [1, ["1"], 2]
    assert await texts(faulty.store, kind="Quick") == ["1", "2"]


async def test_what_is_decided_during_an_append_goes_into_the_journal_with_one_more(
    faults: Faults, faulty: ActorSystem
):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [start(notebook.ask(Write(text="1")))]
    await faults.held()
    asks += [start(notebook.ask(Write(text=str(number)))) for number in range(2, 100)]
    await settled()
    faults.release()
    await asyncio.gather(*asks)
    assert len(faults.appends) == 2
    assert await texts(faulty.store) == [str(number) for number in range(1, 100)]


async def test_a_batch_that_is_in_flight_is_not_added_to(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    first = start(notebook.ask(Write(text="1")))
    await faults.held()
    second = start(notebook.ask(Write(text="2")))
    await settled()
    faults.release()
    await asyncio.gather(first, second)
    assert [len(batch[0].events) for batches in faults.appends for batch in batches] == [1, 1]


async def test_a_read_of_an_actor_with_nothing_in_flight_is_answered_at_once(faults: Faults, faulty: ActorSystem):
    busy, quiet = faulty.ref(Notebook, "busy"), faulty.ref(Notebook, "quiet")
    await asyncio.gather(busy.ask(Read()), quiet.ask(Read()))
    faults.hold()
    writing = start(busy.ask(Write(text="x")))
    await faults.held()
    assert await quiet.ask(Read(), timeout=20) == []
    faults.release()
    await writing


async def test_replies_come_in_the_order_of_the_commands(faults: Faults, faulty: ActorSystem):
    answered: list[int] = []
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())

    async def ask(number: int) -> None:
        await notebook.ask(Write(text=str(number)) if number % 3 else Read())
        answered.append(number)

    faults.hold()
    asks = [start(ask(number)) for number in range(30)]
    await faults.held()
    faults.release()
    await asyncio.gather(*asks)
    assert answered == list(range(30))


@case("C159")
async def test_an_async_handler_starts_only_when_all_earlier_events_are_durable(faults: Faults, faulty: ActorSystem):
    started: list[list[str]] = []

    class Cautious(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            started.append(await texts(faulty.store, kind="Cautious"))
            return 0

    notebook = faulty.ref(Cautious, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [start(notebook.ask(Write(text="x"))), start(notebook.ask(Wait()))]
    await faults.held()
    await settled()
    assert started == []
    faults.release()
    await asyncio.gather(*asks)
    assert started == [["x"]]


@case("C159")
async def test_no_other_command_is_handled_while_an_async_handler_runs(faults: Faults, faulty: ActorSystem):
    gate, inside = asyncio.Event(), asyncio.Event()
    handled: list[str] = []

    class Slow(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            handled.append("starts")
            inside.set()
            await gate.wait()
            handled.append("ends")
            return 0

        @command_handler
        def read(self, command: Read) -> list[str]:
            handled.append("reads")
            return []

    notebook = faulty.ref(Slow, "a")
    asks = [start(notebook.ask(Wait())), start(notebook.ask(Read())), start(notebook.ask(Wait()))]
    await inside.wait()
    await settled()
    assert handled == ["starts"]
    gate.set()
    await asyncio.gather(*asks)
    assert handled == ["starts", "ends", "reads", "starts", "ends"]


@case("C159", "C164")
async def test_while_a_handler_waits_for_its_events_nothing_else_is_handled(faults: Faults, faulty: ActorSystem):
    seen: list[str] = []

    class Stepping(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await self.persist(Written(text=f"{command.text}1"))
            seen.append(f"{command.text} durable: {await texts(faulty.store, kind='Stepping')}")
            self.persist(Written(text=f"{command.text}2"))
            return len(self.state.lines)

    notebook = faulty.ref(Stepping, "a")
    assert await asyncio.gather(notebook.ask(Wait(text="a")), notebook.ask(Wait(text="b")), notebook.ask(Read())) == [
        2,
        4,
        ["a1", "a2", "b1", "b2"],
    ]
    assert seen == ["a durable: ['a1']", "b durable: ['a1', 'a2', 'b1']"]


async def test_awaiting_persist_returns_only_when_the_events_are_durable(faults: Faults, faulty: ActorSystem):
    after: list[str] = []

    class Durable(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await self.persist(Written(text="x"))
            after.append("durable")
            return 0

    notebook = faulty.ref(Durable, "a")
    faults.hold()
    asking = start(notebook.ask(Wait()))
    await faults.held()
    await settled()
    assert after == []
    faults.release()
    await asking
    assert after == ["durable"]


async def test_awaiting_persist_of_nothing_waits_for_what_was_persisted_before(faults: Faults, faulty: ActorSystem):
    seen: list[list[str]] = []

    class Flushing(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await self.persist()
            self.persist(Written(text="x"))
            await self.persist()
            seen.append(await texts(faulty.store, kind="Flushing"))
            return 0

    await faulty.ref(Flushing, "a").ask(Wait())
    assert seen == [["x"]]


async def test_an_async_handler_that_refuses_after_durable_events_keeps_those_alone(system: ActorSystem):
    class Changing(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await self.persist(Written(text="kept"))
            self.persist(Written(text="dropped"))
            raise CommandRejected("changed its mind")

    notebook = system.ref(Changing, "a")
    with pytest.raises(CommandRejected):
        await notebook.ask(Wait())
    assert await notebook.ask(Read()) == ["kept"]
    assert await texts(system.store, kind="Changing") == ["kept"]


async def test_an_async_handler_that_breaks_after_durable_events_alone_is_no_failure_of_the_actor(
    system: ActorSystem,
):
    class Broken(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await self.persist(Written(text="kept"))
            raise ValueError("broken")

    notebook = system.ref(Broken, "a")
    with pytest.raises(ValueError, match="broken"):
        await notebook.ask(Wait())
    assert await notebook.ask(Read()) == ["kept"]
    assert system.stats().failures == {}


async def test_a_durable_wait_of_a_handler_that_has_ended_is_refused(system: ActorSystem):
    tasks: list[asyncio.Task[None]] = []

    class Late(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            async def later() -> None:
                await asyncio.sleep(0.01)
                await stored

            stored = self.persist(Written(text="x"))
            tasks.append(asyncio.create_task(later()))
            return 0

    await system.ref(Late, "a").ask(Wait())
    with pytest.raises(ActorError):
        await tasks[0]


async def test_more_commands_than_one_commit_takes_are_all_answered_in_order(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [start(notebook.ask(WriteAll(texts=(f"{number}a", f"{number}b", f"{number}c")))) for number in range(600)]
    await faults.held()
    await settled()
    faults.release()
    assert await asyncio.gather(*asks) == [3 * number + 3 for number in range(600)]
    assert len(faults.appends) > 2
    assert len(await texts(faulty.store)) == 1800


async def test_what_had_to_wait_for_a_full_commit_is_decided_as_soon_as_that_is_on_its_way(
    faults: Faults, faulty: ActorSystem, decided: list[str]
):
    class Noting(Notebook):
        @command_handler
        def write(self, command: Write) -> int:
            decided.append(command.text)
            self.persist(Written(text=command.text))
            return len(self.state.lines)

    notebook = faulty.ref(Noting, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [start(notebook.ask(Write(text="0")))]
    await faults.held()
    asks += [start(notebook.ask(Write(text=str(number)))) for number in range(1, 301)]
    await settled()
    assert len(decided) < 301
    # The first append goes on, and the next one, which is full, is held.
    faults.before_append = lambda: _hold_again(faults)
    faults.release()
    await faults.held(2)
    await settled()
    assert len(decided) == 301
    faults.before_append = None
    faults.release()
    assert await asyncio.gather(*asks) == list(range(1, 302))


async def test_one_command_may_persist_more_events_than_one_commit_takes(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    many = tuple(str(number) for number in range(1500))
    replies = await asyncio.gather(
        notebook.ask(WriteAll(texts=many)), notebook.ask(Write(text="x")), notebook.ask(Read())
    )
    assert replies[:2] == [1500, 1501]
    assert await texts(system.store) == [*many, "x"]
    assert len({record.batch_id async for record in system.store.read("Notebook-a", through=1500)}) == 1


@pytest.mark.parametrize("command", [Read(), Refuse(), Break()], ids=lambda command: type(command).__name__)
async def test_commands_that_wait_for_one_slow_append_are_bounded(faults: Faults, command: Command[Any]):
    # Far more than a mailbox holds: what is decided and waits is bounded as well.
    async with faults.store() as store, ActorSystem(store, mailbox_size=100) as system:
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Read())
        faults.hold()
        asks = [start(notebook.ask(Write(text="x")))]
        await faults.held()
        asks += [start(notebook.ask(command)) for _ in range(5000)]
        await settled()
        accepted = sum(not ask.done() for ask in asks)
        faults.release()
        await asyncio.gather(*asks, return_exceptions=True)
        assert accepted < 2000


async def test_the_queue_of_the_store_holds_up_an_actor_and_lets_it_go_on(
    faults: Faults, faulty: ActorSystem, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("eventstore.calls.group_commit.MAX_WAITING_BYTES", 10_000)
    notebooks = [faulty.ref(Notebook, str(number)) for number in range(10)]
    await asyncio.gather(*(notebook.ask(Read()) for notebook in notebooks))
    faults.hold()
    asks = [start(notebook.ask(Write(text="x" * 1000))) for _ in range(10) for notebook in notebooks]
    await faults.held()
    await settled()
    faults.release()
    replies = await asyncio.gather(*asks)
    assert replies == [number for number in range(1, 11) for _ in notebooks]
    await until(lambda: not faulty.store.commits.is_full)


async def test_what_joins_a_commit_that_waits_counts_as_waiting_too(
    faults: Faults, faulty: ActorSystem, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("eventstore.calls.group_commit.MAX_WAITING_BYTES", 10_000)
    notebook = faulty.ref(Notebook, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [start(notebook.ask(Write(text="first")))]
    await faults.held()
    asks += [start(notebook.ask(Write(text="x" * 1000))) for _ in range(50)]
    await settled()
    assert faulty.store.commits.is_full
    faults.release()
    assert await asyncio.gather(*asks) == list(range(1, 52))
    assert len(faults.appends) > 2


class Came(Event):
    who: str


class Come(Command[list[str]]):
    who: str


class ComeSlowly(Command[dict[str, list[str]]]):
    who: str


class Guests(Command[Any]):
    pass


class Party(PersistentActor[list[str]]):
    """Hands out its own state."""

    @command_handler
    def come(self, command: Come) -> list[str]:
        self.persist(Came(who=command.who))
        return self.state

    @command_handler
    async def come_slowly(self, command: ComeSlowly) -> dict[str, list[str]]:
        self.persist(Came(who=command.who))
        return {"guests": self.state}

    @command_handler
    def guests(self, command: Guests) -> Any:
        return self.state

    @event_handler
    def came(self, event: Came) -> None:
        self.state.append(event.who)


async def test_a_reply_is_what_it_was_when_its_command_was_decided(system: ActorSystem):
    party = system.ref(Party, "p")
    told = await asyncio.gather(*(party.ask(Come(who=who), command_id=who) for who in ("ann", "bob")))
    assert told == [["ann"], ["ann", "bob"]]
    assert await party.ask(Come(who="ann"), command_id="ann") == ["ann"]
    slowly, at_once = await asyncio.gather(party.ask(ComeSlowly(who="eve")), party.ask(Come(who="kim")))
    assert (slowly, at_once) == ({"guests": ["ann", "bob", "eve"]}, ["ann", "bob", "eve", "kim"])


async def test_who_changes_its_reply_does_not_change_the_actor(system: ActorSystem):
    party = system.ref(Party, "p")
    (await party.ask(Come(who="ann"))).append("mallory")
    (await party.ask(ComeSlowly(who="bob")))["guests"].append("mallory")
    (await party.ask(Guests())).append("mallory")
    async with system.transaction() as transaction:
        (await transaction.ask(party, Come(who="eve"))).append("mallory")
        (await transaction.ask(party, Guests())).append("mallory")
    assert await party.ask(Guests()) == ["ann", "bob", "eve"]


async def test_a_reply_may_hold_what_cannot_be_copied(system: ActorSystem):
    class Hold(Command[Any]):
        pass

    class Holder(PersistentActor[list[str]]):
        @command_handler
        def hold(self, command: Hold) -> Any:
            return [system.ref(Party, "p"), (1, "x")]

    ref, pair = await system.ref(Holder, "h").ask(Hold())
    assert pair == (1, "x")
    assert await ref.ask(Guests()) == []


class Give(Command[Any]):
    what: str


class Giver(PersistentActor[list[str]]):
    """Gives what is no reply yet."""

    @command_handler
    def give(self, command: Give) -> Any:
        if command.what == "a coroutine":
            return asyncio.sleep(0)
        if command.what == "a future":
            return asyncio.get_running_loop().create_future()
        return self.persist(Written(text=command.what))

    @event_handler
    def written(self, event: Written) -> None:
        self.state.append(event.text)


@pytest.mark.parametrize("what", ["a coroutine", "a future", "what persist returns"])
@pytest.mark.parametrize("command_id", [None, "c"])
async def test_what_would_have_to_be_awaited_is_no_reply(system: ActorSystem, what: str, command_id: str | None):
    giver = system.ref(Giver, "g")
    for _ in range(2):  # Brought to life by the first, and handled without a mailbox by the second.
        with pytest.raises(ActorError, match=r"a handler returned what has to be awaited \(\w+\), .* `async def`"):
            await giver.ask(Give(what=what), command_id=command_id)
    with pytest.raises(ActorError, match="what has to be awaited"):
        async with system.transaction() as transaction:
            await transaction.ask(giver, Give(what=what))
    assert await texts(system.store, "g", "Giver") == []


def _logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them for all kinds of functions."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


async def test_a_decorator_leaves_an_async_handler_what_it_is(system: ActorSystem):
    class Slow(PersistentActor[list[str]]):
        @command_handler
        @_logged
        async def wait(self, command: Wait) -> int:
            await self.persist(Written(text=command.text))
            return len(self.state)

        @event_handler
        @_logged
        def written(self, event: Written) -> None:
            self.state.append(event.text)

    slow = system.ref(Slow, "s")
    assert [await slow.ask(Wait(text=text)) for text in "xy"] == [1, 2]
    assert await texts(system.store, "s", "Slow") == ["x", "y"]
