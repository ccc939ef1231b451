"""Asks: what the runtime itself costs, with nothing stored (rows 11 and 12)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from actors import ActorRef, ActorSystem
from benchmarks.accounts import Account, Hold, Peek, PeekLater
from benchmarks.harness import MICROSECONDS, NOT_DURABLE, Goal, Plan, Ratio, Side, compared, interleaved

_CALLS = 2000
_QUEUED = 512
_HOP = Goal(1.6, 1.2, is_upper_limit=True)


async def idle(plan: Plan) -> list[Ratio]:
    """Row 11: a read of an idle live actor / `await` of a coroutine that does nothing.

    Line 11a is the same through a reference made for each ask.
    """
    async with _system() as system:
        ref = await _account(system)
        command = Peek()

        async def kept() -> None:
            for _ in range(_CALLS):
                await ref.ask(command)

        async def made() -> None:
            for _ in range(_CALLS):
                await system.ref(Account, "a").ask(command)

        async def bare() -> None:
            for _ in range(_CALLS):
                await _trivial()

        sides = [
            Side("ask, idle actor, reads", NOT_DURABLE, _each(_CALLS, kept)),
            Side("await of a trivial coroutine", NOT_DURABLE, _each(_CALLS, bare)),
            Side("system.ref(…).ask, idle actor, reads", NOT_DURABLE, _each(_CALLS, made)),
        ]
        figures = await interleaved(sides, plan)
    kept_side, bare_side, made_side = sides
    return [
        compared(
            "11",
            "ask without events, idle actor / bare await",
            (kept_side, bare_side),
            figures[:2],
            MICROSECONDS,
            Goal(10, 3, is_upper_limit=True),
            digits=1,
        ),
        compared(
            "11a",
            "the same, with a reference made for each ask / bare await",
            (made_side, bare_side),
            (figures[2], figures[1]),
            MICROSECONDS,
            digits=1,
        ),
    ]


async def mailbox(plan: Plan) -> list[Ratio]:
    """Row 12: asks that queue in the mailbox of a busy actor / as many tasks, each woken by one call_soon callback.

    512 tasks ask an actor whose async handler is running; then that handler ends, and they are served and woken. On
    the bare side the 512 tasks wait for a future each, which a callback of the loop sets: less cannot wake a task.
    Both sides make their tasks inside the measurement. Line 12a is one ask at a time whose handler is `async def`, and
    so runs in a task of its own.
    """
    async with _system() as system:
        ref = await _account(system)
        command, later = Peek(), PeekLater()
        loop = asyncio.get_running_loop()

        async def hop() -> None:
            future: asyncio.Future[None] = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future

        async def queued() -> None:
            Account.release = asyncio.Event()
            holding = asyncio.create_task(ref.ask(Hold()))
            await asyncio.sleep(0)
            asks = [asyncio.create_task(ref.ask(command)) for _ in range(_QUEUED)]
            await asyncio.sleep(0)
            Account.release.set()
            await holding
            for ask in asks:
                await ask

        async def hops() -> None:
            waits = [asyncio.create_task(hop()) for _ in range(_QUEUED)]
            for wait in waits:
                await wait

        async def sequence() -> None:
            for _ in range(_CALLS):
                await ref.ask(later)

        async def hop_sequence() -> None:
            for _ in range(_CALLS):
                await hop()

        sides = [
            Side(f"{_QUEUED} asks queued behind an async handler", NOT_DURABLE, _each(_QUEUED, queued)),
            Side(f"{_QUEUED} tasks, one call_soon hop each", NOT_DURABLE, _each(_QUEUED, hops)),
            Side("ask of an async handler, one at a time", NOT_DURABLE, _each(_CALLS, sequence)),
            Side("call_soon hop after hop", NOT_DURABLE, _each(_CALLS, hop_sequence)),
        ]
        figures = await interleaved(sides, plan)
    return [
        compared(
            "12", "ask through the mailbox, queued / one call_soon hop", sides[:2], figures[:2], MICROSECONDS, _HOP
        ),
        compared("12a", "ask of an async handler / one call_soon hop", sides[2:], figures[2:], MICROSECONDS),
    ]


def _each(count: int, run: Callable[[], Awaitable[None]]) -> Callable[[float], Awaitable[float]]:
    """Measure seconds for each of the `count` things that `run` does."""

    async def measure(seconds: float) -> float:
        start = time.perf_counter()
        runs = 0
        while time.perf_counter() - start < seconds:
            await run()
            runs += 1
        return (time.perf_counter() - start) / (runs * count)

    return measure


async def _trivial() -> int:
    return 0


def _system() -> ActorSystem:
    return ActorSystem("memory://")


async def _account(system: ActorSystem) -> ActorRef[Account]:
    ref = system.ref(Account, "a")
    await ref.ask(Peek())
    return ref
