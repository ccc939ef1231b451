"""RedisJournal: which journal a store has opened, and how much of it the store knows to be there."""

from __future__ import annotations

from backends.redis_connection import REVISION, Argument


class RedisJournal:
    """Every script is given this, and refuses a server that holds something else, or less, by now."""

    def __init__(self, key: bytes, identity: bytes) -> None:
        self.key = key
        self.identity = identity
        # One object: a lease reads it from another thread, and an id at another's position would look like a loss.
        self._seen = (0, b"")

    @property
    def position(self) -> int:
        """The highest position that is known to hold an event."""
        return self._seen[0]

    @property
    def arguments(self) -> list[Argument]:
        """What every script takes first."""
        return [self.identity, REVISION.encode(), *self._seen]

    def saw(self, position: int, event_id: bytes) -> None:
        """Remember an event that was acknowledged or read."""
        if position > self._seen[0]:
            self._seen = (position, event_id)
