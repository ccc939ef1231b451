"""RedisJournal: which journal a store has opened, and how much of it the store knows to be there."""

from __future__ import annotations

from backends.redis_connection import REVISION, Argument


class RedisJournal:
    """Every script is given this, and refuses a server that holds something else, or less, by now."""

    def __init__(self, key: bytes, identity: bytes) -> None:
        self.key = key
        self._identity = identity
        self._position = 0
        self._event_id = b""

    @property
    def position(self) -> int:
        """The highest position that is known to hold an event."""
        return self._position

    @property
    def arguments(self) -> list[Argument]:
        """What every script takes first."""
        return [self._identity, REVISION.encode(), self._position, self._event_id]

    def saw(self, position: int, event_id: bytes) -> None:
        """Remember an event that was acknowledged or read."""
        if position > self._position:
            self._position = position
            self._event_id = event_id
