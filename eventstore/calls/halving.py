"""Halving: whether those who append and wait for each other had better be kept in two groups."""

from __future__ import annotations

import time

# Fewer batches are not worth two commits.
MIN_HALVED = 16


class Halving:
    """Finds out, from one commit to the next, whether one half should be committed while the other half decides.

    What a commit costs whatever is in it is paid twice as often with halves. So that fixed part must be less than the
    loop's work for both; and a commit takes that part and about as long for its rows as the loop does.
    """

    __slots__ = ("_worked_seconds", "pays")

    def __init__(self) -> None:
        self.pays = False
        self._worked_seconds: float | None = None

    def measure(self, count: int, committed_seconds: float) -> None:
        """So many batches were committed, and that took so long. Called in the event loop's thread."""
        if count < MIN_HALVED // 2:
            self.pays, self._worked_seconds = False, None
            return
        before, self._worked_seconds = self._worked_seconds, time.thread_time()
        self.pays = before is not None and committed_seconds < 3 * (self._worked_seconds - before)

    def portion(self, waiting: int) -> int:
        """How many of those who wait a group should take, while nobody else's is under way."""
        return (waiting + 1) // 2 if self.pays and waiting >= MIN_HALVED else waiting
