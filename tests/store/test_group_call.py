"""GroupCall while the database does not serve, or the backend is broken: nobody waits for what does not come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from eventstore.calls.circuit_breaker import FAILURES, FIRST_PAUSE_SECONDS, CircuitBreaker
from eventstore.calls.group_call import GroupCall
from eventstore.errors import BackendUnavailable, CircuitOpen, EventStoreError


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """Answers each question with itself, once it is let."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self._flows = asyncio.Event()

    def release(self) -> None:
        self._flows.set()

    async def answer(self, questions: Sequence[str]) -> Sequence[str | EventStoreError]:
        self.groups.append(list(questions))
        async with asyncio.timeout(10):
            await self._flows.wait()
        return questions


class Bench:
    def __init__(self) -> None:
        self.time = Time()
        self.database = Database()
        self.breaker = CircuitBreaker(clock=self.time)
        self.calls: GroupCall[str, str] = GroupCall(self._call, self.breaker)

    async def _call(self, questions: Sequence[str]) -> Sequence[str | EventStoreError]:
        return await self.breaker.call(self.database.answer, questions)

    async def ask(self, question: str) -> asyncio.Task[str]:
        """A question, and all the turns of the loop it takes to be refused or sent."""
        task = asyncio.create_task(self.calls.ask(question))
        for _ in range(5):
            await asyncio.sleep(0)
        return task

    def go_down(self) -> None:
        for _ in range(FAILURES):
            self.breaker.failed(BackendUnavailable("gone"))


@pytest.fixture
async def bench() -> AsyncGenerator[Bench, None]:
    bench = Bench()
    yield bench
    bench.database.release()
    async with asyncio.timeout(10):
        await bench.calls.close()


async def test_those_that_wait_when_it_opens_are_refused_at_once_and_the_group_under_way_is_answered(bench: Bench):
    under_way = await bench.ask("under way")
    waiting = [await bench.ask("waiting"), await bench.ask("waiting too")]
    bench.go_down()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [type(task.exception()) for task in waiting] == [CircuitOpen] * 2
    bench.database.release()
    assert await under_way == "under way"
    assert bench.database.groups == [["under way"]]


async def test_while_a_group_is_under_way_nobody_waits_behind_it_for_a_database_that_does_not_serve(bench: Bench):
    under_way = await bench.ask("under way")
    bench.go_down()
    # It has been under way for so long that a probe might go: behind it, none would come through.
    bench.time.now += 100
    late = await bench.ask("late")
    assert isinstance(late.exception(), CircuitOpen)
    bench.database.release()
    assert await under_way == "under way"
    assert await bench.calls.ask("afterwards") == "afterwards"


async def test_those_that_ask_in_the_same_turn_are_the_probe_together(bench: Bench):
    bench.go_down()
    assert isinstance((await bench.ask("early")).exception(), CircuitOpen)
    bench.time.now += FIRST_PAUSE_SECONDS
    crowd = [asyncio.create_task(bench.calls.ask(str(number))) for number in range(50)]
    while not bench.database.groups:
        await asyncio.sleep(0)
    late = await bench.ask("late")
    assert isinstance(late.exception(), CircuitOpen)
    bench.database.release()
    assert await asyncio.gather(*crowd) == [str(number) for number in range(50)]
    assert len(bench.database.groups) == 1
    assert bench.breaker.is_closed


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_backend_that_gives_another_number_of_answers_leaves_nobody_waiting(count: int):
    is_broken = True

    async def answer(questions: Sequence[str]) -> Sequence[str | EventStoreError]:
        return ["?"] * count if is_broken else questions

    calls: GroupCall[str, str] = GroupCall(answer, CircuitBreaker())
    async with asyncio.timeout(20):
        found = await asyncio.gather(calls.ask("one"), calls.ask("two"), return_exceptions=True)
        assert [type(each) for each in found] == [BackendUnavailable] * 2
        is_broken = False
        assert await calls.ask("afterwards") == "afterwards"
        await calls.close()


async def test_a_call_that_was_cancelled_within_the_backend_leaves_nobody_waiting():
    is_broken = True

    async def answer(questions: Sequence[str]) -> Sequence[str | EventStoreError]:
        if is_broken:
            raise asyncio.CancelledError
        return questions

    calls: GroupCall[str, str] = GroupCall(answer, CircuitBreaker())
    async with asyncio.timeout(20):
        with pytest.raises(BackendUnavailable):
            await calls.ask("one")
        is_broken = False
        assert await calls.ask("afterwards") == "afterwards"
        await calls.close()


async def test_a_call_under_way_does_not_hold_up_a_loop_that_ends(bench: Bench):
    asker = await bench.ask("under way")
    caller = bench.calls._caller
    assert caller is not None
    asker.cancel()
    caller.cancel()
    async with asyncio.timeout(20):
        await asyncio.wait([asker, caller])
    assert caller.cancelled()
