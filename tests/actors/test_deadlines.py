"""Deadlines: asks that were answered leave nothing behind, however long they might have taken."""

from __future__ import annotations

import asyncio

from actors.deadlines import Deadlines


async def test_what_was_answered_is_kept_for_no_timeout_and_what_was_not_is_given_up():
    loop = asyncio.get_running_loop()
    given_up: list[str] = []

    def give_up(future: asyncio.Future[None], about: str) -> None:
        given_up.append(about)
        future.set_exception(TimeoutError(about))

    deadlines = Deadlines(loop, give_up)
    late: asyncio.Future[None] = loop.create_future()
    deadlines.add(late, 0.5, "late")
    waiting: asyncio.Future[None] = loop.create_future()
    deadlines.add(waiting, 3600, "waiting")
    for number in range(20_000):
        answered: asyncio.Future[None] = loop.create_future()
        due = deadlines.add(answered, 3600 + number / 50, "answered")
        answered.set_result(None)
        del due[answered]
    assert len(deadlines._due) == len(deadlines._timers) < 2000
    async with asyncio.timeout(20):
        await asyncio.wait([late])
    assert (given_up, type(late.exception())) == (["late"], TimeoutError)
    assert any(waiting in due for due in deadlines._due.values())
