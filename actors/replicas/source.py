"""Source: another replica that is read, how far, and which of its actors' events are left for later."""

from __future__ import annotations

import random
from dataclasses import dataclass

from actors.replicas.members import Cursor
from actors.replicas.peer import Peer

LONGEST_PAUSE = 10.0
"""Seconds between two tries of what fails again and again."""


def pause_after(failures: int, seconds: float) -> float:
    """How long to wait for the next try, which is later each time, and never for all at once."""
    longest: float = min(LONGEST_PAUSE, seconds * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


@dataclass(slots=True)
class HeldBack:
    """Why an actor's events could not be merged, how often, and when it is tried again."""

    trouble: str
    failures: int
    due: float


class Source:
    """One other replica, and how it is going with it."""

    def __init__(self, name: str, peer: Peer) -> None:
        self.name = name
        self.peer = peer
        self.cursors: dict[str, Cursor] = {}
        self.ends: dict[str, int] = {}
        self.held_back: dict[str, HeldBack] = {}
        """By the actor's stream. From where its events are read again is in the cursor of its kind."""
        self.has_joined = False
        self.is_refused = False
        self.trouble: str | None = None
        self.merged = 0

    def refuse(self, reason: str) -> None:
        """Read nothing more from it."""
        self.is_refused = True
        self.trouble = reason

    def hold_back(self, stream_id: str, error: Exception, *, now: float, seconds: float) -> bool:
        """Note that an actor's events could not be merged. Returns whether they could before."""
        known = self.held_back.get(stream_id)
        failures = 1 if known is None else known.failures + 1
        trouble = str(error) or type(error).__name__
        self.held_back[stream_id] = HeldBack(trouble, failures, now + pause_after(failures, seconds))
        return known is None

    def is_due(self, stream_id: str, now: float) -> bool:
        """Whether an actor that was held back is to be tried again; at once, where that was before a restart."""
        known = self.held_back.get(stream_id)
        return known is None or known.due <= now
