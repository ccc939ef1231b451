"""CircuitBreaker: what opens it, what it lets through then, and what closes it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from eventstore.calls.circuit_breaker import FAILURES, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, CircuitBreaker
from eventstore.errors import (
    BackendUnavailable,
    CircuitOpen,
    ConcurrencyError,
    ConnectionsBusy,
    EventStoreError,
    FencedError,
    JournalCorrupt,
    LeaseLost,
    OutcomeUnknown,
    StorageFull,
    StoreBusy,
)


class Time:
    """A clock that a test moves on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Database:
    """Fails with an error, if it has one, and counts who came."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None

    async def call(self) -> str:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return "served"


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time: Time) -> CircuitBreaker:
    return CircuitBreaker(clock=time)


@pytest.fixture
def database() -> Database:
    return Database()


async def fail(breaker: CircuitBreaker, database: Database, error: Exception, times: int = FAILURES) -> None:
    database.error = error
    for _ in range(times):
        with pytest.raises(type(error)):
            await breaker.call(database.call)


async def passed(breaker: CircuitBreaker, database: Database, calls: int) -> int:
    """How many of so many calls came through to the database."""
    before = database.calls
    for _ in range(calls):
        try:
            await breaker.call(database.call)
        except EventStoreError:
            pass
    return database.calls - before


# Opening


@pytest.mark.parametrize("error", [BackendUnavailable("gone"), OutcomeUnknown("lost")], ids=lambda e: type(e).__name__)
async def test_failures_in_a_row_open_it_and_then_the_database_is_left_alone(
    breaker: CircuitBreaker, database: Database, error: EventStoreError
):
    await fail(breaker, database, error, FAILURES - 1)
    assert breaker.is_closed
    await fail(breaker, database, error, 1)
    assert not breaker.is_closed
    assert await passed(breaker, database, 1000) == 0


async def test_failures_with_an_answer_between_them_do_not_open_it(breaker: CircuitBreaker, database: Database):
    for _ in range(10):
        await fail(breaker, database, BackendUnavailable("gone"), FAILURES - 1)
        database.error = None
        assert await breaker.call(database.call) == "served"
    assert breaker.is_closed


@pytest.mark.parametrize(
    "error",
    [
        StoreBusy("busy"),
        StorageFull("full"),
        LeaseLost("lost"),
        ConcurrencyError("a", 1, 2),
        FencedError("a", 1, 2),
        JournalCorrupt("damaged"),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_a_database_that_serves_answers_never_opens_it(
    breaker: CircuitBreaker, database: Database, error: Exception
):
    await fail(breaker, database, error, 10 * FAILURES)
    assert breaker.is_closed


async def test_a_call_that_got_no_connection_says_nothing_either_way(breaker: CircuitBreaker, database: Database):
    await fail(breaker, database, ConnectionsBusy("in use"), 10 * FAILURES)
    assert breaker.is_closed
    await fail(breaker, database, BackendUnavailable("gone"), FAILURES - 1)
    await fail(breaker, database, ConnectionsBusy("in use"), 10)
    await fail(breaker, database, BackendUnavailable("gone"), 1)
    assert not breaker.is_closed


async def test_one_call_that_has_failed_for_long_opens_it_alone(breaker: CircuitBreaker, database: Database):
    breaker.give_up(OutcomeUnknown("nobody knows"))
    with pytest.raises(CircuitOpen, match="nobody knows"):
        await breaker.call(database.call)


async def test_the_error_says_what_happened_since_when_and_when_to_try_again(
    breaker: CircuitBreaker, database: Database, time: Time
):
    await fail(breaker, database, BackendUnavailable("the server at db:5432 refuses"))
    time.now += 0.01
    with pytest.raises(CircuitOpen) as refused:
        await breaker.call(database.call)
    assert str(refused.value).startswith("nothing was done: the database has not served for 0.0 s (BackendUnavailable:")
    assert "the server at db:5432 refuses" in str(refused.value)
    assert 0 < refused.value.retry_after <= FIRST_PAUSE_SECONDS
    assert isinstance(refused.value, BackendUnavailable)


# Half open


async def test_after_a_pause_exactly_one_call_is_let_through(breaker: CircuitBreaker, database: Database, time: Time):
    await fail(breaker, database, BackendUnavailable("gone"))
    time.now += FIRST_PAUSE_SECONDS
    assert await passed(breaker, database, 100) == 1


async def test_of_many_calls_at_once_exactly_one_is_let_through(
    breaker: CircuitBreaker, database: Database, time: Time
):
    await fail(breaker, database, BackendUnavailable("gone"))
    time.now += FIRST_PAUSE_SECONDS
    before = database.calls
    await asyncio.gather(*(breaker.call(database.call) for _ in range(100)), return_exceptions=True)
    assert database.calls == before + 1


async def test_asking_whether_a_call_would_be_refused_uses_up_no_probe(
    breaker: CircuitBreaker, database: Database, time: Time
):
    assert breaker.refusal() is None
    await fail(breaker, database, BackendUnavailable("gone"))
    assert isinstance(breaker.refusal(), CircuitOpen)
    time.now += FIRST_PAUSE_SECONDS
    assert [breaker.refusal() for _ in range(10)] == [None] * 10
    assert await passed(breaker, database, 10) == 1


async def test_the_pauses_grow_up_to_the_longest(breaker: CircuitBreaker, database: Database, time: Time):
    start = time.now
    await fail(breaker, database, BackendUnavailable("gone"))
    probes: list[float] = []
    for _ in range(30_000):
        time.now += 0.001
        if await passed(breaker, database, 3):
            probes.append(time.now)
    pauses = [later - earlier for earlier, later in zip([start, *probes], probes, strict=False)]
    assert FIRST_PAUSE_SECONDS / 2 <= pauses[0] <= FIRST_PAUSE_SECONDS + 0.001
    assert len(pauses) > 30
    assert max(pauses) <= LONGEST_PAUSE_SECONDS + 0.001
    assert min(pauses[5:]) >= LONGEST_PAUSE_SECONDS / 2
    assert len(set(pauses[5:])) > 10, "processes that probe in step would hit the database together"


async def test_an_answer_closes_it_and_the_next_time_the_pauses_are_short_again(
    breaker: CircuitBreaker, database: Database, time: Time
):
    for _ in range(3):
        await fail(breaker, database, BackendUnavailable("gone"))
        for _ in range(10):
            time.now += LONGEST_PAUSE_SECONDS
            assert await passed(breaker, database, 2) == 1
        time.now += LONGEST_PAUSE_SECONDS
        database.error = None
        assert await passed(breaker, database, 10) == 10
        await fail(breaker, database, BackendUnavailable("gone"))
        refused = breaker.refusal()
        assert refused is not None
        assert refused.retry_after <= FIRST_PAUSE_SECONDS
        database.error = None
        time.now += FIRST_PAUSE_SECONDS
        assert await passed(breaker, database, 10) == 10


async def test_a_busy_or_full_database_closes_it_because_it_answers(
    breaker: CircuitBreaker, database: Database, time: Time
):
    await fail(breaker, database, BackendUnavailable("gone"))
    time.now += FIRST_PAUSE_SECONDS
    await fail(breaker, database, StorageFull("full"), 1)
    assert breaker.is_closed


async def test_a_call_that_was_under_way_when_it_opened_closes_it_with_its_answer(
    breaker: CircuitBreaker, database: Database
):
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    under_way = asyncio.create_task(breaker.call(lambda: answer))
    await asyncio.sleep(0)
    await fail(breaker, database, BackendUnavailable("gone"))
    answer.set_result("late")
    assert await under_way == "late"
    assert breaker.is_closed


async def hang(breaker: CircuitBreaker) -> asyncio.Task[None]:
    """A call that gets no answer."""
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(breaker.call(lambda: never))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def cancelled(breaker: CircuitBreaker) -> asyncio.Task[None]:
    task = await hang(breaker)
    task.cancel()
    await asyncio.wait([task])
    return task


@pytest.mark.parametrize("probe", [hang, cancelled], ids=["hangs", "is cancelled"])
async def test_a_probe_that_never_answers_holds_up_the_next_one_for_a_pause_only(
    breaker: CircuitBreaker,
    database: Database,
    time: Time,
    probe: Callable[[CircuitBreaker], Awaitable[asyncio.Task[None]]],
):
    await fail(breaker, database, BackendUnavailable("gone"))
    database.error = None
    time.now += FIRST_PAUSE_SECONDS
    task = await probe(breaker)
    assert await passed(breaker, database, 10) == 0
    time.now += LONGEST_PAUSE_SECONDS
    served = await passed(breaker, database, 10)
    task.cancel()
    await asyncio.wait([task])
    assert served == 10


async def test_whoever_listens_is_told_when_it_opens_and_when_it_closes(
    breaker: CircuitBreaker, database: Database, time: Time
):
    told: list[bool] = []
    breaker.on_change.append(lambda: told.append(breaker.is_closed))
    await fail(breaker, database, BackendUnavailable("gone"))
    database.error = None
    time.now += FIRST_PAUSE_SECONDS
    await passed(breaker, database, 10)
    assert told == [False, True]
