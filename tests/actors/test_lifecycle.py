"""Life in memory: passivation, the cap on live actors, and a shutdown that finishes what was accepted."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import weakref

import pytest

from actors import ActorStopped, ActorSystem, Restart, SnapshotPolicy, command_handler, event_handler
from backends.conformance.cases import case
from eventstore import BackendUnavailable, EventStore, OutcomeUnknown, StoreClosed
from eventstore.backend import Load, StoredSnapshot
from tests.actors.faults import Faults, refused
from tests.actors.notebook import Notebook, Read, Wait, Write, WriteAndBreak, WriteSlowly, Written, texts, until
from tests.loop_clock import LoopClock


class Recording(Notebook):
    """Counts its recoveries."""

    recoveries = 0

    def recovered(self) -> None:
        type(self).recoveries += 1


@pytest.fixture(autouse=True)
def none_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recording, "recoveries", 0)


# Passivation


async def test_an_actor_that_nobody_talks_to_leaves_memory_and_comes_back_with_its_state(url: str):
    async with ActorSystem(url, idle_seconds=0.03) as system:
        notebook = system.ref(Recording, "a")
        await notebook.ask(Write(text="1"))
        await until(lambda: system.stats().live == 0)
        assert await notebook.ask(Write(text="2")) == 2
        assert await notebook.ask(Read()) == ["1", "2"]
        assert Recording.recoveries == 2


async def test_an_actor_that_is_talked_to_stays_in_memory(clock: LoopClock):
    async with ActorSystem("memory://", idle_seconds=60) as system:
        notebook = system.ref(Recording, "a")
        for _ in range(30):
            await notebook.ask(Read())
            await clock.forward(20)
        assert Recording.recoveries == 1


async def test_idle_actors_leave_again_and_again(url: str):
    async with ActorSystem(url, idle_seconds=0.02) as system:
        for number in range(3):
            await asyncio.gather(*(system.ref(Notebook, str(key)).ask(Write(text="x")) for key in range(5)))
            await until(lambda: system.stats().live == 0)
            assert await system.ref(Notebook, "0").ask(Read()) == ["x"] * (number + 1)


async def test_an_actor_with_an_append_in_flight_is_not_idle(faults: Faults):
    async with faults.store() as store, ActorSystem(store, idle_seconds=0.01) as system:
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Read())
        faults.hold()
        writing = asyncio.create_task(notebook.ask(Write(text="x")))
        await faults.held()
        await asyncio.sleep(0.05)
        assert system.stats().live == 1
        faults.release()
        assert await writing == 1
        await until(lambda: system.stats().live == 0)


async def test_an_actor_whose_async_handler_runs_is_not_idle(url: str):
    class Slow(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await asyncio.sleep(0.06)
            return len(self.state.lines)

    async with ActorSystem(url, idle_seconds=0.01) as system:
        assert await system.ref(Slow, "a").ask(Wait()) == 0


async def test_a_passive_actor_keeps_nothing_in_memory(url: str):
    actors: list[weakref.ref[object]] = []

    class Weak(Notebook):
        def recovered(self) -> None:
            actors.append(weakref.ref(self))

    async with ActorSystem(url, idle_seconds=0.02) as system:
        notebook = system.ref(Weak, "a")
        await notebook.ask(Write(text="x"))
        await until(lambda: system.stats().live == 0)
        gc.collect()
        assert [actor() for actor in actors] == [None]


async def test_a_message_during_passivation_is_served_after_reactivation_in_order(faults: Faults):
    class Leaving(Notebook):
        snapshot_policy = SnapshotPolicy(on_passivation=True)

    gate = asyncio.Event()

    async def wait(_: StoredSnapshot) -> None:
        await gate.wait()

    async with faults.store() as store, ActorSystem(store, idle_seconds=0.02) as system:
        notebook = system.ref(Leaving, "a")
        await notebook.ask(Write(text="0"))
        faults.before_snapshot = wait
        await until(lambda: system.stats().live == 0)
        asks = [asyncio.create_task(notebook.ask(Write(text=str(number)))) for number in range(1, 10)]
        assert await asyncio.gather(*asks) == list(range(2, 11))
        gate.set()
    async with faults.store() as store:
        assert await texts(store, kind="Leaving") == [str(number) for number in range(10)]


async def test_order_is_kept_over_many_passivations(url: str):
    async with ActorSystem(url, max_live=1) as system:
        first, second = system.ref(Notebook, "a"), system.ref(Notebook, "b")
        for number in range(20):
            replies = await asyncio.gather(
                *(ref.ask(Write(text=f"{number}.{part}")) for part in range(3) for ref in (first, second))
            )
            assert replies == [3 * number + part + 1 for part in range(3) for _ in (first, second)]
        expected = [f"{number}.{part}" for number in range(20) for part in range(3)]
        assert await first.ask(Read()) == expected
        assert await second.ask(Read()) == expected


@case("C148")
async def test_beyond_the_cap_the_least_recently_used_leave(url: str):
    async with ActorSystem(url, max_live=10) as system:
        refs = [system.ref(Recording, str(number)) for number in range(10)]
        for ref in refs:
            await ref.ask(Read())
        await refs[0].ask(Read())
        await system.ref(Recording, "new").ask(Read())
        assert system.stats().live == 10
        before = Recording.recoveries
        await refs[0].ask(Read())
        assert Recording.recoveries == before
        await refs[1].ask(Read())
        assert Recording.recoveries == before + 1


async def test_far_more_actors_than_the_cap_all_keep_their_state(url: str):
    async with ActorSystem(url, max_live=20) as system:
        for _ in range(2):
            for number in range(100):
                await system.ref(Notebook, str(number)).ask(Write(text="x"))
                assert system.stats().live <= 20
        replies = [await system.ref(Notebook, str(number)).ask(Read()) for number in range(100)]
        assert replies == [["x", "x"]] * 100


async def test_a_cap_below_what_is_busy_refuses_nobody(url: str):
    async with ActorSystem(url, max_live=2) as system:
        replies = await asyncio.gather(
            *(system.ref(Notebook, str(number)).ask(Write(text="x")) for number in range(20))
        )
        assert replies == [1] * 20


async def test_an_idle_actor_has_no_task(url: str):
    async with ActorSystem(url) as system:
        await asyncio.gather(*(system.ref(Notebook, str(number)).ask(Read()) for number in range(100)))
        # This test's, and those by which the system follows what others append. What recovery took ends by itself.
        await until(lambda: len(asyncio.all_tasks()) < 10)


# Shutdown


@case("C171")
async def test_closing_waits_for_the_append_in_flight_and_its_asker_gets_the_reply(faults: Faults):
    async with faults.store() as store:
        async with ActorSystem(store) as system:
            notebook = system.ref(Notebook, "a")
            await notebook.ask(Read())
            faults.hold()
            writing = asyncio.create_task(notebook.ask(Write(text="x")))
            await faults.held()
            closing = asyncio.create_task(system.close())
            await asyncio.sleep(0.02)
            assert not closing.done()
            faults.release()
            await closing
        assert await writing == 1
        assert await texts(store) == ["x"]


@case("C171")
async def test_closing_finishes_every_command_that_was_accepted(url: str):
    async with EventStore.open(url) as store:
        async with ActorSystem(store) as system:
            notebook = system.ref(Notebook, "a")
            asks = [asyncio.create_task(notebook.ask(Write(text=str(number)))) for number in range(100)]
            asks.append(asyncio.create_task(notebook.ask(WriteSlowly(text="slow"))))
            await notebook.tell(Write(text="told"))
            await asyncio.sleep(0)
        assert await asyncio.gather(*asks[:100]) == [*range(1, 101)] or asks[0].done()
        assert sorted(await texts(store)) == sorted([*map(str, range(100)), "slow", "told"])


@case("C171")
async def test_an_append_that_does_not_end_in_time_is_reported_as_unknown(faults: Faults):
    async with faults.store() as store:
        system = ActorSystem(store, shutdown_timeout=0.05)
        async with system:
            notebook = system.ref(Notebook, "a")
            await notebook.ask(Read())
            faults.hold()
            asks = [asyncio.create_task(notebook.ask(Write(text="x"))), asyncio.create_task(notebook.ask(Read()))]
            await faults.held()
        for ask in asks:
            with pytest.raises(OutcomeUnknown):
                await ask
        faults.release()
        await until(lambda: not store.commits._waiting and store.commits._in_flight is None)
        assert await texts(store) == ["x"]


async def test_a_command_that_is_not_handled_in_time_is_answered_that_it_was_not(url: str):
    class Endless(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await asyncio.Event().wait()
            return 0

    async with ActorSystem(url, shutdown_timeout=0.05) as system:
        endless = system.ref(Endless, "a")
        asks = [asyncio.create_task(endless.ask(command)) for command in (Wait(), Wait(), Read())]
        await asyncio.sleep(0.02)
    for ask in asks:
        assert ask.done()
        with pytest.raises((ActorStopped, OutcomeUnknown)):
            await ask


async def test_an_async_handler_that_persisted_and_does_not_end_leaves_no_task_behind(url: str):
    class Endless(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            self.persist(Written(text="lost"))
            await asyncio.Event().wait()
            return 0

    before = asyncio.all_tasks()
    async with EventStore.open(url) as store:
        async with ActorSystem(store, shutdown_timeout=0.05) as system:
            asking = asyncio.create_task(system.ref(Endless, "a").ask(Wait()))
            await asyncio.sleep(0.02)
        with pytest.raises(ActorStopped):
            await asking
        assert await texts(store, kind="Endless") == []
    assert asyncio.all_tasks() == before


async def test_no_command_is_accepted_once_closing_has_begun(faults: Faults):
    async with faults.store() as store, ActorSystem(store) as system:
        busy, ready = system.ref(Notebook, "busy"), system.ref(Notebook, "ready")
        await asyncio.gather(busy.ask(Read()), ready.ask(Read()))
        faults.hold()
        writing = asyncio.create_task(busy.ask(Write(text="x")))
        await faults.held()
        closing = asyncio.create_task(system.close())
        await asyncio.sleep(0)
        try:
            for notebook in (ready, busy, system.ref(Notebook, "cold")):
                for command in (Read(), Write(text="y")):
                    with pytest.raises(ActorStopped):
                        await notebook.ask(command, timeout=20)
                with pytest.raises(ActorStopped):
                    await notebook.tell(Read())
        finally:
            faults.release()
        await closing
        assert await writing == 1


async def test_an_actor_under_constant_load_does_not_keep_the_system_from_closing(url: str):
    asked = 0

    async def ask_forever(system: ActorSystem) -> None:
        nonlocal asked
        notebook = system.ref(Notebook, "a")
        while True:
            try:
                await notebook.ask(Write(text="x"))
            except ActorStopped:
                return
            asked += 1

    async with EventStore.open(url) as store:
        async with ActorSystem(store, shutdown_timeout=60.0) as system:
            asking = [asyncio.create_task(ask_forever(system)) for _ in range(4)]
            await until(lambda: asked > 20)
            began = time.monotonic()
        await asyncio.gather(*asking)
        assert time.monotonic() - began < 20
        assert len(await texts(store)) == asked


async def test_an_actor_that_waits_for_its_restart_does_not_keep_the_system_from_closing(url: str):
    class Patient(Notebook):
        supervision = Restart(first_pause_seconds=1000, longest_pause_seconds=1000)

    async with ActorSystem(url) as system:
        with pytest.raises(ValueError, match="broken"):
            await system.ref(Patient, "a").ask(WriteAndBreak(text="x"))
        began = time.monotonic()
    assert time.monotonic() - began < 20


async def test_closing_saves_the_snapshots_that_are_taken_on_passivation(url: str):
    class Leaving(Notebook):
        snapshot_policy = SnapshotPolicy(on_passivation=True)

    async with EventStore.open(url) as store:
        async with ActorSystem(store) as system:
            for key in "abc":
                await system.ref(Leaving, key).ask(Write(text=key))
        for key in "abc":
            assert len(await store.snapshots(f"Leaving-{key}")) == 1


async def test_closing_while_actors_recover_answers_whoever_waits(faults: Faults):
    async def hang(_: Load) -> None:
        await asyncio.Event().wait()

    faults.before_load = hang
    async with faults.store() as store:
        async with ActorSystem(store, shutdown_timeout=0.05) as system:
            asking = asyncio.create_task(system.ref(Notebook, "a").ask(Read()))
            await until(lambda: bool(faults.loads))
        with pytest.raises(ActorStopped):
            await asking


async def test_a_close_that_is_cancelled_still_answers_everybody_and_is_cancelled_then(faults: Faults):
    async with faults.store() as store:
        async with ActorSystem(store) as system:
            notebook = system.ref(Notebook, "a")
            await notebook.ask(Read())
            faults.hold()
            writing = asyncio.create_task(notebook.ask(Write(text="x")))
            await faults.held()
            closing = asyncio.create_task(system.close())
            await asyncio.sleep(0.01)
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
        with pytest.raises(OutcomeUnknown):
            await writing
        faults.release()


async def test_closing_twice_does_nothing(url: str):
    async with ActorSystem(url) as system:
        await system.ref(Notebook, "a").ask(Read())
        await system.close()
        await system.close()


async def test_a_store_given_as_an_object_stays_open_and_one_given_as_a_url_is_closed(url: str):
    async with EventStore.open(url) as store:
        async with ActorSystem(store) as system:
            await system.ref(Notebook, "a").ask(Write(text="x"))
        assert await texts(store) == ["x"]
    async with ActorSystem(url) as system:
        owned = system.store
    with pytest.raises(StoreClosed):
        await owned.version("Notebook-a")


async def test_a_system_leaves_no_task_behind(url: str):
    before = asyncio.all_tasks()
    async with ActorSystem(url) as system:
        notebook = system.ref(Notebook, "a")
        await asyncio.gather(*(notebook.ask(Write(text="x")) for _ in range(10)), notebook.ask(WriteSlowly(text="y")))
    assert asyncio.all_tasks() == before


async def test_two_systems_over_one_store_close_one_after_the_other(url: str):
    async with EventStore.open(url) as store, ActorSystem(store) as one:
        async with ActorSystem(store) as another:
            assert await another.ref(Notebook, "a").ask(Write(text="x")) == 1
        assert await one.ref(Notebook, "a").ask(Write(text="y")) == 2


async def test_a_system_that_is_entered_twice_is_refused(url: str):
    async with ActorSystem(url) as system:
        with pytest.raises(StoreClosed):
            await system.__aenter__()


async def test_leaving_the_block_by_an_exception_closes_as_well(url: str):
    async with EventStore.open(url) as store:
        with pytest.raises(KeyError):
            async with ActorSystem(store) as system:
                notebook = system.ref(Notebook, "a")
                await notebook.tell(Write(text="x"))
                raise KeyError("out")
        assert await texts(store) == ["x"]


async def test_an_event_handler_that_touches_many_actors_state_is_isolated(url: str):
    # Two actors of one class must not share a default state.
    class Sharing(Notebook):
        @event_handler
        def written(self, event: Written) -> None:
            self.state.lines.append(event.text)

    async with ActorSystem(url) as system:
        await asyncio.gather(*(system.ref(Sharing, key).ask(Write(text=key)) for key in "ab"))
        assert await asyncio.gather(*(system.ref(Sharing, key).ask(Read()) for key in "ab")) == [["a"], ["b"]]


async def test_a_failing_database_at_shutdown_answers_everybody(faults: Faults, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.CRITICAL):
        async with faults.store() as store:
            async with ActorSystem(store, shutdown_timeout=20.0) as system:
                notebook = system.ref(Notebook, "a")
                await notebook.ask(Read())
                faults.always = refused(BackendUnavailable("gone"))
                asks = [asyncio.create_task(notebook.ask(Write(text="x"))) for _ in range(5)]
                await asyncio.sleep(0)
            replies = await asyncio.gather(*asks, return_exceptions=True)
            assert [type(reply) for reply in replies] == [BackendUnavailable] * 5
