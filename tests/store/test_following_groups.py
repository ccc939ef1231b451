"""GroupCommit on a backend that takes a second group while the first is under way: what goes, and what must not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial

import pytest

from eventstore.backend import Appended, AppendOutcome, Batch, StreamWrite
from eventstore.calls import group_commit
from eventstore.calls.appending import Appending
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.calls.group_commit import Append, GroupCommit
from eventstore.calls.halving import MIN_HALVED, Halving
from eventstore.calls.pending_append import PendingAppend
from eventstore.calls.resolving import Removed, resolve
from eventstore.codec import encoded_event
from eventstore.errors import BackendUnavailable, CircuitOpen, ConcurrencyError, EventStoreError, OutcomeUnknown
from tests.store.removals import nothing_removed

FIRST = [f"first-{number}" for number in range(MIN_HALVED)]
SECOND = [f"second-{number}" for number in range(MIN_HALVED)]
# So many go behind the first.
FEWEST = MIN_HALVED // 2
THIRD = [f"third-{number}" for number in range(MIN_HALVED)]


class Line:
    """A backend whose groups end when the test says so."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.under_way: list[Appending] = []
        self.may_be_followed = True
        self.refusal: EventStoreError | None = None

    def append(self, batches: Sequence[Batch]) -> Appending:
        if self.refusal is not None:
            raise self.refusal
        appending = Appending()
        appending.may_be_followed = self.may_be_followed
        self.groups.append([writes[0].stream_id for writes in batches])
        self.under_way.append(appending)
        return appending

    def end(self, index: int, *, refused: Sequence[str] = (), error: EventStoreError | None = None) -> None:
        outcomes: list[AppendOutcome] = [
            ConcurrencyError(stream_id, 0, 1) if stream_id in refused else Appended(1, (1,))
            for stream_id in self.groups[index]
        ]
        self.under_way[index].end(None if error else outcomes, error)


