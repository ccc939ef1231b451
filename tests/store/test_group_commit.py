"""GroupCommit: what shares a commit, in which order outcomes come, and two halves where commits are quick."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

import pytest

from eventstore.backend import Appended, AppendOutcome, Batch, StreamWrite
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.calls.group_commit import MAX_WAITING_BYTES, Append, GroupCommit
from eventstore.calls.halving import MIN_HALVED
from eventstore.calls.pending_append import PendingAppend
from eventstore.codec import encoded_event
from eventstore.errors import BackendUnavailable, ConcurrencyError, EventStoreError, OutcomeUnknown
from tests.store.removals import nothing_removed

CALLERS = 2 * MIN_HALVED
QUICK, SLOW = 0.0, 0.05


class Journal:
    """Takes so long for a commit, whatever is in it."""

    def __init__(self) -> None:
        self.seconds = QUICK
        self.groups: list[Sequence[Batch]] = []
        self.refused: set[str] = set()
        self.failure: EventStoreError | None = None

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        self.groups.append(batches)
        await asyncio.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        return [
            ConcurrencyError(write.stream_id, 0, 1) if write.stream_id in self.refused else Appended(1, (1,))
            for [write] in batches
        ]


class Callers:
    """Everyone appends, hears the outcome, works for a moment, and appends again."""

    def __init__(self, journal: Journal) -> None:
        self.commits = GroupCommit(journal.append, CircuitBreaker(), removed=nothing_removed)
        self.outcomes: list[str] = []
        self.rounds_left = 0
        self.work_seconds = 0.0005

    def append(self, stream_id: str) -> PendingAppend:
        event = encoded_event(bytes(16), "happened", 1, b"{}", None, bytes(16))
        pending = PendingAppend([StreamWrite(stream_id, 0, [event])], 1, self._on_outcome)
        self.commits.submit(pending)
        return pending

    async def run(self, rounds: int) -> None:
        self.rounds_left = rounds * CALLERS
        last = len(self.outcomes) + (rounds + 1) * CALLERS
        for number in range(CALLERS):
            self.append(str(number))
        while len(self.outcomes) < last:
            await self.commits.drained()
            await asyncio.sleep(0)

    def _on_outcome(self, pending: PendingAppend, outcome: AppendOutcome | EventStoreError) -> None:
        stream_id = pending.writes[0].stream_id
        self.outcomes.append(stream_id)
        if self.rounds_left > 0:
            self.rounds_left -= 1
            asyncio.get_running_loop().call_soon(self._decide, stream_id)

    def _decide(self, stream_id: str) -> None:
        end = time.thread_time() + self.work_seconds
        while time.thread_time() < end:
            pass
        self.append(stream_id)


@pytest.fixture
async def journal() -> Journal:
    return Journal()


@pytest.fixture
async def callers(journal: Journal) -> AsyncGenerator[Callers, None]:
    callers = Callers(journal)
    yield callers
    async with asyncio.timeout(30):
        await callers.commits.close()


def sizes(groups: Sequence[Sequence[Batch]]) -> list[int]:
    return [len(group) for group in groups]


async def run_until(journal: Journal, callers: Callers, size: int, *, of: int) -> None:
    """Run until so many groups of that size have followed each other. On a machine that others keep busy, a commit, or
    what is done between two, now and then seems slow, and the next group is another."""
    seen = len(journal.groups)
    for _ in range(30):
        await callers.run(rounds=8)
        found = sizes(journal.groups[seen:])
        if any(found[start : start + of] == [size] * of for start in range(len(found))):
            return
    pytest.fail(f"groups of {size} do not follow each other: {found}")


async def test_callers_who_wait_for_each_other_are_halved_where_a_commit_is_quick(journal: Journal, callers: Callers):
    await run_until(journal, callers, CALLERS // 2, of=4)


async def test_where_a_commit_is_slow_they_stay_one_group(journal: Journal, callers: Callers):
    journal.seconds, callers.work_seconds = SLOW, 0.0001
    await run_until(journal, callers, CALLERS, of=3)


async def test_halves_become_one_group_when_commits_become_slow(journal: Journal, callers: Callers):
    await run_until(journal, callers, CALLERS // 2, of=4)
    journal.seconds, callers.work_seconds = SLOW, 0.0001
    await run_until(journal, callers, CALLERS, of=2)


async def test_every_caller_hears_once_and_in_the_order_of_the_appends(journal: Journal, callers: Callers):
    await callers.run(rounds=12)
    appended = [write.stream_id for group in journal.groups for [write] in group]
    assert callers.outcomes == appended


async def test_after_a_refusal_nothing_is_taken_before_everyone_has_heard(journal: Journal, callers: Callers):
    # Whoever lost withdraws what it has decided on the lost state: that must not be on its way by then.
    await callers.run(rounds=8)
    withdrawn = []

    def lost(pending: PendingAppend, outcome: AppendOutcome | EventStoreError) -> None:
        assert isinstance(outcome, ConcurrencyError)
        assert not behind.is_taken
        behind.is_withdrawn = True
        withdrawn.append(behind)

    journal.refused.add("loser")
    first = callers.append("loser")
    first.on_outcome = lost
    for number in range(CALLERS):
        callers.append(str(number))
    while not first.is_taken:
        await asyncio.sleep(0)
    behind = callers.append("loser")
    await callers.commits.drained()
    assert withdrawn == [behind]
    assert sum(write.stream_id == "loser" for group in journal.groups for [write] in group) == 1


async def test_an_append_that_cannot_even_start_fails_those_that_are_in_it():
    def closed(_: Sequence[Batch]) -> asyncio.Future[Sequence[AppendOutcome]]:
        raise BackendUnavailable("not today")

    assert [str(outcome) for outcome in await outcomes_by(closed)] == ["not today"] * 4


async def test_an_append_that_breaks_at_its_start_leaves_the_outcome_unknown():
    def broken(_: Sequence[Batch]) -> asyncio.Future[Sequence[AppendOutcome]]:
        raise TypeError("a slip in a backend")

    assert [type(outcome) for outcome in await outcomes_by(broken)] == [OutcomeUnknown] * 4


@pytest.mark.parametrize("count", [0, 2, 4])
async def test_a_backend_that_gives_another_number_of_outcomes_leaves_nobody_waiting(count: int):
    async def miscounting(batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return [Appended(1, (1,))] * (count if len(batches) > 1 else 1)

    assert [type(outcome) for outcome in await outcomes_by(miscounting)] == [Appended] + [OutcomeUnknown] * 3


async def outcomes_by(append: Append) -> list[object]:
    """What four appends hear: one that goes alone, and three behind it in one group."""
    commits = GroupCommit(append, CircuitBreaker(), removed=nothing_removed)
    heard: list[object] = []
    for _ in range(4):
        write = StreamWrite("a", 0, [encoded_event(bytes(16), "happened", 1, b"{}", None, bytes(16))])
        commits.submit(PendingAppend([write], 1, lambda _, outcome: heard.append(outcome)))
    async with asyncio.timeout(20):
        await commits.close()
    return heard


async def test_neither_a_loser_nor_an_owner_that_fails_to_take_its_outcome_costs_the_others_theirs(journal: Journal):
    commits = GroupCommit(journal.append, CircuitBreaker(), removed=nothing_removed)
    journal.refused = {"loser"}
    heard: dict[str, object] = {}
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))

    def hear(pending: PendingAppend, outcome: AppendOutcome | EventStoreError) -> None:
        heard[pending.writes[0].stream_id] = type(outcome)
        if pending.writes[0].stream_id == "broken":
            raise ValueError("a slip in an owner")

    for stream_id in ("alone", "first", "broken", "loser", "last"):
        event = encoded_event(bytes(16), "happened", 1, b"{}", None, bytes(16))
        commits.submit(PendingAppend([StreamWrite(stream_id, 0, [event])], 1, hear))
    async with asyncio.timeout(20):
        await commits.close()
    assert sizes(journal.groups) == [1, 4]
    assert heard == dict.fromkeys(("alone", "first", "broken", "last"), Appended) | {"loser": ConcurrencyError}
    assert reported == ["a slip in an owner"]


async def test_there_is_room_where_nothing_is_left_but_what_was_withdrawn(journal: Journal):
    commits = GroupCommit(journal.append, CircuitBreaker(), removed=nothing_removed)
    journal.refused = {"loser"}

    def batch(size_bytes: int) -> PendingAppend:
        event = encoded_event(bytes(16), "happened", 1, b"{}", None, bytes(16))
        return PendingAppend([StreamWrite("loser", 0, [event])], size_bytes, lost)

    def lost(_: PendingAppend, __: AppendOutcome | EventStoreError) -> None:
        behind.is_withdrawn = True

    commits.submit(batch(1))
    behind = batch(MAX_WAITING_BYTES)
    commits.submit(behind)
    assert commits.is_full
    async with asyncio.timeout(20):
        await commits.room()
        await commits.close()
    assert sizes(journal.groups) == [1]


async def test_who_fails_when_there_is_room_costs_the_others_nothing(journal: Journal):
    commits = GroupCommit(journal.append, CircuitBreaker(), removed=nothing_removed)
    heard: list[object] = []
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(str(context["exception"])))

    def broken() -> None:
        raise ValueError("a slip in an owner")

    for _ in range(3):
        write = StreamWrite("a", 0, [encoded_event(bytes(16), "happened", 1, b"{}", None, bytes(16))])
        commits.submit(PendingAppend([write], MAX_WAITING_BYTES, lambda _, outcome: heard.append(type(outcome))))
    commits.when_room(broken)
    async with asyncio.timeout(20):
        await commits.room()
        await commits.close()
    assert heard == [Appended] * 3
    assert reported == ["a slip in an owner"]
