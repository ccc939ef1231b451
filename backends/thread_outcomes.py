"""ThreadOutcomes: what the jobs of a thread have come to, told in the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from eventstore.errors import BackendUnavailable

End = Callable[[Any, BaseException | None], None]
"""Takes a job's result, or its error."""

# At most as many jobs end before the loop reads what woke it; more would only wake it once again.
_WAKE_BYTES = 4096


class ThreadOutcomes:
    """The thread wakes the loop by a byte in a pipe. `call_soon_threadsafe` does it by a socket, which the loop reads
    until that raises: a lone append took half as long again on the loop.

    A loop that was closed meanwhile is told nothing more: `is_loop_closed` is for the thread to look at.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ended: deque[tuple[End, Any, BaseException | None]] = deque()
        self._wake_in = self._wake_out = -1
        self._has_thread_ended = False

    @property
    def is_loop_closed(self) -> bool:
        return self._loop.is_closed()

    # In the loop

    def start(self, thread: threading.Thread) -> None:
        """Start the thread. Raises `BackendUnavailable` where the process may open no more files, and `RuntimeError`
        where it may have no more threads."""
        try:
            self._wake_out, self._wake_in = os.pipe()
        except OSError as error:
            raise BackendUnavailable(
                f"a thread that SQLite needs cannot be heard, nothing was done: {error}; raise the limit of open files"
            ) from error
        self._loop.add_reader(self._wake_out, self._on_wake)
        try:
            thread.start()
        except BaseException:
            os.close(self._wake_in)
            self._over()
            raise

    def close(self) -> None:
        """Tell what is still to be told of a thread that has ended."""
        while self._wake_out != -1:
            self._on_wake()

    def _on_wake(self) -> None:
        os.read(self._wake_out, _WAKE_BYTES)
        # The end of the pipe tells nothing: a child of a fork has the other side of it, too.
        is_over = self._has_thread_ended
        while self._ended:
            on_end, result, error = self._ended.popleft()
            try:
                on_end(result, error)
            except Exception as failure:
                # The others must be told all the same.
                self._loop.call_exception_handler({"message": "the end of a job was not taken", "exception": failure})
        if is_over:
            self._over()

    def _over(self) -> None:
        self._loop.remove_reader(self._wake_out)
        os.close(self._wake_out)
        self._wake_out = -1

    # In the thread

    def tell(self, on_end: End, result: Any, error: BaseException | None) -> None:
        """Have a job's end called in the loop."""
        self._ended.append((on_end, result, error))
        os.write(self._wake_in, b"\0")

    def end(self) -> None:
        """The last that the thread does."""
        if self._loop.is_closed():
            # Nobody reads it any more.
            os.close(self._wake_out)
        self._has_thread_ended = True
        with suppress(BrokenPipeError):  # The loop has just seen it, by the byte before.
            os.write(self._wake_in, b"\0")
        os.close(self._wake_in)


def settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """The end of a job that a future stands for."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
