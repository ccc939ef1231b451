"""GroupCommit: many appends, one durable commit.

One append is in flight, or two; what arrives meanwhile is the next group. There is no timer: a lone append starts at
once, and under load a group is as large as what came in during the commit before it.

Callers who wait for their outcome and then append again would all meet in one group, and the event loop and the
database would take turns. Where it pays (`Halving`), they are kept in two halves: while one is committed, the other
decides. Where the backend allows it (`Appending.may_be_followed`), the other is sent then as well, if nothing in it
rests on the first, and the database has something to do at once.

While the database does not serve, nothing waits here: what is submitted is refused, and so is what was waiting, except
for what must stay behind an append whose outcome is unknown.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from eventstore.backend import Appended, AppendOutcome, Batch
from eventstore.calls.appending import Appending
from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.calls.halving import MIN_HALVED, Halving
from eventstore.calls.pending_append import PendingAppend
from eventstore.calls.resolving import RETRY_SECONDS, Removed, resolve
from eventstore.errors import BackendUnavailable, CircuitOpen, EventStoreError, OutcomeUnknown, StoreClosed

MAX_GROUP_EVENTS = 512
MAX_GROUP_BYTES = 4 * 1024 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024

RESOLVE_WITHIN_SECONDS = 30.0

# Everybody waits so long for an append whose outcome is unknown. Then those who need not are refused.
UNRESOLVED_SECONDS = 1.0

# Fewer behind another group are not worth a commit, and would say that two groups do not pay.
_FEWEST_BEHIND = MIN_HALVED // 2

_NEVER = sys.maxsize

_Outcome = TypeVar("_Outcome", bound=AppendOutcome | EventStoreError)


Append = Callable[[Sequence[Batch]], Awaitable[Sequence[AppendOutcome | EventStoreError]]]
"""What stores a group: each batch with an outcome of its own, as `Backend.append` does. That may be any error that says
for certain that nothing of the batch was stored."""


class GroupCommit:
    """The queue in front of `Backend.append`. It belongs to one event loop and owns every append given to it.

    An unknown outcome is resolved by appending the identical group again until `resolve_within` seconds have passed:
    the ids of events and commands decide, so nothing is stored twice. What is unknown then is `OutcomeUnknown` for all.
    """

    def __init__(
        self,
        append: Append,
        breaker: CircuitBreaker,
        *,
        removed: Removed,
        resolve_within: float = RESOLVE_WITHIN_SECONDS,
    ) -> None:
        self._append = append
        self._removed = removed
        self._breaker = breaker
        self._resolve_within = resolve_within
        self._waiting: deque[PendingAppend] = deque()
        self._waiting_bytes = 0
        self._last_group_events = 0
        self._started_at = 0.0
        self._halving = Halving()
        self._group: list[PendingAppend] = []
        # What is known of the group before, and told in the next turn of the loop.
        self._untold: list[tuple[PendingAppend, AppendOutcome | EventStoreError]] = []
        self._in_flight: asyncio.Future[Any] | None = None
        # The group that was sent behind the one in flight. It is looked at when that one has its outcome.
        self._follower: list[PendingAppend] = []
        self._following: asyncio.Future[Any] | None = None
        # So many must wait for a group to be sent behind.
        self._follow_at = _NEVER
        # Since when what is in flight has been unknown, and how long what is in flight has waited for such a one.
        self._unknown_since: float | None = None
        self._held_seconds = 0.0
        self._flush_scheduled = False
        self._on_room: deque[Callable[[], None]] = deque()
        self._drained: list[asyncio.Future[None]] = []
        self._is_closed = False
        # Whether the breaker is open, or an outcome has been unknown for long: all that a submission looks at.
        self.is_refusing = False
        self._is_unresolved = False
        self._unresolved_timer: asyncio.TimerHandle | None = None
        self._refusal_scheduled = False
        self._loop = asyncio.get_running_loop()
        breaker.on_change.append(self._on_breaker)

    def append_by(self, append: Append) -> None:
        """Have the groups that are not under way yet stored by something else."""
        self._append = append

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where outcomes are told."""
        return self._loop

    @property
    def breaker(self) -> CircuitBreaker:
        """What is known of the database."""
        return self._breaker

    def refusal(self) -> BackendUnavailable | None:
        """What a batch would be refused with if it were submitted now. It costs next to nothing while all is well."""
        if not self.is_refusing:
            return None
        # What is in flight already is the probe.
        return self._breaker.refusal() if self._in_flight is None else self._refused()

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
        """Queue a batch. Its outcome comes by callback, after those of every batch its owner submitted before it.

        While the database does not serve, that is `CircuitOpen`: nothing was stored.
        """
        if self._is_closed:
            closed = StoreClosed("the store is closed: nothing was stored")
            self._loop.call_soon(pending.on_outcome, pending, closed)
            return
        self._waiting.append(pending)
        self._waiting_bytes += pending.size_bytes
        if self._in_flight is not None or self._flush_scheduled:
            if self.is_refusing:
                self._refuse_soon()
            elif len(self._waiting) >= self._follow_at:
                self._follow_soon()
            return
        if self._last_group_events <= 1 and not self.is_refusing:
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
        if self.is_refusing and not self._breaker.admits():
            self._refuse_waiting()
            return
        self._start(self._halving.portion(len(self._waiting)))
        if not self._group:
            # Everything that waited was withdrawn.
            self._notify_room()
            if self._in_flight is None and not self._waiting:
                self._notify_drained()

    def _start(self, count: int) -> None:
        """Append the first batches that wait, so many at most."""
        self._group = self._take_group(count)
        if not self._group:
            return
        self._started_at = time.perf_counter()
        self._held_seconds = 0.0
        self._await(self._sent(self._group))

    def _sent(self, group: Sequence[PendingAppend]) -> asyncio.Future[Any]:
        try:
            appending = self._append([pending.writes for pending in group])
        except Exception as error:
            failed: asyncio.Future[Any] = self._loop.create_future()
            failed.set_exception(error)
            return failed
        return appending if isinstance(appending, Appending) else asyncio.ensure_future(appending)

    def _await(self, appending: asyncio.Future[Any]) -> None:
        """Have the outcome of what is in flight from now on delivered."""
        self._in_flight = appending
        if not isinstance(appending, Appending) or appending.done():
            appending.add_done_callback(self._on_done)
            return
        appending.on_end = self._on_done
        if appending.may_be_followed and self._halving.pays:
            self._follow_at = max(_FEWEST_BEHIND, (len(self._group) + 1) // 2)

    def _follow_soon(self) -> None:
        # One turn of the loop later, as in `submit`.
        self._follow_at = _NEVER
        self._loop.call_soon(self._follow)

    def _follow(self) -> None:
        """Send a group behind the one in flight, of what does not rest on that one."""
        first = self._in_flight
        may_be_followed = isinstance(first, Appending) and first.may_be_followed and self._following is None
        if self.is_refusing or not may_be_followed:
            return
        count = self._count_apart((len(self._waiting) + len(self._group) + 1) // 2)
        if count >= _FEWEST_BEHIND:
            self._follower = self._take_group(count)
            self._following = self._sent(self._follower)

    def _count_apart(self, at_most: int) -> int:
        """How many of the first that wait do not rest on the group in flight. One that has a stream or the owner of it
        may, and whatever waits after that may rest on that."""
        streams = {write.stream_id for pending in self._group for write in pending.writes}
        owners = {pending.on_outcome for pending in self._group}
        count = 0
        for pending in self._waiting:
            if pending.is_withdrawn:
                continue
            if count == at_most or pending.on_outcome in owners:
                break
            if any(write.stream_id in streams for write in pending.writes):
                break
            count += 1
        return count

    def _take_group(self, at_most: int) -> list[PendingAppend]:
        """The first that wait, so many at most."""
        waiting, group = self._waiting, list[PendingAppend]()
        events = size = 0
        while waiting and len(group) < at_most:
            pending = waiting[0]
            size_bytes = pending.size_bytes
            count = 0
            for _, _, new, _, commands in pending.writes:
                count += len(new) + len(commands)
            too_large = events + count > MAX_GROUP_EVENTS or size + size_bytes > MAX_GROUP_BYTES
            if group and too_large and not pending.is_withdrawn:
                break
            waiting.popleft()
            self._waiting_bytes -= size_bytes
            if pending.is_withdrawn:
                continue
            pending.is_taken = True
            if pending.on_taken is not None:
                self._loop.call_soon(pending.on_taken)
            group.append(pending)
            events += count
            size += size_bytes
        self._last_group_events = events
        return group

    def _on_done(self, future: asyncio.Future[Any]) -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, OutcomeUnknown):
            self._breaker.failed(error)
            self._unknown_since = self._loop.time()
            self._unresolved_timer = self._loop.call_later(UNRESOLVED_SECONDS, self._on_unresolved, error)
            batches = [pending.writes for pending in self._group]
            # What was sent behind one that stayed unknown has waited as long.
            within = max(0.0, self._resolve_within - self._held_seconds)
            resolving = asyncio.ensure_future(resolve(self._append, batches, within=within, removed=self._removed))
            resolving.add_done_callback(self._on_resolved)
            self._in_flight = resolving
            return
        if isinstance(error, EventStoreError):
            self._breaker.failed(error)
        self._deliver(self._outcomes(future))

    def _on_resolved(self, future: asyncio.Future[Sequence[AppendOutcome | EventStoreError]]) -> None:
        if self._unresolved_timer is not None:
            self._unresolved_timer.cancel()
        self._is_unresolved = False
        self.is_refusing = not self._breaker.is_closed
        self._deliver(self._outcomes(future))

    def _outcomes(self, future: asyncio.Future[Sequence[_Outcome]]) -> Sequence[AppendOutcome | EventStoreError]:
        if future.cancelled():
            error: BaseException | None = OutcomeUnknown("the append was cancelled: its outcome is unknown")
        else:
            error = future.exception()
        if error is not None:
            return [_as_outcome(error)] * len(self._group)
        self._breaker.answered()
        outcomes = future.result()
        if len(outcomes) != len(self._group):
            # Nobody knows whose they are. Without this, whoever has none would wait for ever.
            error = OutcomeUnknown(f"the backend gave {len(outcomes)} outcomes for {len(self._group)} batches")
            return [error] * len(self._group)
        return outcomes

    def _deliver(self, outcomes: Sequence[AppendOutcome | EventStoreError]) -> None:
        # What ends at once, because it could not be sent, may rest on it.
        self._tell_untold()
        group, self._group, self._in_flight = self._group, [], None
        self._follow_at = _NEVER
        now = time.perf_counter()
        self._halving.measure(len(group), now - self._started_at)
        unknown_since, self._unknown_since = self._unknown_since, None
        if self._following is not None:
            # Until now the database was busy with the group before it.
            self._started_at = now
            self._held_seconds = 0.0 if unknown_since is None else self._loop.time() - unknown_since
            following, self._following = self._following, None
            self._group, self._follower = self._follower, []
            self._await(following)
            self._tell_all(zip(group, outcomes, strict=True))
            if len(self._waiting) >= self._follow_at:
                self._follow_soon()
            return
        # After a refusal no batch may be taken before every outcome is delivered: its owner withdraws the next.
        if self._halving.pays and self._waiting and set(map(type, outcomes)) == {Appended}:
            self._start(len(self._waiting))
        if self._in_flight is not None:
            # A turn later: a backend that works in a task sends the group first.
            self._untold = list(zip(group, outcomes, strict=True))
            self._loop.call_soon(self._tell_untold)
            return
        self._flush_scheduled = True
        self._tell_all(zip(group, outcomes, strict=True))
        if self._waiting:
            self._loop.call_soon(self._flush)
        else:
            self._flush_scheduled = False
            self._notify_drained()

    def _tell_untold(self) -> None:
        untold, self._untold = self._untold, []
        if untold:
            self._tell_all(untold)

    def _tell_all(self, told: Iterable[tuple[PendingAppend, AppendOutcome | EventStoreError]]) -> None:
        for pending, outcome in told:
            try:
                pending.on_outcome(pending, outcome)
            except Exception as error:
                self._callback_failed(error)
        self._notify_room()

    # While the database does not serve

    def _on_breaker(self) -> None:
        self.is_refusing = self._is_unresolved or not self._breaker.is_closed
        if self.is_refusing:
            self._refuse_soon()

    def _on_unresolved(self, error: OutcomeUnknown) -> None:
        """An outcome has been unknown for so long that the others should know."""
        self._is_unresolved = True
        self._breaker.give_up(error)
        # It may have been open before.
        self._on_breaker()

    def _refuse_soon(self) -> None:
        # Not now: whoever submits does not expect its callback before that is done.
        if not self._refusal_scheduled and self._waiting:
            self._refusal_scheduled = True
            self._loop.call_soon(self._refuse_in_flight)

    def _refuse_in_flight(self) -> None:
        self._refusal_scheduled = False
        # With nothing in flight, the next group may be the probe.
        if self.is_refusing and self._in_flight is not None:
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Refuse every batch that waits, unless its owner has one in flight: that one's outcome comes first."""
        ahead = {pending.on_outcome for pending in (*self._group, *self._follower)}
        ahead.update(pending.on_outcome for pending, _ in self._untold)
        waiting, self._waiting = self._waiting, deque()
        refused: list[PendingAppend] = []
        for pending in waiting:
            if pending.on_outcome in ahead:
                self._waiting.append(pending)
            else:
                pending.is_taken = True
                self._waiting_bytes -= pending.size_bytes
                refused.append(pending)
        for pending in refused:
            if not pending.is_withdrawn:
                # An error for each: raised by many, one would collect the tracebacks of all.
                self._tell(pending, self._refused())
        self._notify_room()
        if self._in_flight is None and not self._waiting:
            self._notify_drained()

    def _refused(self) -> CircuitOpen:
        if not self._is_unresolved:
            return self._breaker.error()
        return CircuitOpen(
            "nothing was stored: what became of an earlier append has been unknown for more than "
            f"{UNRESOLVED_SECONDS:g} s, and that is found out first; try again",
            retry_after=RETRY_SECONDS,
        )

    # Telling

    def _tell(self, pending: PendingAppend, outcome: AppendOutcome | EventStoreError) -> None:
        try:
            pending.on_outcome(pending, outcome)
        except Exception as error:
            self._callback_failed(error)

    def _callback_failed(self, error: Exception) -> None:
        self._loop.call_exception_handler({"message": "an append's callback failed", "exception": error})

    def _notify_room(self) -> None:
        while self._on_room and not self.is_full:
            try:
                self._on_room.popleft()()
            except Exception as error:
                self._callback_failed(error)

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
