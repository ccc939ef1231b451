"""GroupCommit while the database does not serve: who is refused, who stays behind whom, and what a later try proves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest

from eventstore.backend import Appended, AppendOutcome, Batch, Expected, StreamWrite
from eventstore.calls import group_commit
from eventstore.calls.circuit_breaker import FAILURES, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, CircuitBreaker
from eventstore.calls.group_commit import MAX_GROUP_EVENTS, MAX_WAITING_BYTES, GroupCommit
from eventstore.calls.pending_append import PendingAppend
from eventstore.codec import encoded_event
from eventstore.errors import (
    BackendUnavailable,
    CircuitOpen,
    ConcurrencyError,
    DuplicateCommand,
    DuplicateEventError,
    EventStoreError,
    FencedError,
    JournalCorrupt,
    OutcomeUnknown,
    StorageFull,
    StoreBusy,
)
from tests.store.removals import nothing_removed

GONE = BackendUnavailable("gone")
LOST = OutcomeUnknown("the answer was lost")


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Journal:
    """Answers the groups that come as the test says: `next` one after another, then all with `answer`."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.next: deque[EventStoreError | None] = deque()
        self.answer: EventStoreError | None = None
        self.refusals: dict[str, AppendOutcome] = {}
        self._flows = asyncio.Event()
        self._flows.set()

    def hold(self) -> None:
        self._flows.clear()

    def release(self) -> None:
        self._flows.set()

    def append(self, batches: Sequence[Batch]) -> asyncio.Future[Sequence[AppendOutcome]]:
        self.groups.append([write.stream_id for [write] in batches])
        return asyncio.ensure_future(self._append(batches))

    async def _append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        await self._flows.wait()
        answer = self.next.popleft() if self.next else self.answer
        if answer is not None:
            raise answer
        return [self.refusals.get(write.stream_id, Appended(1, (1,))) for [write] in batches]


class Numbered(PendingAppend):
    __slots__ = ("number",)
    number: int


class Owner:
    """Appends to one stream, and keeps what it is told."""

    def __init__(self, commits: GroupCommit, name: str, heard: list[tuple[str, int, object]]) -> None:
        self._commits = commits
        self._name = name
        self._heard = heard
        self._count = 0

    def append(self, *, size: int = 1, expected: int = 0) -> Numbered:
        self._count += 1
        event = encoded_event(bytes(16), "happened", 1, b"{}", None, bytes(16))
        pending = Numbered([StreamWrite(self._name, expected, [event])], size, self.on_outcome)
        pending.number = self._count
        self._commits.submit(pending)
        return pending

    def on_outcome(self, pending: Numbered, outcome: AppendOutcome | EventStoreError) -> None:
        self._heard.append((self._name, pending.number, outcome.__class__))


class Bench:
    """A queue, its breaker, and a journal that does as it is told."""

    def __init__(self) -> None:
        self.time = Time()
        self.journal = Journal()
        self.breaker = CircuitBreaker(clock=self.time)
        self.commits = GroupCommit(self.journal.append, self.breaker, removed=nothing_removed)
        self.heard: list[tuple[str, int, object]] = []

    def owner(self, name: str) -> Owner:
        return Owner(self.commits, name, self.heard)

    def fail_reads(self) -> None:
        """Something else than an append finds out that the database is gone."""
        for _ in range(FAILURES):
            self.breaker.failed(GONE)
        assert not self.breaker.is_closed

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    async def drained(self) -> None:
        async with asyncio.timeout(10):
            await self.commits.drained()


