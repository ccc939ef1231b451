"""Stopped actors take little room in memory, and hold up nobody who comes to life."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import ActorStopped, ActorSystem, Stop, command_handler
from actors.cells.cell import Cell
from actors.stopped_actors import StoppedActors, stopped_after
from tests.actors.notebook import Notebook, Read, Wait, WriteAndBreak


async def test_one_that_was_stopped_has_left_memory_and_is_not_served(system: ActorSystem):
    class Stopping(Notebook):
        supervision = Stop()

    held = system.ref(Stopping, "a")
    with pytest.raises(ValueError, match="broken"):
        await held.ask(WriteAndBreak(text="x"))
    cell: Any = held._cell
    assert (system.stats().live, system.stats().stopped) == (0, 1)
    for notebook in (held, system.ref(Stopping, "a")):
        with pytest.raises(ActorStopped, match=r"was stopped after ValueError: broken after x; .*restart\(\)"):
            await notebook.ask(Read())
        with pytest.raises(ActorStopped):
            await notebook.tell(Read())
        with pytest.raises(ActorStopped):
            await notebook.batch([Read()])
    assert not hasattr(cell, "actor")
    held.restart()
    assert await held.ask(Read()) == []


def test_beyond_so_many_the_one_that_was_stopped_longest_ago_serves_again(caplog: pytest.LogCaptureFixture):
    stopped = StoppedActors(most=3)
    for key in "abcde":
        stopped.add(key, f"ValueError: {key}")
    assert stopped.ids() == ["c", "d", "e"]
    assert len(stopped) == 3
    stopped.check("a")
    with pytest.raises(ActorStopped) as caught:
        stopped.check("c")
    assert str(caught.value) == str(stopped_after("c", "ValueError: c"))
    assert "'a', stopped longest ago, serves again" in caplog.text


async def test_those_that_cannot_leave_are_not_looked_at_for_each_that_comes(monkeypatch: pytest.MonkeyPatch):
    gate = asyncio.Event()

    class Busy(Notebook):
        @command_handler
        async def wait(self, command: Wait) -> int:
            await gate.wait()
            return 1

    looks = 0
    is_idle = Cell.is_idle.fget
    assert is_idle is not None

    def counted(cell: Cell) -> bool:
        nonlocal looks
        looks += 1
        return bool(is_idle(cell))

    async with ActorSystem("memory://", max_live=50) as system:
        for number in range(400):
            await system.ref(Busy, f"{number}").tell(Wait())
        monkeypatch.setattr(Cell, "is_idle", property(counted))
        for number in range(100):
            await system.ref(Notebook, f"{number}").tell(Read())
        assert looks < 100 * 50
        gate.set()
