"""Recoveries wait for a permit, but not for one that only a database which does not serve could give back."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from actors.permits import Permits
from eventstore import CircuitOpen, OutcomeUnknown
from eventstore.calls.circuit_breaker import CircuitBreaker


@pytest_asyncio.fixture
async def breaker() -> CircuitBreaker:
    return CircuitBreaker()


@pytest_asyncio.fixture
async def permits(breaker: CircuitBreaker) -> Permits:
    return Permits(2, breaker)


def open_up(breaker: CircuitBreaker) -> None:
    breaker.give_up(OutcomeUnknown("no answer"))


class Crowd:
    """Recoveries that go on until they are let go."""

    def __init__(self, permits: Permits) -> None:
        self._permits = permits
        self.inside = 0
        self.let_go = asyncio.Event()

    async def recover(self) -> None:
        async with self._permits:
            self.inside += 1
            try:
                async with asyncio.timeout(20):
                    await self.let_go.wait()
            finally:
                self.inside -= 1


async def test_so_many_are_inside_and_the_others_follow_in_order(permits: Permits):
    entered: list[int] = []

    async def recover(number: int) -> None:
        async with permits:
            entered.append(number)
            await asyncio.sleep(0)
            assert len(entered) - sum(task.done() for task in tasks) <= 3

    tasks = [asyncio.create_task(recover(number)) for number in range(20)]
    await asyncio.gather(*tasks)
    assert entered == list(range(20))


async def test_who_waits_is_refused_when_the_breaker_opens_and_who_is_inside_goes_on(
    permits: Permits, breaker: CircuitBreaker
):
    crowd = Crowd(permits)
    tasks = [asyncio.create_task(crowd.recover()) for _ in range(5)]
    await asyncio.sleep(0)
    assert crowd.inside == 2
    open_up(breaker)
    refused = await asyncio.gather(*tasks[2:], return_exceptions=True)
    assert [type(each) for each in refused] == [CircuitOpen] * 3
    assert crowd.inside == 2
    crowd.let_go.set()
    await asyncio.gather(*tasks[:2])


async def test_while_it_is_open_a_permit_that_is_free_may_be_had_but_not_waited_for(
    permits: Permits, breaker: CircuitBreaker
):
    open_up(breaker)
    crowd = Crowd(permits)
    tasks = [asyncio.create_task(crowd.recover()) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await crowd.recover()
    assert crowd.inside == 2
    crowd.let_go.set()
    await asyncio.gather(*tasks)
    await crowd.recover()


@pytest.mark.parametrize("is_too_late", [False, True], ids=["while it waits", "when it has just got its permit"])
async def test_who_is_cancelled_takes_no_permit_along(permits: Permits, is_too_late: bool):
    await permits.__aenter__()
    await permits.__aenter__()
    waiting = asyncio.create_task(Crowd(permits).recover())
    await asyncio.sleep(0)
    if is_too_late:
        await permits.__aexit__(None, None, None)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    if not is_too_late:
        await permits.__aexit__(None, None, None)
    await permits.__aexit__(None, None, None)
    # Both are there again.
    async with asyncio.timeout(20), permits, permits:
        pass


async def test_after_it_was_closed_the_breaker_does_not_know_it(permits: Permits, breaker: CircuitBreaker):
    permits.close()
    assert breaker.on_change == []