class Callers:
    """Each stream has an owner of its own, unless the test names one."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.breaker = CircuitBreaker()
        self.commits = GroupCommit(line.append, self.breaker, removed=nothing_removed, resolve_within=0.05)
        self.heard: dict[str, object] = {}

    def append(self, *stream_ids: str) -> None:
        for stream_id in stream_ids:
            self.append_of(partial(self.hear), stream_id)

    def append_of(self, owner: partial[None], *stream_ids: str) -> PendingAppend:
        event = encoded_event(bytes(16), "happened", 1, b"{}", None, bytes(16))
        pending = PendingAppend([StreamWrite(stream_id, 0, [event]) for stream_id in stream_ids], 1, owner)
        self.commits.submit(pending)
        return pending

    def hear(self, pending: PendingAppend, outcome: AppendOutcome | EventStoreError) -> None:
        self.heard[pending.writes[0].stream_id] = type(outcome)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
async def callers(line: Line, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Callers, None]:
    """The group FIRST is under way, and two groups pay."""
    monkeypatch.setattr(Halving, "measure", lambda halving, *_: setattr(halving, "pays", True))
    callers = Callers(line)
    callers.append("alone", *FIRST)
    line.end(0)
    await turns()
    assert line.groups == [["alone"], FIRST]
    yield callers
    async with asyncio.timeout(20):
        closing = asyncio.create_task(callers.commits.close())
        while not closing.done():
            for index, appending in enumerate(line.under_way):
                if not appending.done():
                    line.end(index)
            await asyncio.sleep(0)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_second_group_is_sent_behind_the_first_and_no_third(line: Line, callers: Callers):
    callers.append(*SECOND)
    await turns()
    assert line.groups[2:] == [SECOND]
    callers.append(*THIRD)
    await turns()
    assert line.groups[2:] == [SECOND]
    line.end(1)
    await turns()
    assert set(callers.heard) == {"alone", *FIRST}
    assert line.groups[2:] == [SECOND, THIRD]


async def test_no_third_is_sent_where_the_first_ends_before_the_second_is_sent(line: Line, callers: Callers):
    callers.append(*SECOND)
    line.end(1)
    callers.append(*THIRD, *FIRST)
    await turns()
    assert line.groups[2] == SECOND
    # As many as leave as many for the next.
    assert [len(group) for group in line.groups[3:]] == [3 * MIN_HALVED // 2]


async def test_few_wait_for_the_end_of_the_first(line: Line, callers: Callers):
    callers.append(*SECOND[: FEWEST - 1])
    await turns()
    assert len(line.groups) == 2
    line.end(1)
    await turns()
    assert line.groups[2:] == [SECOND[: FEWEST - 1]]


async def test_a_backend_that_does_not_say_so_gets_one_group_at_a_time(line: Line, callers: Callers):
    line.may_be_followed = False
    callers.append(*SECOND)
    await turns()
    assert line.groups[2:] == [SECOND]
    line.end(1)
    callers.append(*THIRD)
    await turns()
    assert line.groups[2:] == [SECOND]


async def test_what_has_a_stream_of_the_first_waits_and_so_does_what_came_after_it(line: Line, callers: Callers):
    callers.append(*SECOND[:FEWEST], FIRST[3], *SECOND[FEWEST:])
    await turns()
    assert line.groups[2:] == [SECOND[:FEWEST]]
    line.end(1)
    await turns()
    assert line.groups[3][0] == FIRST[3]


async def test_a_batch_of_several_streams_waits_if_the_first_has_one_of_them(line: Line, callers: Callers):
    callers.append(*SECOND[:FEWEST])
    callers.append_of(partial(callers.hear), "other", FIRST[3])
    callers.append(*SECOND[FEWEST:])
    await turns()
    assert line.groups[2:] == [SECOND[:FEWEST]]


async def test_what_has_the_owner_of_one_of_the_first_waits(line: Line, callers: Callers):
    owner = partial(callers.hear)
    callers.append_of(owner, "one")
    callers.append(*SECOND)
    await turns()
    line.end(1)
    await turns()
    assert line.groups[2:] == [["one", *SECOND]]
    callers.append(*THIRD[:FEWEST])
    callers.append_of(owner, "another")
    callers.append(*THIRD[FEWEST:])
    await turns()
    assert line.groups[3:] == [THIRD[:FEWEST]]


async def test_the_outcome_of_the_second_is_told_after_that_of_the_first(line: Line, callers: Callers):
    callers.append(*SECOND)
    await turns()
    line.end(2)
    await turns()
    assert set(callers.heard) == {"alone"}
    line.end(1)
    await turns()
    assert list(callers.heard) == ["alone", *FIRST, *SECOND]


async def test_a_refusal_in_the_first_costs_the_second_nothing(line: Line, callers: Callers):
    callers.append(*SECOND)
    await turns()
    line.end(1, refused=FIRST[:1])
    line.end(2)
    await turns()
    assert callers.heard == dict.fromkeys(("alone", *FIRST[1:], *SECOND), Appended) | {FIRST[0]: ConcurrencyError}


async def test_after_a_refusal_nothing_more_is_taken_before_its_owner_has_heard(line: Line, callers: Callers):
    callers.append(*SECOND)
    await turns()
    behind: list[PendingAppend] = []

    def lost(_: PendingAppend, __: AppendOutcome | EventStoreError) -> None:
        assert not behind[0].is_taken
        behind[0].is_withdrawn = True

    line.end(1)
    callers.append_of(partial(lost), "loser")
    callers.append(*THIRD)
    await turns()
    assert line.groups[3:] == [["loser", *THIRD]]
    line.end(2)
    await turns()
    behind.append(callers.append_of(partial(lost), "loser"))
    line.end(3, refused=["loser"])
    await turns()
    assert behind[0].is_withdrawn
    assert len(line.groups) == 4


async def test_what_cannot_be_sent_at_all_is_told_after_what_it_may_rest_on(line: Line, callers: Callers):
    owner = partial(callers.hear)
    callers.append(*SECOND)
    callers.append_of(owner, "one")
    await turns()
    callers.append_of(owner, "what rests on it")
    line.end(1)
    await turns()
    line.refusal = BackendUnavailable("the group is too large for a command")
    line.end(2)
    await turns()
    assert list(callers.heard)[-2:] == ["one", "what rests on it"]
    assert callers.heard["what rests on it"] is BackendUnavailable


async def test_a_few_before_one_that_waits_are_not_worth_a_commit(line: Line, callers: Callers):
    few = SECOND[: FEWEST - 1]
    callers.append(*few, FIRST[0], *THIRD)
    await turns()
    assert len(line.groups) == 2
    line.end(1)
    await turns()
    assert line.groups[2:] == [[*few, FIRST[0], *THIRD]]


async def test_both_are_found_out_about_when_the_outcome_of_neither_is_known(line: Line, callers: Callers):
    callers.append(*SECOND)
    await turns()
    line.end(1, error=OutcomeUnknown("the connection was lost"))
    line.end(2, error=OutcomeUnknown("the connection was lost"))
    callers.append(*THIRD)
    await turns()
    # Nothing else goes until it is known what became of the first.
    assert line.groups[3:] == [FIRST]
    line.end(3)
    await turns()
    assert line.groups[4:5] == [SECOND]
    assert set(callers.heard) == {"alone", *FIRST}
    line.end(4)
    await turns()
    assert callers.heard == dict.fromkeys(("alone", *FIRST, *SECOND), Appended)


async def test_what_went_behind_one_that_stayed_unknown_has_waited_as_long(line: Line, callers: Callers):
    callers.append(*SECOND)
    await turns()
    for index in (1, 2):
        line.end(index, error=OutcomeUnknown("the connection was lost"))
    async with asyncio.timeout(20):
        while len(callers.heard) < 1 + len(FIRST):
            await turns()
            if not line.under_way[-1].done():
                line.end(len(line.groups) - 1, error=BackendUnavailable("it is down"))
        tries = len(line.groups)
        while len(callers.heard) < 1 + len(FIRST) + len(SECOND):
            await turns()
            if not line.under_way[-1].done():
                line.end(len(line.groups) - 1, error=BackendUnavailable("it is down"))
    assert line.groups[tries - 1 :].count(SECOND) == 1
    assert set(callers.heard.values()) == {Appended, OutcomeUnknown}


async def test_of_the_time_to_find_out_the_second_alone_has_lost_what_it_has_waited(
    line: Line, callers: Callers, monkeypatch: pytest.MonkeyPatch
):
    whole = 600.0
    given: list[float] = []

    async def noted(append: Append, batches: Sequence[Batch], *, within: float, removed: Removed) -> object:
        given.append(within)
        return await resolve(append, batches, within=within, removed=removed)

    monkeypatch.setattr(callers.commits, "_resolve_within", whole)
    monkeypatch.setattr(group_commit, "resolve", noted)
    callers.append(*SECOND)
    await turns()
    line.end(1, error=OutcomeUnknown("the connection was lost"))
    line.end(2, error=OutcomeUnknown("the connection was lost"))
    await turns()
    await asyncio.sleep(0.01)
    callers.append("after them")
    for index in (3, 4):
        line.end(index)
        await turns()
    line.end(5, error=OutcomeUnknown("the connection was lost"))
    await turns()
    line.end(6)
    await turns()
    assert callers.heard == dict.fromkeys(("alone", *FIRST, *SECOND, "after them"), Appended)
    first, second, third = given
    assert first == third == whole
    assert whole / 2 < second < whole


async def test_what_is_refused_while_the_database_does_not_serve_is_not_what_is_under_way(line: Line, callers: Callers):
    owner = partial(callers.hear)
    callers.append_of(owner, "one")
    callers.append(*SECOND)
    await turns()
    callers.append(*THIRD)
    callers.append_of(owner, "what rests on it")
    callers.breaker.give_up(BackendUnavailable("it is down"))
    await turns()
    assert callers.heard == {"alone": Appended} | dict.fromkeys(THIRD, CircuitOpen)
    assert len(line.groups) == 3
