"""Supervision: what becomes of an actor that failed."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from eventstore.errors import DefinitionError


@dataclass(frozen=True, slots=True)
class Restart:
    """Rebuild the actor from the journal, after a pause that doubles with every failure.

    Its mailbox is kept; commands wait for the restart as long as their askers do. More than `max_restarts` failures
    within `window_seconds` stop it; failures older than the window are forgotten. None: it is never given up.
    """

    first_pause_seconds: float = 0.05
    longest_pause_seconds: float = 30.0
    max_restarts: int | None = None
    window_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.first_pause_seconds <= self.longest_pause_seconds or self.window_seconds <= 0:
            raise DefinitionError("Restart: 0 <= first_pause_seconds <= longest_pause_seconds and window_seconds > 0")


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the actor: it answers every command with `ActorStopped` until `ActorRef.restart` is called."""


Supervision = Restart | Stop
"""Set it on the class: `supervision = Restart(max_restarts=5)`."""

_MAX_REMEMBERED_FAILURES = 32


class FailureRecord:
    """The recent failures of one actor. It outlives the actor's stay in memory."""

    __slots__ = ("count", "last", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque(maxlen=_MAX_REMEMBERED_FAILURES)
        self.count = 0
        self.last: BaseException | None = None

    def pause_after(self, error: BaseException, policy: Supervision) -> float | None:
        """Record a failure. Returns the seconds to wait before the restart, or None to stop the actor."""
        now = time.monotonic()
        self.last = error
        self.count += 1
        if isinstance(policy, Stop):
            return None
        while self.times and now - self.times[0] > policy.window_seconds:
            self.times.popleft()
        self.times.append(now)
        recent = len(self.times)
        if policy.max_restarts is not None and recent > policy.max_restarts:
            return None
        return float(min(policy.first_pause_seconds * 2 ** (recent - 1), policy.longest_pause_seconds))

    def is_forgotten(self, policy: Supervision) -> bool:
        """Whether the last failure is so long ago that the record says nothing any more."""
        window = policy.window_seconds if isinstance(policy, Restart) else float("inf")
        return not self.times or time.monotonic() - self.times[-1] > window
