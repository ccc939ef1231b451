"""GroupCall: many questions to the database, one round trip. Cold activations come in crowds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from eventstore.calls.circuit_breaker import CircuitBreaker
from eventstore.errors import BackendUnavailable, EventStoreError, StoreClosed

Q = TypeVar("Q")
A = TypeVar("A")

# As many questions share a trip; with pages of up to 1,000 events this bounds what one trip of loads holds in memory.
MAX_GROUP = 100


class GroupCall(Generic[Q, A]):
    """The queue in front of a backend's method that takes many: one trip in flight, what arrives meanwhile is the next.

    An answer that is an error is its asker's alone. The queue's length is bounded by the callers: every actor asks for
    itself only, and the actor system lets only so many recover at once. While the breaker is open nobody waits here: a
    group is the probe, or everybody is refused.
    """

    def __init__(
        self, call: Callable[[Sequence[Q]], Awaitable[Sequence[A | EventStoreError]]], breaker: CircuitBreaker
    ) -> None:
        self._call = call
        self._breaker = breaker
        breaker.on_change.append(self._on_breaker)
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._group: list[tuple[Q, asyncio.Future[A]]] = []
        self._caller: asyncio.Task[None] | None = None
        self._is_closed = False

    async def ask(self, question: Q) -> A:
        """Ask one question together with whoever asks at the same time."""
        if self._is_closed:
            raise StoreClosed("the store is closed")
        if not self._breaker.is_closed:
            # What is under way already is the probe.
            refused = self._breaker.error() if self._group else self._breaker.refusal()
            if refused is not None:
                raise refused
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._caller is None:
            self._caller = asyncio.create_task(self._serve(), name="eventstore-group-call")
        return await future

    async def close(self) -> None:
        """Refuse new questions, those that wait, and those under way."""
        self._is_closed = True
        if self._caller is not None:
            self._caller.cancel()
            await asyncio.wait([self._caller])
        for _, future in (*self._group, *self._waiting):
            if not future.done():
                future.set_exception(StoreClosed("the store was closed before this was answered"))
        self._waiting.clear()

    def _on_breaker(self) -> None:
        if self._breaker.is_closed:
            return
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._breaker.error())

    async def _serve(self) -> None:
        while self._waiting:
            self._group = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_GROUP))]
            await self._serve_group(self._group)
            self._group = []
        self._caller = None

    async def _serve_group(self, group: Sequence[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers = await self._answers(group)
        except Exception as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, EventStoreError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def _answers(self, group: Sequence[tuple[Q, asyncio.Future[A]]]) -> Sequence[A | EventStoreError]:
        """What the backend answers. Anything else is an error: whoever asks later waits for this call too."""
        try:
            answers = await self._call([question for question, _ in group])
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # By `close`, or by a loop that ends.
                raise
            raise BackendUnavailable("the backend's call was cancelled, nothing was answered: try again") from error
        if len(answers) != len(group):
            raise BackendUnavailable(f"the backend gave {len(answers)} answers to {len(group)} questions")
        return answers
