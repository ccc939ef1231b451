"""A system is closed once, whoever is cancelled meanwhile, and within bounds, whatever its handlers do."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from actors import ActorError, ActorStopped, ActorSystem, SnapshotPolicy, command_handler
from eventstore import EventStore
from tests.actors.faults import Faults
from tests.actors.notebook import Notebook, Read, Wait, Write, Written, texts, until
from tests.loop_clock import LoopClock


class Stubborn(Notebook):
    """`Wait` does not heed that it is cancelled: it goes on until `let_go`, and persists then."""

    let_go = asyncio.Event()
    begun = asyncio.Event()
    problem: Exception | None = None

    @command_handler
    async def wait(self, command: Wait) -> int:
        self.begun.set()
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue
        try:
            self.persist(Written(text=command.text))
        except ActorError as error:
            type(self).problem = error
        return 1


class Tidy(Notebook):
    """`Wait` tidies up when it is cancelled, until `let_go`."""

    ownership = "exclusive"
    let_go = asyncio.Event()
    begun = asyncio.Event()

    @command_handler
    async def wait(self, command: Wait) -> int:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await self.let_go.wait()
        return 1


@pytest.fixture(autouse=True)
def none_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (Stubborn, Tidy):
        monkeypatch.setattr(cls, "let_go", asyncio.Event())
        monkeypatch.setattr(cls, "begun", asyncio.Event())
    monkeypatch.setattr(Stubborn, "problem", None)


async def test_a_handler_that_does_not_end_is_left_behind(
    faults: Faults, clock: LoopClock, caplog: pytest.LogCaptureFixture
):
    async with faults.store() as store:
        async with ActorSystem(store, shutdown_timeout=30, ask_timeout=3600) as system:
            asking = asyncio.create_task(system.ref(Stubborn, "a").ask(Wait(text="late")))
            behind = asyncio.create_task(system.ref(Stubborn, "a").ask(Read()))
            await Stubborn.begun.wait()
            closing = asyncio.create_task(system.close())
            await clock.forward(31)
            assert not closing.done()
            await clock.forward(6)
            await until(closing.done)
        for ask in (asking, behind):
            with pytest.raises(ActorStopped):
                await ask
        assert "handlers of ['Stubborn-a']" in caplog.text
        Stubborn.let_go.set()
        await until(lambda: Stubborn.problem is not None)
        await until(lambda: not system._runtime._tasks)  # type: ignore[union-attr]
        assert await texts(store, kind="Stubborn") == []


async def test_who_closes_and_is_cancelled_again_and_again_still_lets_go_of_everything(faults: Faults):
    async with faults.store() as store:
        system = await ActorSystem(store, name="one", lease_seconds=60, shutdown_timeout=3600).__aenter__()
        asking = asyncio.create_task(system.ref(Tidy, "a").ask(Wait()))
        await Tidy.begun.wait()
        keeper = system._runtime._ownership._keeper  # type: ignore[union-attr]
        closing = asyncio.create_task(system.close())
        for _ in range(3):
            for _ in range(10):
                await asyncio.sleep(0)
            closing.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        Tidy.let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await store.owners() == []
        assert not keeper._thread.is_alive()
        with pytest.raises(ActorStopped):
            await asking
        await system.close()


async def test_whoever_closes_it_waits_for_the_end(faults: Faults):
    async with faults.store() as store:
        system = await ActorSystem(store).__aenter__()
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Read())
        faults.hold()
        writing = asyncio.create_task(notebook.ask(Write(text="x")))
        await faults.held()
        closers = [asyncio.create_task(system.close()) for _ in range(3)]
        for _ in range(30):
            await asyncio.sleep(0)
        assert [closer.done() for closer in closers] == [False] * 3
        faults.release()
        await asyncio.gather(*closers)
        assert await writing == 1


async def test_the_appends_of_others_on_the_same_store_are_not_waited_for(
    store: EventStore, caplog: pytest.LogCaptureFixture
):
    class Leaving(Notebook):
        snapshot_policy = SnapshotPolicy(on_passivation=True)

    stop = False
    count = 0

    async def append(number: int) -> None:
        nonlocal count
        while not stop:
            await store.append(f"others-{number}", [Written(text="x")])
            count += 1

    others = [asyncio.create_task(append(number)) for number in range(20)]
    await until(lambda: count > 100)
    async with ActorSystem(store, shutdown_timeout=10) as system:
        asking = asyncio.create_task(system.ref(Leaving, "a").ask(Write(text="1")))
        await until(lambda: system.stats().live == 1)
    stop = True
    assert await asking == 1
    await asyncio.gather(*others)
    assert [snapshot.version for snapshot in await store.snapshots("Leaving-a")] == [1]
    assert "unfinished" not in caplog.text


async def test_threads_that_are_all_busy_with_something_else_hold_no_end_up(tmp_path: Path):
    done = threading.Event()
    try:
        async with asyncio.timeout(60), ActorSystem(f"sqlite:///{tmp_path}/a.db", ownership="exclusive") as system:
            await system.ref(Notebook, "a").ask(Write(text="1"))
            assert await texts(system.store) == ["1"]
            await (await system.store.begin_sql(seconds=1)).rollback()
            loop = asyncio.get_running_loop()
            # More than the loop's own executor has threads.
            busy = [loop.run_in_executor(None, done.wait) for _ in range(64)]
            await asyncio.sleep(0)
        assert not any(work.done() for work in busy)
    finally:
        done.set()
    await asyncio.gather(*busy)
