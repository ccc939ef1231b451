"""Memory: what one more idle live actor takes (row 13). Run as a module, it measures itself and prints the bytes."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from actors import ActorSystem, Command, PersistentActor, command_handler
from benchmarks.harness import BYTES, NOT_DURABLE, Figure, Goal, Plan, Ratio

_CROWD = 1000
_FEWER = 20_000


class Peek(Command[int]):
    """Reads, so that the actor comes to life."""


class Counted(BaseModel):
    amount: int = 0


class Number(PersistentActor[int]):
    """Its state takes no memory of its own: all zeros are one object."""

    @command_handler
    def peek(self, command: Peek) -> int:
        return self.state


class Model(PersistentActor[Counted]):
    """Its state is a pydantic model with one field."""

    @command_handler
    def peek(self, command: Peek) -> int:
        return self.state.amount


async def idle_actor(plan: Plan) -> list[Ratio]:
    """Row 13: bytes for each idle live actor with its entry in the registry, traced by tracemalloc.

    The state is 0, which takes nothing. Beside it: the growth of the process without tracing, and what an actor takes
    whose state is a pydantic model with one field.
    """
    count = 20_000 if plan.is_quick else 100_000
    traced, resident = await _measured("traced", count), await _measured("resident", count)
    model, state = await _measured("model", _FEWER), await _measured("state", _FEWER)
    figures = (
        Figure("an actor whose state is 0", NOT_DURABLE, BYTES.shown(traced)),
        Figure("the same by the process's resident memory", NOT_DURABLE, BYTES.shown(resident)),
        Figure("an actor whose state is a pydantic model", NOT_DURABLE, BYTES.shown(model)),
        Figure("such a state alone", NOT_DURABLE, BYTES.shown(state)),
    )
    what = f"bytes for each of {count:,} idle live actors, registry entry included, state apart"
    goal = Goal(700, 400, is_upper_limit=True)
    return [Ratio("13", what, traced, traced, traced, goal, figures, digits=0, unit=" bytes")]


async def _measured(how: str, count: int) -> float:
    """Measure in a process of its own: its memory is that of the actors alone."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.memory", how, str(count), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"the measurement of memory ({how}) failed"
    return float(output)


async def _bytes_each(how: str, count: int) -> float:
    if how == "state":
        made: list[Counted] = [Counted()] * count
        tracemalloc.start()
        for number in range(count):
            made[number] = Counted()
        return tracemalloc.get_traced_memory()[0] / count
    cls: type[PersistentActor[int]] | type[PersistentActor[Counted]] = Model if how == "model" else Number
    async with ActorSystem("memory://", max_live=count + _CROWD) as system:
        await _live(system, cls, range(_CROWD))
        if how != "resident":
            tracemalloc.start()
        used: Callable[[], int] = _resident_bytes if how == "resident" else lambda: tracemalloc.get_traced_memory()[0]
        gc.collect()
        before = used()
        await _live(system, cls, range(_CROWD, _CROWD + count))
        gc.collect()
        return (used() - before) / count


async def _live(
    system: ActorSystem, cls: type[PersistentActor[int]] | type[PersistentActor[Counted]], keys: range
) -> None:
    for start in range(keys.start, keys.stop, _CROWD):
        crowd = range(start, min(start + _CROWD, keys.stop))
        # Without a timeout: what is kept of one until it would have come is not the actor's.
        await asyncio.gather(*(system.ref(cls, f"{key:08}").ask(Peek(), timeout=math.inf) for key in crowd))


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(asyncio.run(_bytes_each(sys.argv[1], int(sys.argv[2]))))
