"""A shared actor learns what other processes have stored, at the latest after `catch_up_seconds`."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actors import ActorRef, ActorSystem, follower
from eventstore.backend import Load
from eventstore.errors import BackendUnavailable, JournalCorrupt, RecoveryError
from tests.actors.faults import Faults
from tests.actors.notebook import Notebook, Read, Write, Written
from tests.loop_clock import LoopClock


async def learns(notebook: ActorRef[Notebook], expected: list[str]) -> None:
    async with asyncio.timeout(20):
        while await notebook.ask(Read()) != expected:
            await asyncio.sleep(0.001)


class Looks:
    """When the log was looked at, by the loop's clock. Nothing that others append wakes whoever waits for it."""

    def __init__(self, faults: Faults, *, wakes_at_once: bool = False) -> None:
        self.times: list[float] = []
        self._moved = faults.journal.moved
        self._wakes_at_once = wakes_at_once
        faults.moved = self.moved  # type: ignore[attr-defined]
        faults.wait = self.wait  # type: ignore[attr-defined]

    async def moved(self, **where: Any) -> Any:
        self.times.append(asyncio.get_running_loop().time())
        return await self._moved(**where)

    async def wait(self, after: int, timeout: float) -> None:
        await asyncio.sleep(0 if self._wakes_at_once else timeout)


async def test_what_is_stored_between_the_first_recovery_and_the_beginning_is_noticed(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(follower, "_BEGIN_SECONDS", 0.01)
    gate = asyncio.Event()
    async with faults.store() as store, ActorSystem(store, catch_up_seconds=3600) as system:
        end_now = store.end

        async def end() -> int:
            await gate.wait()
            return await end_now()

        store.end = end  # type: ignore[method-assign]
        notebook = system.ref(Notebook, "a")
        assert await notebook.ask(Read()) == []
        await faults.direct.append("Notebook-a", [Written(text="1")])
        gate.set()
        await learns(notebook, ["1"])


async def test_who_waits_for_the_beginning_is_read_once(faults: Faults, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(follower, "_BEGIN_SECONDS", 60.0)
    steps: list[str] = []

    async def load(_: Load) -> None:
        steps.append("load")

    faults.before_load = load
    async with faults.store() as store, ActorSystem(store, catch_up_seconds=3600) as system:
        end_now = store.end

        async def end() -> int:
            for _ in range(20):
                await asyncio.sleep(0)
            steps.append("end")
            return await end_now()

        store.end = end  # type: ignore[method-assign]
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Read())
        await notebook.ask(Read())
    assert steps == ["end", "load"]


async def test_an_actor_that_comes_to_life_as_the_last_one_has_gone_is_followed(faults: Faults):
    async with faults.store() as store, ActorSystem(store, idle_seconds=0.05, catch_up_seconds=0.02) as system:
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Write(text="1"))
        runtime: Any = system._runtime
        following = runtime._following
        async with asyncio.timeout(20):
            while not following.done():
                await asyncio.sleep(0)
        # Without another turn of the loop in between.
        assert await notebook.ask(Read()) == ["1"]
        # It does not leave memory any more, which would make it learn, too.
        runtime._passivation.end()
        await faults.direct.append("Notebook-a", [Written(text="2")])
        await learns(notebook, ["1", "2"])


@pytest.mark.parametrize("wakes_at_once", [False, True])
async def test_the_log_is_looked_at_as_often_as_was_said(faults: Faults, clock: LoopClock, wakes_at_once: bool):
    looks = Looks(faults, wakes_at_once=wakes_at_once)
    seconds, step = 100.0, 5.0
    async with faults.store() as store, ActorSystem(store, catch_up_seconds=seconds, idle_seconds=1e6) as system:
        await system.ref(Notebook, "a").ask(Read())
        await clock.forward(0)
        looks.times.append(asyncio.get_running_loop().time())
        for number in range(200):
            if number % 7 == 0:
                await faults.direct.append("Notebook-b", [Written(text="1")])
            await clock.forward(step)
    gaps = [later - earlier for earlier, later in zip(looks.times, looks.times[1:], strict=False)]
    assert max(gaps) < seconds + 2 * step
    # When it is woken, it looks once more than it would have by itself.
    assert len(looks.times) <= 1000 / seconds * 2 + 3


@pytest.mark.parametrize("error", [JournalCorrupt("no page can be read"), BackendUnavailable("away"), OSError("none")])
async def test_it_goes_on_after_an_error_and_misses_nothing(
    faults: Faults, error: Exception, caplog: pytest.LogCaptureFixture
):
    failing = 3
    moved = faults.journal.moved

    async def moved_at_last(**where: Any) -> Any:
        nonlocal failing
        if failing:
            failing -= 1
            raise error
        return await moved(**where)

    async with faults.store() as store, ActorSystem(store, catch_up_seconds=0.01) as system:
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Write(text="1"))
        faults.moved = moved_at_last  # type: ignore[attr-defined]
        await faults.direct.append("Notebook-a", [Written(text="2")])
        await learns(notebook, ["1", "2"])
        assert failing == 0
    warned = [record for record in caplog.records if "tried again" in record.getMessage()]
    assert len(warned) == (0 if isinstance(error, BackendUnavailable) else 3)
    assert all(record.levelno == logging.WARNING for record in warned)


async def test_an_actor_that_has_seen_more_than_its_journal_holds_does_not_answer_from_memory(tmp_path: Path):
    path = tmp_path / "journal.db"
    async with ActorSystem(f"sqlite:///{path}") as system:
        notebook = system.ref(Notebook, "a")
        await notebook.ask(Write(text="1"))
        await notebook.ask(Write(text="2"))
        with closing(sqlite3.connect(path, isolation_level=None)) as by_hand:
            by_hand.execute("DROP TRIGGER journal_events_no_delete")
            by_hand.execute("DELETE FROM journal_events WHERE version = 2")
        with pytest.raises(RecoveryError, match="its actor has seen version 2: events are missing"):
            await notebook.ask(Read(), fresh=True)
