"""Appending: an append under way, for backends whose outcome comes by a callback or in a task of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from eventstore.backend import AppendOutcome


class Appending(asyncio.Future[Sequence[AppendOutcome]]):
    """`Backend.append` may return one. The callbacks of a future run one turn of the loop after it is done, in which
    the database waits for the next group; `on_end`, if set, is called at once.
    """

    on_end: Callable[[Appending], None] | None = None

    may_be_followed = False
    """Whether another group, of other streams, may be appended before this one has its outcome: the database takes
    one after the other, and need not wait for the second when it has done the first."""

    def end(self, outcomes: Sequence[AppendOutcome] | None, error: BaseException | None) -> None:
        """Give it its outcomes, or its error."""
        if self.done():
            return
        if error is None:
            self.set_result(outcomes or ())
        elif isinstance(error, asyncio.CancelledError):
            self.cancel()
        else:
            self.set_exception(error)
        if self.on_end is not None:
            self.on_end(self)

    def start(self, work: Coroutine[Any, Any, Sequence[AppendOutcome]]) -> asyncio.Task[None]:
        """Do the work in a task, which gives it what that comes to."""
        task = asyncio.create_task(self.run(work))
        task.add_done_callback(partial(self._ended, work))
        return task

    def _ended(self, work: Coroutine[Any, Any, Sequence[AppendOutcome]], _: asyncio.Task[None]) -> None:
        if not self.done():
            # The task was cancelled before its first step, as when the event loop ends.
            work.close()
            self.end(None, asyncio.CancelledError())

    async def run(self, work: Awaitable[Sequence[AppendOutcome]]) -> None:
        """Give it what some work comes to."""
        try:
            outcomes = await work
        except BaseException as error:
            self.end(None, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.end(outcomes, None)
        finally:
            # The error keeps this frame. If that kept what keeps the error, all of it would stay, with the events,
            # until the garbage collector comes.
            del self, work
