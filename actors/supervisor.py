"""Supervisor: what the actors of one system failed of lately, and what becomes of them."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from operator import itemgetter
from typing import NamedTuple

from actors.supervision import Restart, Resume, Stop, Supervision, policy_for

# Failed actors that are remembered, the newest: of what fails beyond that, counts and pauses begin anew.
_RECORDS = 10_000

# Those of them that the figures name.
NAMED_ACTORS = 1_000

# After so many doublings the pause has long been at its longest.
_DOUBLINGS = 32

# How long a failure shows that led to no pause, and so is in no window.
_SHOWN_SECONDS = 60.0

# What is kept of an error's text: it may hold a whole document.
_TEXT_LENGTH = 500


class Failure(NamedTuple):
    """That an actor failed. `error` is the error's type and text, such as "ValueError: broken"."""

    stream_id: str
    error: str
    at: datetime


class Verdict(NamedTuple):
    """What becomes of an actor that failed, and the seconds to wait before it."""

    policy: Resume | Restart | Stop
    pause: float = 0.0


class Supervisor:
    """Decides about failures. It remembers them beyond an actor's stay in memory.

    `parent` is the policy that actors escalate to. The figures may be read in any thread.
    """

    def __init__(self, parent: Supervision) -> None:
        self._parent = parent
        self._records: dict[str, _Record] = {}
        self.restarts = 0
        self.last_failure: Failure | None = None

    def decide(self, stream_id: str, error: BaseException, policy: Supervision) -> Verdict:
        """Record a failure, and say what becomes of the actor. Too many restarts are a `Stop`."""
        # Taken out and put in again: the first is then the one that has not failed for the longest time.
        record = self._records.pop(stream_id, None)
        if record is None or record.matters_until <= time.monotonic():
            record = _Record()
        if len(self._records) >= _RECORDS:
            del self._records[next(iter(self._records))]
        self._records[stream_id] = record
        record.count += 1
        record.last = described(error)
        self.last_failure = Failure(stream_id, record.last, datetime.now(UTC))
        verdict = record.decide(policy_for(error, policy, self._parent))
        if isinstance(verdict.policy, Restart):
            self.restarts += 1
        return verdict

    def pause_left(self, stream_id: str) -> float:
        """How long an actor that comes to life again must still wait after its last failure."""
        record = self._records.get(stream_id)
        return 0.0 if record is None else max(0.0, record.not_before - time.monotonic())

    def failures(self) -> dict[str, tuple[int, str]]:
        """Count and last error of every actor that failed lately."""
        return {stream_id: (record.count, record.last) for stream_id, record in self._newest()}

    def restarted(self) -> dict[str, int]:
        """How often every actor was restarted that was so lately, the most often restarted first."""
        counts = ((stream_id, record.restarts) for stream_id, record in self._newest() if record.restarts)
        return dict(sorted(counts, key=itemgetter(1), reverse=True))

    def forgive(self, stream_id: str) -> None:
        """Forget an actor's failures."""
        self._records.pop(stream_id, None)

    def forget_old(self) -> None:
        """Forget the failures that no window holds any more."""
        now = time.monotonic()
        for stream_id, record in list(self._records.items()):
            if record.matters_until <= now:
                del self._records[stream_id]

    def _newest(self) -> list[tuple[str, _Record]]:
        now = time.monotonic()
        # A list is made in one step, whatever other threads do.
        newest = list(self._records.items())[-NAMED_ACTORS:]
        return [(stream_id, record) for stream_id, record in newest if record.matters_until > now]


class _Record:
    __slots__ = ("count", "last", "matters_until", "not_before", "restarts", "times")

    def __init__(self) -> None:
        # Each policy counts what it decided itself: three restarts after a KeyError say nothing of an OSError.
        self.times: dict[Restart, list[float]] = {}
        self.count = 0
        self.restarts = 0
        # The text, not the error: its traceback holds on to the failed actor's state.
        self.last = ""
        self.not_before = 0.0
        self.matters_until = 0.0

    def decide(self, policy: Resume | Restart | Stop) -> Verdict:
        now = time.monotonic()
        match policy:
            case Resume():
                self.matters_until = max(self.matters_until, now + _SHOWN_SECONDS)
                return Verdict(policy)
            case Stop():
                self.matters_until = math.inf
                return Verdict(policy)
            case Restart():
                return self._restart(policy, now)

    def _restart(self, policy: Restart, now: float) -> Verdict:
        times = self.times.setdefault(policy, [])
        times.append(now)
        while now - times[0] > policy.window_seconds or len(times) > max(_DOUBLINGS, (policy.max_restarts or 0) + 1):
            del times[0]
        recent = len(times)
        if policy.max_restarts is not None and recent > policy.max_restarts:
            self.matters_until = math.inf
            return Verdict(Stop())
        self.restarts += 1
        pause = min(policy.first_pause_seconds * 2.0 ** (recent - 1), policy.longest_pause_seconds)
        self.not_before = now + pause
        self.matters_until = max(self.matters_until, now + policy.window_seconds)
        return Verdict(policy, pause)


def described(error: BaseException) -> str:
    """An error's type and text, bounded and as UTF-8 takes it. It never raises, whatever the error's own class does."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be made)"
    if len(text) > _TEXT_LENGTH:
        text = f"{text[:_TEXT_LENGTH]}…"
    # Half a surrogate pair, as in the name of a file, would break whoever writes it out.
    text = text.encode(errors="backslashreplace").decode()
    return f"{type(error).__name__}: {text}"
