"""Cancelling at a chosen await, and looking for what a cancelled task may have left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any


class Moment(Enum):
    """When the cancellation comes, of all the time that a task waits at one await."""

    AT_ONCE = "as it begins to wait"
    TOO_LATE = "as the wait ends"
    """What it waited for is there, but the task has not run since: the result is in hand, and is thrown away."""


class CancelledAt:
    """Runs a coroutine, and cancels the task it runs in at its n-th suspension, or at every one from the n-th on.

    A cancellation is delivered as the event loop does it: the future that is waited for is cancelled too.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], number: int, moment: Moment, *, again: bool = False) -> None:
        self._work = work
        self._number = number
        self._moment = moment
        self._again = again
        self.suspensions = 0
        self.has_struck = False

    def __await__(self) -> Generator[Any, None, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                awaited = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._number or (self._again and self.suspensions > self._number):
                self._strike(awaited)
            error = None
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown

    def _strike(self, awaited: asyncio.Future[Any] | None) -> None:
        self.has_struck = True
        task = asyncio.current_task()
        assert task is not None
        if self._moment is Moment.AT_ONCE or awaited is None:
            task.cancel()
        else:
            # The task's own callback comes after this one.
            awaited.add_done_callback(lambda _: task.cancel())


async def cancel_at(number: int, work: Coroutine[Any, Any, Any], moment: Moment, *, again: bool = False) -> bool:
    """Run work and cancel it there. False: it ended before its n-th suspension."""
    cancelling = CancelledAt(work, number, moment, again=again)

    async def run() -> None:
        await cancelling

    task = asyncio.create_task(run())
    await asyncio.wait([task], timeout=60)
    assert task.done(), f"it hangs after it was cancelled at suspension {number}"
    if cancelling.has_struck:
        assert task.cancelled(), "the cancellation was swallowed"
    else:
        task.result()
    return cancelling.has_struck


@contextmanager
def no_threads_or_files_left() -> Iterator[None]:
    """What is run inside leaves no thread and no open file that was not there before."""
    before = threads_and_files()
    yield
    # A thread whose connection is closed takes a moment to end.
    deadline = time.monotonic() + 20
    while (left := left_since(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def left_since(before: tuple[set[threading.Thread], dict[str, int]]) -> list[object]:
    # More than before, not other than before: what an earlier test left behind may end meanwhile.
    threads, files = threads_and_files()
    return [*(threads - before[0]), *(name for name, count in files.items() if count > before[1].get(name, 0))]


def threads_and_files() -> tuple[set[threading.Thread], dict[str, int]]:
    files: dict[str, int] = {}
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue  # The one that lists them.
        files[name] = files.get(name, 0) + 1
    return set(threading.enumerate()), files


def assert_nothing_pending() -> None:
    """In the running loop there is this task and nothing else: no other task, no future that somebody still awaits."""
    gc.collect()
    loop = asyncio.get_running_loop()
    futures = [found for found in gc.get_objects() if isinstance(found, asyncio.Future)]
    current = asyncio.current_task()
    assert [f for f in futures if f is not current and f.get_loop() is loop and not f.done()] == []