@pytest.fixture
async def bench() -> AsyncGenerator[Bench, None]:
    bench = Bench()
    yield bench
    bench.journal.answer = None
    bench.journal.next.clear()
    bench.journal.release()
    async with asyncio.timeout(10):
        await bench.commits.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome that is unknown for a moment is unknown for long."""
    monkeypatch.setattr(group_commit, "UNRESOLVED_SECONDS", 0.02)


# Open


async def test_what_is_submitted_while_it_is_open_is_refused_by_callback_and_never_sent(bench: Bench):
    bench.fail_reads()
    owner = bench.owner("a")
    for _ in range(3):
        owner.append()
    assert bench.heard == [], "an owner hears nothing before its submit has returned"
    await bench.drained()
    assert bench.heard == [("a", 1, CircuitOpen), ("a", 2, CircuitOpen), ("a", 3, CircuitOpen)]
    assert bench.journal.groups == []


async def test_those_that_wait_when_it_opens_are_refused_at_once_except_behind_their_own(bench: Bench):
    bench.journal.hold()
    first, other = bench.owner("a"), bench.owner("b")
    first.append()
    first.append()
    other.append()
    bench.fail_reads()
    await bench.until(lambda: bench.heard != [])
    assert bench.heard == [("b", 1, CircuitOpen)]
    # What its owner adds now is decided on what is in flight too.
    first.append()
    other.append()
    await bench.until(lambda: len(bench.heard) == 2)
    assert bench.heard[1:] == [("b", 2, CircuitOpen)]
    bench.journal.release()
    await bench.drained()
    assert bench.heard[2:] == [("a", 1, Appended), ("a", 2, Appended), ("a", 3, Appended)]
    assert bench.journal.groups == [["a"], ["a", "a"]]


async def test_what_stayed_behind_an_append_that_failed_is_refused_after_it(bench: Bench):
    bench.journal.hold()
    owner = bench.owner("a")
    owner.append()
    owner.append()
    bench.fail_reads()
    bench.journal.answer = GONE
    bench.journal.release()
    await bench.drained()
    assert bench.heard == [("a", 1, BackendUnavailable), ("a", 2, CircuitOpen)]


async def test_appends_that_fail_open_it_themselves(bench: Bench):
    bench.journal.answer = GONE
    owner = bench.owner("a")
    for _ in range(FAILURES + 3):
        owner.append()
        await bench.drained()
    assert [error for _, _, error in bench.heard] == [BackendUnavailable] * FAILURES + [CircuitOpen] * 3
    assert len(bench.journal.groups) == FAILURES


@pytest.mark.parametrize("error", [StoreBusy("busy"), StorageFull("full")], ids=lambda error: type(error).__name__)
async def test_a_database_that_is_busy_or_full_is_asked_every_time(bench: Bench, error: EventStoreError):
    bench.journal.answer = error
    owner = bench.owner("a")
    for _ in range(10 * FAILURES):
        owner.append()
        await bench.drained()
    assert len(bench.journal.groups) == 10 * FAILURES
    assert bench.commits.refusal() is None


async def test_what_was_withdrawn_is_not_told(bench: Bench):
    bench.fail_reads()
    owner = bench.owner("a")
    owner.append().is_withdrawn = True
    owner.append()
    await bench.drained()
    assert bench.heard == [("a", 2, CircuitOpen)]


async def test_a_full_queue_has_room_again_once_what_waited_is_refused(bench: Bench):
    bench.journal.hold()
    bench.owner("a").append()
    bench.owner("b").append(size=MAX_WAITING_BYTES)
    assert bench.commits.is_full
    room = asyncio.create_task(bench.commits.room())
    await asyncio.sleep(0)
    assert not room.done()
    bench.fail_reads()
    async with asyncio.timeout(10):
        await room
    assert not bench.commits.is_full


async def test_what_grew_while_it_waited_leaves_nothing_behind_in_the_count(bench: Bench):
    bench.fail_reads()
    for _ in range(3):
        bench.commits.grow(bench.owner("a").append(), MAX_WAITING_BYTES)
        assert bench.commits.is_full
        await bench.drained()
    assert not bench.commits.is_full


async def test_a_callback_that_fails_holds_up_nobody(bench: Bench):
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    def broken(pending: PendingAppend, outcome: AppendOutcome | EventStoreError) -> None:
        raise RuntimeError("a bug in the owner")

    bench.fail_reads()
    bench.commits.submit(PendingAppend([], 1, broken))
    bench.owner("a").append()
    await bench.drained()
    assert bench.heard == [("a", 1, CircuitOpen)]
    assert [str(error) for error in told] == ["a bug in the owner"]


# Half open


async def test_one_group_is_the_probe_and_whoever_comes_while_it_is_under_way_is_refused(bench: Bench):
    bench.fail_reads()
    bench.time.now += FIRST_PAUSE_SECONDS
    bench.journal.hold()
    for name in ("a", "b", "c"):
        assert bench.commits.refusal() is None
        bench.owner(name).append()
    await bench.until(lambda: bench.journal.groups != [])
    assert isinstance(bench.commits.refusal(), CircuitOpen)
    bench.time.now += 10 * LONGEST_PAUSE_SECONDS
    assert isinstance(bench.commits.refusal(), CircuitOpen), "what is in flight is the probe, however long it takes"
    bench.owner("late").append()
    await bench.until(lambda: bench.heard != [])
    assert bench.heard == [("late", 1, CircuitOpen)]
    bench.journal.release()
    await bench.drained()
    assert bench.journal.groups == [["a", "b", "c"]]
    assert bench.heard[1:] == [("a", 1, Appended), ("b", 1, Appended), ("c", 1, Appended)]
    assert bench.commits.refusal() is None


@pytest.mark.parametrize("answer", [None, GONE], ids=["is stored", "fails"])
async def test_who_has_no_place_in_the_probe_is_refused_whether_it_fails_or_not(
    bench: Bench, answer: EventStoreError | None
):
    bench.fail_reads()
    bench.time.now += FIRST_PAUSE_SECONDS
    bench.journal.answer = answer
    for number in range(MAX_GROUP_EVENTS + 10):
        bench.owner(str(number)).append()
    await bench.drained()
    assert [len(group) for group in bench.journal.groups] == [MAX_GROUP_EVENTS]
    told = BackendUnavailable if answer else Appended
    outcomes = {int(name): outcome for name, _, outcome in bench.heard}
    assert outcomes == {
        number: told if number < MAX_GROUP_EVENTS else CircuitOpen for number in range(MAX_GROUP_EVENTS + 10)
    }


async def test_a_call_that_took_the_probe_first_leaves_none_for_the_appends(bench: Bench):
    bench.fail_reads()
    bench.time.now += FIRST_PAUSE_SECONDS
    bench.owner("a").append()
    assert bench.breaker.admits()
    await bench.drained()
    assert bench.heard == [("a", 1, CircuitOpen)]


# Unknown


async def test_an_outcome_that_is_unknown_for_a_moment_refuses_nobody(bench: Bench):
    bench.journal.next.extend([LOST, GONE, GONE, LOST, GONE, None])
    owner, other = bench.owner("a"), bench.owner("b")
    owner.append()
    owner.append()
    other.append()
    await bench.drained()
    assert bench.heard == [("a", 1, Appended), ("a", 2, Appended), ("b", 1, Appended)]
    assert bench.journal.groups == [["a"]] * 6 + [["a", "b"]]


@pytest.mark.usefixtures("impatient")
async def test_behind_an_outcome_that_is_unknown_for_long_only_its_owner_waits(bench: Bench):
    bench.journal.next.append(LOST)
    bench.journal.answer = GONE
    owner, other = bench.owner("a"), bench.owner("b")
    owner.append()
    owner.append()
    other.append()
    await bench.until(lambda: bench.heard != [])
    assert bench.heard == [("b", 1, CircuitOpen)]
    refusal = bench.commits.refusal()
    assert isinstance(refusal, CircuitOpen)
    assert refusal.retry_after > 0
    assert "unknown" in str(refusal)
    bench.journal.answer = None
    await bench.drained()
    assert bench.heard[1:] == [("a", 1, Appended), ("a", 2, Appended)]
    assert bench.breaker.is_closed
    other.append()
    await bench.drained()
    assert bench.heard[3:] == [("b", 2, Appended)]


@pytest.mark.usefixtures("impatient")
async def test_reads_that_are_answered_do_not_let_appends_in_behind_an_unknown_outcome(bench: Bench):
    bench.journal.next.append(LOST)
    bench.journal.answer = GONE
    bench.owner("a").append()
    await bench.until(lambda: not bench.breaker.is_closed)
    changes: list[bool] = []
    bench.breaker.on_change.append(lambda: changes.append(bench.breaker.is_closed))
    bench.breaker.answered()
    retries = len(bench.journal.groups)
    await bench.until(lambda: len(bench.journal.groups) >= retries + 3)
    assert changes == [True], "the append that is tried again must not open it for the reads again and again"
    bench.owner("b").append()
    await bench.until(lambda: bench.heard != [])
    assert bench.heard == [("b", 1, CircuitOpen)]


@pytest.mark.usefixtures("impatient")
async def test_what_stays_unknown_is_told_to_its_owner_first_and_then_what_was_behind_it(bench: Bench):
    commits = GroupCommit(bench.journal.append, bench.breaker, removed=nothing_removed, resolve_within=0.05)
    owner = Owner(commits, "a", bench.heard)
    bench.journal.answer = LOST
    owner.append()
    owner.append()
    async with asyncio.timeout(10):
        await commits.close()
    assert bench.heard == [("a", 1, OutcomeUnknown), ("a", 2, CircuitOpen)]


@pytest.mark.parametrize(
    "later",
    [LOST, GONE, StorageFull("full"), StoreBusy("busy"), JournalCorrupt("damaged")],
    ids=lambda error: type(error).__name__,
)
async def test_a_later_try_that_fails_does_not_settle_what_became_of_the_first(bench: Bench, later: EventStoreError):
    commits = GroupCommit(bench.journal.append, bench.breaker, removed=nothing_removed, resolve_within=0.05)
    bench.journal.next.append(LOST)
    bench.journal.answer = later
    Owner(commits, "a", bench.heard).append()
    async with asyncio.timeout(10):
        await commits.close()
    assert bench.heard == [("a", 1, OutcomeUnknown)]


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        # The stream has moved past it, and never comes back: whenever the first try arrives, it is refused too.
        (ConcurrencyError("a", 3, 5), ConcurrencyError),
        (FencedError("a", 1, 2), FencedError),
        (DuplicateCommand("a", "1"), DuplicateCommand),
        (DuplicateEventError("a", "1"), DuplicateEventError),
        # By the time the first try arrives the stream may have come to that version.
        (ConcurrencyError("a", 5, 3), OutcomeUnknown),
        (ConcurrencyError("a", "STREAM_EXISTS", 0), OutcomeUnknown),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, Exception) else value.__name__,
)
async def test_what_a_refusal_says_of_an_earlier_try_whose_outcome_is_unknown(
    bench: Bench, refusal: AppendOutcome, told: type
):
    bench.journal.refusals["a"] = refusal
    bench.owner("a").append()
    await bench.drained()
    bench.journal.next.append(LOST)
    bench.owner("a").append(expected=Expected.ANY)
    await bench.drained()
    assert bench.heard == [("a", 1, refusal.__class__), ("a", 1, told)]
