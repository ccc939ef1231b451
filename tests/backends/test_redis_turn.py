"""RedisTurn: who may write, and when."""

from __future__ import annotations

import asyncio

import pytest

from backends.redis_turn import RedisTurn


async def test_two_share_it_and_a_third_does_not():
    turn = RedisTurn()
    assert [turn.share(), turn.share(), turn.share()] == [True, True, False]
    turn.release()
    assert turn.share()


async def test_who_wants_it_alone_waits_until_all_who_share_it_have_released_it():
    turn = RedisTurn()
    assert turn.share()
    assert turn.share()
    waiting = asyncio.create_task(turn.wait(20))
    await asyncio.sleep(0)
    turn.release()
    # Who shares does not overtake.
    assert not turn.share()
    await asyncio.sleep(0)
    assert not waiting.done()
    turn.release()
    await waiting
    assert not turn.share()
    turn.release()
    assert turn.share()


async def test_who_waits_has_it_in_turn():
    turn = RedisTurn()
    had: list[int] = []

    async def have(number: int) -> None:
        await turn.wait(20)
        had.append(number)
        await asyncio.sleep(0)
        turn.release()

    await asyncio.gather(*(have(number) for number in range(5)))
    assert had == [0, 1, 2, 3, 4]
    assert turn.share()


async def test_who_gives_up_leaves_it_to_the_others():
    turn = RedisTurn()
    assert turn.share()
    late, cancelled, patient = (asyncio.create_task(turn.wait(seconds)) for seconds in (0.01, 20, 20))
    with pytest.raises(TimeoutError):
        await late
    cancelled.cancel()
    await asyncio.wait([cancelled])
    turn.release()
    await patient
    turn.release()
    assert turn.share()


async def test_who_is_cancelled_at_the_moment_it_is_given_passes_it_on():
    turn = RedisTurn()
    await turn.wait(20)
    given, next_one = asyncio.create_task(turn.wait(20)), asyncio.create_task(turn.wait(20))
    await asyncio.sleep(0)
    turn.release()
    given.cancel()
    await asyncio.wait([given])
    assert given.cancelled()
    await next_one
    turn.release()
    assert turn.share()
