"""Supervision: what becomes of an actor that failed."""

from __future__ import annotations

import math
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
        if self.max_restarts is not None and self.max_restarts < 0:
            raise DefinitionError("Restart: max_restarts is None, or 0 or more")


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the actor: it answers every command with `ActorStopped` until `ActorRef.restart` is called."""


Supervision = Restart | Stop
"""Set it on the class: `supervision = Restart(max_restarts=5)`."""

# After so many doublings the pause has long been at its longest.
_REMEMBERED_FAILURES = 32


class Supervisor:
    """The recent failures of a system's actors. It remembers them beyond an actor's stay in memory."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def pause_after(self, stream_id: str, error: BaseException, policy: Supervision) -> float | None:
        """Record a failure. Returns the seconds to wait before the restart, or None to stop the actor."""
        record = self._records.setdefault(stream_id, _Record())
        return record.pause_after(error, policy)

    def pause_left(self, stream_id: str) -> float:
        """How long an actor that comes to life again must still wait after its last failure."""
        record = self._records.get(stream_id)
        return 0.0 if record is None else max(0.0, record.not_before - time.monotonic())

    def failures(self) -> dict[str, tuple[int, str]]:
        """Count and last error of every actor that failed lately."""
        return {stream_id: (record.count, record.last) for stream_id, record in self._records.items()}

    def forgive(self, stream_id: str) -> None:
        """Forget an actor's failures."""
        self._records.pop(stream_id, None)

    def forget_old(self) -> None:
        """Forget the failures that no window holds any more."""
        now = time.monotonic()
        self._records = {key: record for key, record in self._records.items() if record.matters_until > now}


class _Record:
    __slots__ = ("count", "last", "matters_until", "not_before", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque()
        self.count = 0
        self.last = ""
        self.not_before = 0.0
        self.matters_until = 0.0

    def pause_after(self, error: BaseException, policy: Supervision) -> float | None:
        now = time.monotonic()
        # The text, not the error: its traceback holds on to the failed actor's state.
        self.last = f"{type(error).__name__}: {error}"
        self.count += 1
        if isinstance(policy, Stop):
            self.matters_until = math.inf
            return None
        while self.times and now - self.times[0] > policy.window_seconds:
            self.times.popleft()
        self.times.append(now)
        while len(self.times) > max(_REMEMBERED_FAILURES, (policy.max_restarts or 0) + 1):
            self.times.popleft()
        recent = len(self.times)
        if policy.max_restarts is not None and recent > policy.max_restarts:
            self.matters_until = math.inf
            return None
        pause = min(
            policy.first_pause_seconds * 2.0 ** min(recent - 1, _REMEMBERED_FAILURES), policy.longest_pause_seconds
        )
        self.not_before = now + pause
        self.matters_until = now + policy.window_seconds
        return pause
