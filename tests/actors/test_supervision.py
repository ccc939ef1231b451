"""Supervision: what becomes of an actor that failed, and how it is seen."""

from __future__ import annotations

import asyncio
import time

import pytest

from actors import ActorStopped, ActorSystem, Restart, Stop, command_handler
from backends.conformance.cases import case
from eventstore import BackendUnavailable, EventStore
from eventstore.backend import Load
from tests.actors.faults import Faults, refused
from tests.actors.notebook import Break, Notebook, Read, Refuse, Wait, Write, WriteAndBreak, Written, texts, until


async def fail(system: ActorSystem, cls: type[Notebook], times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(ValueError, match="broken"):
            await system.ref(cls, "a").ask(WriteAndBreak(text="x"))


# Restart


async def test_a_failed_actor_restarts_after_a_pause_and_serves_what_came_meanwhile(system: ActorSystem):
    class Pausing(Notebook):
        supervision = Restart(first_pause_seconds=0.05)

    await fail(system, Pausing)
    began = time.monotonic()
    assert await asyncio.gather(*(system.ref(Pausing, "a").ask(Write(text=text)) for text in "123")) == [1, 2, 3]
    assert time.monotonic() - began >= 0.04


async def test_the_pauses_grow_twofold_up_to_the_longest(system: ActorSystem):
    class Growing(Notebook):
        supervision = Restart(first_pause_seconds=0.02, longest_pause_seconds=0.06)

    pauses: list[float] = []
    for _ in range(4):
        await fail(system, Growing)
        began = time.monotonic()
        await system.ref(Growing, "a").ask(Read())
        pauses.append(time.monotonic() - began)
    for pause, expected in zip(pauses, (0.02, 0.04, 0.06, 0.06), strict=True):
        assert expected * 0.9 <= pause < expected + 0.2
    assert pauses[2] < 0.2


async def test_failures_older_than_the_window_are_forgotten(system: ActorSystem):
    class Forgiving(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=1, window_seconds=0.05)

    for _ in range(4):
        await fail(system, Forgiving)
        await asyncio.sleep(0.07)
    assert await system.ref(Forgiving, "a").ask(Read()) == []


async def test_too_many_failures_stop_the_actor(system: ActorSystem):
    class Limited(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=2)

    await fail(system, Limited, times=3)
    with pytest.raises(ActorStopped, match=r"was stopped after ValueError: broken after x; .*restart\(\)") as raised:
        await system.ref(Limited, "a").ask(Read())
    assert isinstance(raised.value.__cause__, ValueError)
    assert system.stats().stopped == 1


@pytest.mark.parametrize("limit", [0, 40, 100])
async def test_any_number_of_restarts_is_counted(system: ActorSystem, limit: int):
    class Limited(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=limit)

    await fail(system, Limited, times=limit + 1)
    with pytest.raises(ActorStopped):
        await system.ref(Limited, "a").ask(Read())


async def test_without_a_limit_it_is_never_given_up(system: ActorSystem):
    class Unlimited(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

    await fail(system, Unlimited, times=50)
    assert await system.ref(Unlimited, "a").ask(Read()) == []
    assert system.stats().failures["Unlimited-a"][0] == 50


@case("C160", "C167")
async def test_commands_that_wait_when_an_actor_fails_are_kept_over_the_restart(faults: Faults, faulty: ActorSystem):
    class Pausing(Notebook):
        supervision = Restart(first_pause_seconds=0.02)

    notebook = faulty.ref(Pausing, "a")
    await notebook.ask(Read())
    replies = await asyncio.gather(
        notebook.ask(WriteAndBreak(text="x")),
        notebook.ask(Write(text="1")),
        notebook.ask(Write(text="2")),
        return_exceptions=True,
    )
    assert isinstance(replies[0], ValueError)
    assert replies[1:] == [1, 2]


async def test_a_failure_is_counted_beyond_the_actors_stay_in_memory(url: str):
    class Leaving(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=1)

    async with ActorSystem(url, idle_seconds=0.02) as system:
        await fail(system, Leaving)
        await system.ref(Leaving, "a").ask(Read())
        await until(lambda: system.stats().live == 0)
        assert system.stats().failures["Leaving-a"][0] == 1
        await fail(system, Leaving)
        with pytest.raises(ActorStopped):
            await system.ref(Leaving, "a").ask(Read())


@case("C155", "C160")
async def test_recoveries_that_fail_are_paused_as_well(faults: Faults, faulty: ActorSystem):
    class Pausing(Notebook):
        supervision = Restart(first_pause_seconds=0.05)

    async def down(_: Load) -> None:
        raise BackendUnavailable("gone")

    faults.before_load = down
    notebook = faulty.ref(Pausing, "a")
    with pytest.raises(BackendUnavailable):
        await notebook.ask(Read())
    faults.before_load = None
    began = time.monotonic()
    assert await notebook.ask(Read()) == []
    assert time.monotonic() - began >= 0.04


async def test_recoveries_that_fail_too_often_stop_the_actor(faults: Faults, faulty: ActorSystem):
    class Limited(Notebook):
        supervision = Restart(first_pause_seconds=0.0, max_restarts=1)

    async def down(_: Load) -> None:
        raise BackendUnavailable("gone")

    faults.before_load = down
    notebook = faulty.ref(Limited, "a")
    for _ in range(2):
        with pytest.raises(BackendUnavailable):
            await notebook.ask(Read())
    with pytest.raises(ActorStopped):
        await notebook.ask(Read())


@pytest.mark.xfail(strict=True, reason="no circuit breaker: asks wait for the restart, whose pause grows to 30 s")
async def test_while_the_database_is_down_every_ask_is_refused_quickly(faults: Faults, faulty: ActorSystem):
    async def down(_: Load) -> None:
        raise BackendUnavailable("gone")

    faults.before_load = down
    for _ in range(8):
        async with asyncio.timeout(0.5):
            with pytest.raises(BackendUnavailable):
                await faulty.ref(Notebook, "a").ask(Read())


# Stop


class Stopping(Notebook):
    supervision = Stop()


async def test_an_actor_that_is_to_stop_answers_every_command_with_that(system: ActorSystem):
    await fail(system, Stopping)
    notebook = system.ref(Stopping, "a")
    for command in (Read(), Write(text="y"), Refuse()):
        with pytest.raises(ActorStopped):
            await notebook.ask(command)
        with pytest.raises(ActorStopped):
            await notebook.tell(command)
    assert await texts(system.store, kind="Stopping") == []


async def test_a_stopped_actor_fails_the_commands_that_waited(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Stopping, "a")
    await notebook.ask(Read())
    faults.hold()
    asks = [asyncio.create_task(notebook.ask(Write(text="stored")))]
    await faults.held()
    asks += [
        asyncio.create_task(notebook.ask(command)) for command in (WriteAndBreak(text="x"), Read(), Write(text="y"))
    ]
    await asyncio.sleep(0)
    faults.release()
    replies = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(reply) for reply in replies] == [int, ValueError, ActorStopped, ActorStopped]
    assert await texts(faulty.store, kind="Stopping") == ["stored"]


async def test_restart_brings_a_stopped_actor_back_with_the_state_of_the_journal(system: ActorSystem):
    notebook = system.ref(Stopping, "a")
    await notebook.ask(Write(text="1"))
    await fail(system, Stopping)
    notebook.restart()
    assert await notebook.ask(Read()) == ["1"]
    assert await notebook.ask(Write(text="2")) == 2
    assert system.stats().failures == {}
    assert system.stats().stopped == 0


async def test_restart_through_one_reference_is_seen_by_all(system: ActorSystem):
    one, another = system.ref(Stopping, "a"), system.ref(Stopping, "a")
    await one.ask(Read())
    await another.ask(Read())
    await fail(system, Stopping)
    one.restart()
    assert await another.ask(Read()) == []
    assert await one.ask(Write(text="1")) == 1


async def test_restart_of_an_actor_that_is_not_stopped_does_nothing(system: ActorSystem):
    notebook = system.ref(Notebook, "a")
    notebook.restart()
    await notebook.ask(Write(text="1"))
    notebook.restart()
    assert await notebook.ask(Write(text="2")) == 2
    assert system.stats().live == 1


async def test_a_stopped_actor_stays_stopped_while_others_come_and_go(url: str):
    async with ActorSystem(url, idle_seconds=0.02, max_live=2) as system:
        await fail(system, Stopping)
        for number in range(5):
            await system.ref(Notebook, str(number)).ask(Read())
        await asyncio.sleep(0.06)
        with pytest.raises(ActorStopped):
            await system.ref(Stopping, "a").ask(Read())


async def test_a_failed_append_stops_an_actor_that_is_to_stop(faults: Faults, faulty: ActorSystem):
    notebook = faulty.ref(Stopping, "a")
    faults.next.append(refused(BackendUnavailable("gone")))
    with pytest.raises(BackendUnavailable):
        await notebook.ask(Write(text="x"))
    with pytest.raises(ActorStopped):
        await notebook.ask(Read())


@pytest.mark.parametrize("command", [Refuse(), Break()], ids=lambda command: type(command).__name__)
async def test_what_is_no_failure_does_not_stop_it(system: ActorSystem, command: Refuse | Break):
    notebook = system.ref(Stopping, "a")
    with pytest.raises(Exception, match=r"no|broken"):
        await notebook.ask(command)
    assert await notebook.ask(Read()) == []


async def test_a_conflict_does_not_stop_it(system: ActorSystem, other: EventStore):
    notebook = system.ref(Stopping, "a")
    await notebook.ask(Read())
    await other.append("Stopping-a", [Written(text="other")])
    assert await notebook.ask(Write(text="1")) == 2


async def test_an_async_handler_that_raises_after_persist_is_supervised(system: ActorSystem):
    class Async(Notebook):
        supervision = Stop()

        @command_handler
        async def wait(self, command: Wait) -> int:
            self.persist(Written(text="x"))
            await asyncio.sleep(0)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await system.ref(Async, "a").ask(Wait())
    with pytest.raises(ActorStopped):
        await system.ref(Async, "a").ask(Read())
    assert await texts(system.store, kind="Async") == []


async def test_what_failed_is_told_with_count_and_last_error(system: ActorSystem):
    class Quick(Notebook):
        supervision = Restart(first_pause_seconds=0.0)

    assert system.stats().failures == {}
    await fail(system, Quick, times=3)
    assert system.stats().failures == {"Quick-a": (3, "ValueError: broken after x")}


async def test_a_handler_whose_own_task_is_cancelled_fails_its_command_alone(system: ActorSystem):
    class Cancelling(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            raise asyncio.CancelledError

    notebook = system.ref(Cancelling, "a")
    with pytest.raises(ActorStopped, match="the handler of Wait was cancelled"):
        await notebook.ask(Wait())
    assert await notebook.ask(Write(text="x")) == 1
