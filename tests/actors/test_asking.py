"""Actors that ask each other: cycles are an error at once, and every handler runs in the context of its own asker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from actors import ActorRef, ActorSystem, AskCycle, PersistentActor, Restart, command_handler
from eventstore import ActorError, ActorStopped, EventStore, JournalCorrupt
from tests.actors.faults import Faults, refused
from tests.actors.notebook import Notebook, Page, Read, Refuse, Wait, Write, WriteSlowly, Written, texts, until

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Calling(Notebook):
    """`Wait(text)` asks, or tells, whoever is registered under that text."""

    calls: dict[str, Callable[[Any], Any]]

    @command_handler
    async def wait(self, command: Wait) -> int:
        answer = await type(self).calls[command.text](self)
        return answer if isinstance(answer, int) else 0


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[Any], Any]]:
    calls: dict[str, Callable[[Any], Any]] = {}
    monkeypatch.setattr(Calling, "calls", calls, raising=False)
    return calls


@pytest.fixture
def a(system: ActorSystem) -> ActorRef[Calling]:
    return system.ref(Calling, "a")


@pytest.fixture
def b(system: ActorSystem) -> ActorRef[Calling]:
    return system.ref(Calling, "b")


async def test_an_actor_asks_another(
    a: ActorRef[Calling], b: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    calls["write to b"] = lambda _: b.ask(Write(text="x"))
    assert await a.ask(Wait(text="write to b")) == 1
    assert await b.ask(Read()) == ["x"]


@pytest.mark.parametrize("command", [Read(), WriteSlowly(text="x")], ids=lambda command: type(command).__name__)
async def test_asking_oneself_is_an_error_at_once(
    a: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]], command: Any
):
    calls["self"] = lambda _: a.ask(command)
    began = time.monotonic()
    with pytest.raises(AskCycle, match="Calling-a -> Calling-a") as raised:
        await a.ask(Wait(text="self"))
    assert raised.value.chain == ("Calling-a", "Calling-a")
    assert time.monotonic() - began < 20


async def test_an_actor_that_asked_itself_goes_on(a: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]):
    calls["self"] = lambda _: a.ask(Read())
    with pytest.raises(AskCycle):
        await a.ask(Wait(text="self"))
    assert await a.ask(Write(text="x")) == 1


async def test_a_cycle_of_asks_is_an_error_at_once(
    system: ActorSystem, a: ActorRef[Calling], b: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    c = system.ref(Calling, "c")
    calls["to b"] = lambda _: b.ask(Wait(text="to c"))
    calls["to c"] = lambda _: c.ask(Wait(text="to a"))
    calls["to a"] = lambda _: a.ask(Read())
    async with asyncio.timeout(20):
        with pytest.raises(AskCycle) as raised:
            await a.ask(Wait(text="to b"))
    assert raised.value.chain == ("Calling-a", "Calling-b", "Calling-c", "Calling-a")


async def test_two_actors_that_ask_each_other_at_the_same_time_do_not_wait_for_each_other(
    a: ActorRef[Calling], b: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    both_inside = asyncio.Barrier(2)

    async def ask(other: ActorRef[Calling]) -> list[str]:
        await both_inside.wait()
        return await other.ask(Read())

    calls["to a"] = lambda _: ask(a)
    calls["to b"] = lambda _: ask(b)
    async with asyncio.timeout(20):
        replies = await asyncio.gather(a.ask(Wait(text="to b")), b.ask(Wait(text="to a")), return_exceptions=True)
    assert any(isinstance(reply, AskCycle) for reply in replies)
    assert await asyncio.gather(a.ask(Read()), b.ask(Read())) == [[], []]


async def test_asking_oneself_while_recovering_is_an_error_at_once(system: ActorSystem):
    class Early(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

        async def recovered(self) -> None:
            await system.ref(Early, "a").ask(Read())

    async with asyncio.timeout(20):
        with pytest.raises(ActorError):
            await system.ref(Early, "a").ask(Read())


async def test_the_same_actor_may_be_asked_twice_in_a_row_and_at_once(
    a: ActorRef[Calling], b: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    async def twice(_: Any) -> int:
        await b.ask(Write(text="1"))
        await asyncio.gather(b.ask(Write(text="2")), b.ask(WriteSlowly(text="3")))
        return len(await b.ask(Read()))

    calls["twice"] = twice
    assert await a.ask(Wait(text="twice")) == 3


async def test_telling_back_to_who_asks_is_no_cycle(
    a: ActorRef[Calling], b: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    calls["ask b"] = lambda _: b.ask(Wait(text="tell a"))
    calls["tell a"] = lambda _: a.tell(Write(text="told"))
    await a.ask(Wait(text="ask b"))
    assert await a.ask(Read()) == ["told"]


async def test_telling_oneself_is_no_cycle(a: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]):
    calls["tell myself"] = lambda _: a.tell(Write(text="told"))
    await a.ask(Wait(text="tell myself"))
    assert await a.ask(Read()) == ["told"]


async def test_one_who_was_told_may_ask_back(
    a: ActorRef[Calling], b: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    # The teller does not wait for what it told, so nobody waits for himself.
    calls["tell b"] = lambda _: b.tell(Wait(text="ask a"))
    calls["ask a"] = lambda _: a.ask(Write(text="asked back"))
    await a.ask(Wait(text="tell b"))
    async with asyncio.timeout(20):
        while await a.ask(Read()) != ["asked back"]:
            await asyncio.sleep(0.001)


async def test_a_task_that_outlives_the_handler_may_ask_the_actor(
    a: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    tasks: list[asyncio.Task[int]] = []
    handled = asyncio.Event()

    async def later() -> int:
        await handled.wait()
        return await a.ask(WriteSlowly(text="later"))

    async def start(_: Any) -> None:
        tasks.append(asyncio.create_task(later()))

    calls["start"] = start
    await a.ask(Wait(text="start"))
    handled.set()
    assert await tasks[0] == 1


async def test_actors_of_one_name_in_two_systems_are_two(calls: dict[str, Callable[[Any], Any]]):
    async with ActorSystem("memory://") as one, ActorSystem("memory://") as another:
        calls["other system"] = lambda _: another.ref(Calling, "a").ask(WriteSlowly(text="x"))
        assert await one.ref(Calling, "a").ask(Wait(text="other system")) == 1


async def test_the_refusal_of_an_asked_actor_reaches_the_first_asker(
    a: ActorRef[Calling], b: ActorRef[Calling], calls: dict[str, Callable[[Any], Any]]
):
    calls["refused"] = lambda _: b.ask(Refuse(reason="b says no"))
    with pytest.raises(Exception, match="b says no"):
        await a.ask(Wait(text="refused"))
    assert await a.ask(Read()) == []


async def test_a_deep_chain_of_asks_works(system: ActorSystem, calls: dict[str, Callable[[Any], Any]]):
    async def down(actor: Calling) -> int:
        depth = int(actor.key)
        return 0 if depth == 200 else 1 + await system.ref(Calling, str(depth + 1)).ask(Wait(text="down"))

    calls["down"] = down
    assert await system.ref(Calling, "0").ask(Wait(text="down")) == 200


async def test_closing_lets_an_accepted_command_ask_other_actors(url: str, calls: dict[str, Callable[[Any], Any]]):
    async with EventStore.open(url) as store:
        async with ActorSystem(store) as system:
            b = system.ref(Calling, "b")
            inside = asyncio.Event()

            async def slowly(_: Any) -> int:
                inside.set()
                await asyncio.sleep(0.02)
                return await b.ask(Write(text="x"))

            calls["slowly"] = slowly
            asking = asyncio.create_task(system.ref(Calling, "a").ask(Wait(text="slowly")))
            await inside.wait()
        assert await asking == 1
        assert await texts(store, "b", "Calling") == ["x"]


async def test_closing_accepts_nothing_from_a_task_whose_handler_is_done(
    url: str, calls: dict[str, Callable[[Any], Any]]
):
    asked: list[BaseException | list[str]] = []
    tasks: list[asyncio.Task[None]] = []
    async with ActorSystem(url, shutdown_timeout=20.0) as system:
        a, b = system.ref(Calling, "a"), system.ref(Calling, "b")
        gate, may_end = asyncio.Event(), asyncio.Event()

        async def later() -> None:
            await gate.wait()
            for notebook in (a, system.ref(Calling, "cold")):
                asked.extend(await asyncio.gather(notebook.ask(Read()), return_exceptions=True))
            may_end.set()

        async def start(_: Any) -> None:
            tasks.append(asyncio.create_task(later()))

        calls["start"] = start
        calls["wait"] = lambda _: may_end.wait()
        await a.ask(Wait(text="start"))
        waiting = asyncio.create_task(b.ask(Wait(text="wait")))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.02, gate.set)
    await asyncio.gather(waiting, *tasks)
    assert [type(answer) for answer in asked] == [ActorStopped, ActorStopped]


# Contexts


class Contextual(PersistentActor[Page]):
    """Notes whose context its handlers run in."""

    seen: list[tuple[str, str]]

    @command_handler
    def write(self, command: Write) -> int:
        self.seen.append((command.text, tenant.get()))
        self.persist(Written(text=command.text))
        return len(self.state.lines)

    @command_handler
    async def write_slowly(self, command: WriteSlowly) -> int:
        self.seen.append((command.text, tenant.get()))
        await self.persist(Written(text=command.text))
        self.seen.append((command.text, tenant.get()))
        tenant.set("changed by the handler")
        return len(self.state.lines)

    @command_handler
    def read(self, command: Read) -> list[str]:
        return list(self.state.lines)

    def event(self, event: Written) -> None: ...

    from actors import event_handler

    @event_handler
    def written(self, event: Written) -> None:
        self.state.lines.append(event.text)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    monkeypatch.setattr(Contextual, "seen", seen, raising=False)
    return seen


async def ask_as(name: str, ref: ActorRef[Contextual], command: Any) -> Any:
    tenant.set(name)
    return await ref.ask(command)


async def test_an_async_handler_runs_in_the_context_of_its_asker(system: ActorSystem, seen: list[tuple[str, str]]):
    contextual = system.ref(Contextual, "a")
    await asyncio.gather(
        *(asyncio.create_task(ask_as(name, contextual, WriteSlowly(text=name))) for name in ("ann", "bob", "cid"))
    )
    assert seen == [(name, name) for name in ("ann", "bob", "cid") for _ in range(2)]


async def test_a_plain_handler_runs_in_the_context_of_its_asker_also_out_of_the_mailbox(
    system: ActorSystem, seen: list[tuple[str, str]]
):
    contextual = system.ref(Contextual, "a")
    names = [f"tenant {number}" for number in range(20)]
    # The first is handled while the actor recovers, the second behind an async one, others at once.
    await asyncio.gather(
        *(
            asyncio.create_task(
                ask_as(name, contextual, WriteSlowly(text=name) if number % 5 == 1 else Write(text=name))
            )
            for number, name in enumerate(names)
        )
    )
    assert [(text, by) for text, by in seen if text != by] == []
    assert {text for text, _ in seen} == set(names)


async def test_what_is_decided_again_runs_in_the_context_of_its_asker(
    faults: Faults, faulty: ActorSystem, seen: list[tuple[str, str]]
):
    contextual = faulty.ref(Contextual, "a")
    await contextual.ask(Read())

    async def overtaken() -> None:
        faults.before_append = None
        await faults.direct.append("Contextual-a", [Written(text="other")])

    faults.before_append = overtaken
    await asyncio.gather(
        *(asyncio.create_task(ask_as(name, contextual, Write(text=name))) for name in ("ann", "bob", "cid"))
    )
    assert seen == [(name, name) for _ in range(2) for name in ("ann", "bob", "cid")]


async def test_a_told_command_runs_in_the_context_of_its_teller(system: ActorSystem, seen: list[tuple[str, str]]):
    contextual = system.ref(Contextual, "a")

    async def tell_as(name: str) -> None:
        tenant.set(name)
        await contextual.tell(Write(text=name))
        await contextual.tell(WriteSlowly(text=name))

    await asyncio.gather(*(asyncio.create_task(tell_as(name)) for name in ("ann", "bob")))
    await contextual.ask(Read())
    assert {(text, by) for text, by in seen} == {("ann", "ann"), ("bob", "bob")}


async def test_what_a_handler_sets_does_not_reach_its_asker_or_the_next_command(
    system: ActorSystem, seen: list[tuple[str, str]]
):
    contextual = system.ref(Contextual, "a")
    tenant.set("ann")
    await contextual.ask(WriteSlowly(text="1"))
    await contextual.ask(WriteSlowly(text="2"))
    assert tenant.get() == "ann"
    assert [by for _, by in seen] == ["ann"] * 4


async def test_what_a_plain_handler_sets_out_of_the_mailbox_does_not_reach_others(system: ActorSystem):
    class Setting(Notebook):
        @command_handler
        def wait(self, command: Wait) -> int:
            before = tenant.get()
            tenant.set(command.text)
            return int(before == "nobody")

    setting = system.ref(Setting, "a")
    assert (
        await asyncio.gather(*(asyncio.create_task(setting.ask(Wait(text=str(number)))) for number in range(5)))
        == [1] * 5
    )


def from_thread(ref: ActorRef[Notebook], command: Any) -> object:
    try:
        return asyncio.run(ref.ask(command))
    except Exception as error:
        return error


async def test_asks_of_a_ready_actor_from_another_thread_are_refused_too(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())
    assert "run_coroutine_threadsafe" in str(await asyncio.to_thread(from_thread, notebook, Read()))


async def test_asks_from_another_thread_are_refused_with_what_to_do(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    await notebook.ask(Read())

    cold = system.ref(Notebook, "cold")
    assert "run_coroutine_threadsafe" in str(await asyncio.to_thread(from_thread, cold, Read()))
    loop = asyncio.get_running_loop()
    future = await asyncio.to_thread(asyncio.run_coroutine_threadsafe, notebook.ask(Write(text="x")), loop)
    assert await asyncio.wrap_future(future) == 1


async def test_an_ask_in_a_handler_that_fails_is_no_failure_of_the_one_who_asked(faults: Faults, faulty: ActorSystem):
    class Asking(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

        @command_handler
        async def wait(self, command: Wait) -> int:
            return await faulty.ref(Notebook, "b").ask(Write(text="x"))

    faults.next.append(refused(JournalCorrupt("torn")))
    with pytest.raises(JournalCorrupt):
        await faulty.ref(Asking, "a").ask(Wait())
    assert set(faulty.stats().failures) == {"Notebook-b"}
    await until(lambda: True)
