"""GroupCommit: many appends, one durable commit.

One append is in flight; what arrives meanwhile is the next group. There is no timer: a lone append starts at once,
and under load a group is as large as what came in during the commit before it.

Callers who wait for their outcome and then append again would all meet in one group, and the event loop and the
database would take turns. Where a commit takes no longer than the loop's own work for it, they are kept in two halves:
while one is committed, the other decides.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from eventstore.backend import Appended, AppendOutcome, Batch, StreamWrite
from eventstore.errors import BackendUnavailable, EventStoreError, OutcomeUnknown, StoreClosed

MAX_GROUP_EVENTS = 512
MAX_GROUP_BYTES = 4 * 1024 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024

# Fewer batches are not worth two commits.
MIN_HALVED = 16

# A fixed cost per event beside its payload, so that many tiny events fill the queue too.
EVENT_OVERHEAD_BYTES = 256


class PendingAppend:
    """One atomic batch on its way. Its owner may extend `writes` until `is_taken`; then it belongs to the group.

    `on_outcome` is called once, from the event loop, with the batch and its outcome, unless the owner sets
    `is_withdrawn` before it is taken. `on_taken`, if set, is called when a group takes it.
    """

    __slots__ = ("is_taken", "is_withdrawn", "on_outcome", "on_taken", "size_bytes", "writes")

    def __init__(
        self, writes: Batch, size_bytes: int, on_outcome: Callable[[Any, AppendOutcome | EventStoreError], None]
    ) -> None:
        self.writes = writes
        self.size_bytes = size_bytes
        self.on_outcome = on_outcome
        self.on_taken: Callable[[], None] | None = None
        self.is_taken = False
        self.is_withdrawn = False


def size_of(writes: Sequence[StreamWrite]) -> int:
    """The bytes a batch counts for in the queue."""
    return sum(len(event.payload) + EVENT_OVERHEAD_BYTES for write in writes for event in write.events)


class GroupCommit:
    """The queue in front of `Backend.append`. It belongs to one event loop and owns every append given to it.

    An unknown outcome is resolved by appending the identical group again until `resolve_within` seconds have passed:
    the events' ids decide, so nothing is stored twice. What is still unknown then is `OutcomeUnknown` for all.
    """

    def __init__(
        self,
        append: Callable[[Sequence[Batch]], Awaitable[Sequence[AppendOutcome]]],
        *,
        resolve_within: float = 30.0,
    ) -> None:
        self._append = append
        self._resolve_within = resolve_within
        self._waiting: deque[PendingAppend] = deque()
        self._waiting_bytes = 0
        self._last_group_events = 0
        self._started_at = 0.0
        self._worked_seconds: float | None = None
        self._halves_pay = False
        self._group: list[PendingAppend] = []
        self._in_flight: asyncio.Future[Sequence[AppendOutcome]] | None = None
        self._flush_scheduled = False
        self._on_room: deque[Callable[[], None]] = deque()
        self._drained: list[asyncio.Future[None]] = []
        self._is_closed = False
        self._loop = asyncio.get_running_loop()

    @property
    def is_full(self) -> bool:
        """Whether as much is waiting as may: callers then wait for `when_room` before they submit."""
        return self._waiting_bytes >= MAX_WAITING_BYTES

    def when_room(self, callback: Callable[[], None]) -> None:
        """Call back once, when the queue has room again."""
        self._on_room.append(callback)

    async def room(self) -> None:
        """Wait until the queue has room again."""
        room: asyncio.Future[None] = self._loop.create_future()

        def settle() -> None:
            if not room.done():
                room.set_result(None)

        self.when_room(settle)
        await room

    def submit(self, pending: PendingAppend) -> None:
        """Queue a batch. Its outcome comes by callback, after those of every batch submitted before it."""
        if self._is_closed:
            closed = StoreClosed("the store is closed: nothing was stored")
            self._loop.call_soon(pending.on_outcome, pending, closed)
            return
        self._waiting.append(pending)
        self._waiting_bytes += pending.size_bytes
        if self._in_flight is not None or self._flush_scheduled:
            return
        if self._last_group_events <= 1:
            # Nobody else was there the last time: whoever is alone need not wait for company.
            self._flush()
        else:
            # One turn of the loop later, so that everything decided in this turn shares the commit.
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def grow(self, pending: PendingAppend, size_bytes: int) -> None:
        """Count what the owner added to a batch that is still waiting."""
        pending.size_bytes += size_bytes
        self._waiting_bytes += size_bytes

    def drained(self) -> asyncio.Future[None]:
        """A future that is done once the outcome of every batch here is known."""
        future: asyncio.Future[None] = self._loop.create_future()
        if self._in_flight is None and not self._waiting:
            future.set_result(None)
        else:
            self._drained.append(future)
        return future

    async def close(self) -> None:
        """Refuse new batches and wait for the outcome of those already here."""
        self._is_closed = True
        await self.drained()

    def _flush(self) -> None:
        self._flush_scheduled = False
        count = len(self._waiting)
        self._start((count + 1) // 2 if self._halves_pay and count >= MIN_HALVED else count)
        if not self._group:
            self._notify_drained()

    def _start(self, count: int) -> None:
        """Append the first batches that wait, so many at most."""
        self._group = self._take_group(count)
        if not self._group:
            return
        batches = [pending.writes for pending in self._group]
        self._started_at = time.perf_counter()
        try:
            self._in_flight = asyncio.ensure_future(self._append(batches))
        except EventStoreError as error:
            self._in_flight = self._loop.create_future()
            self._in_flight.set_exception(error)
        self._in_flight.add_done_callback(self._on_done)

    def _take_group(self, at_most: int) -> list[PendingAppend]:
        group: list[PendingAppend] = []
        events = size = 0
        while self._waiting and len(group) < at_most:
            pending = self._waiting[0]
            count = 0
            for write in pending.writes:
                count += len(write.events)
            too_large = events + count > MAX_GROUP_EVENTS or size + pending.size_bytes > MAX_GROUP_BYTES
            if group and too_large and not pending.is_withdrawn:
                break
            self._waiting.popleft()
            self._waiting_bytes -= pending.size_bytes
            if pending.is_withdrawn:
                continue
            pending.is_taken = True
            if pending.on_taken is not None:
                self._loop.call_soon(pending.on_taken)
            group.append(pending)
            events += count
            size += pending.size_bytes
        self._last_group_events = events
        return group

    def _on_done(self, future: asyncio.Future[Sequence[AppendOutcome]]) -> None:
        if not future.cancelled() and isinstance(future.exception(), OutcomeUnknown):
            self._in_flight = asyncio.ensure_future(self._resolve([pending.writes for pending in self._group]))
            self._in_flight.add_done_callback(self._on_resolved)
        else:
            self._on_resolved(future)

    def _on_resolved(self, future: asyncio.Future[Sequence[AppendOutcome]]) -> None:
        if future.cancelled():
            error: BaseException | None = OutcomeUnknown("the append was cancelled: its outcome is unknown")
        else:
            error = future.exception()
        self._deliver(future.result() if error is None else [_as_outcome(error)] * len(self._group))

    async def _resolve(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((OutcomeUnknown, BackendUnavailable)),
            wait=wait_random_exponential(multiplier=0.05, max=2.0),
            stop=stop_after_delay(self._resolve_within),
            reraise=True,
        )
        try:
            return await attempts(self._append_again, batches)
        except OutcomeUnknown:
            raise
        except EventStoreError as error:
            # The first try may have been stored: that the later ones were not does not settle it.
            raise OutcomeUnknown(
                f"the database could not say whether the events were stored ({type(error).__name__}: {error})"
            ) from error

    async def _append_again(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return await self._append(batches)

    def _deliver(self, outcomes: Sequence[AppendOutcome | EventStoreError]) -> None:
        group, self._group, self._in_flight = self._group, [], None
        self._measure(len(group))
        # After a refusal no batch may be taken before every outcome is delivered: its owner withdraws the next.
        if self._halves_pay and self._waiting and all(outcome.__class__ is Appended for outcome in outcomes):
            self._start(len(self._waiting))
        is_ahead = self._in_flight is not None
        self._flush_scheduled = not is_ahead
        for pending, outcome in zip(group, outcomes, strict=True):
            try:
                pending.on_outcome(pending, outcome)
            except Exception as error:
                self._loop.call_exception_handler({"message": "an append's callback failed", "exception": error})
        while self._on_room and not self.is_full:
            self._on_room.popleft()()
        if is_ahead:
            return
        if self._waiting:
            self._loop.call_soon(self._flush)
        else:
            self._flush_scheduled = False
            self._notify_drained()

    def _measure(self, count: int) -> None:
        """Find out whether the next commit should begin before the callers of this one have decided what follows it.

        With halves, commits and decisions go on at the same time, but what a commit costs whatever is in it is paid
        twice as often. So that fixed part must be less than the loop's work for both halves; and a commit takes that
        part and about as long for its rows as the loop does.
        """
        if count < MIN_HALVED // 2:
            self._halves_pay, self._worked_seconds = False, None
            return
        committed = time.perf_counter() - self._started_at
        before, self._worked_seconds = self._worked_seconds, time.thread_time()
        self._halves_pay = before is not None and committed < 3 * (self._worked_seconds - before)

    def _notify_drained(self) -> None:
        drained, self._drained = self._drained, []
        for future in drained:
            if not future.done():
                future.set_result(None)


def _as_outcome(error: BaseException) -> EventStoreError:
    if isinstance(error, EventStoreError):
        return error
    unknown = OutcomeUnknown(f"the backend failed unexpectedly ({type(error).__name__}): the outcome is unknown")
    unknown.__cause__ = error
    return unknown
