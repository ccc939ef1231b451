"""StoppedActors: who was stopped by supervision, and after what. Nothing else is kept of them in memory."""

from __future__ import annotations

import logging

from eventstore.errors import ActorStopped

logger = logging.getLogger(__name__)

# An id and a text of at most 500 characters each: some megabytes.
_MOST = 10_000


class StoppedActors:
    """The newest 10,000. Beyond that the one that was stopped longest ago serves again, with its next command.

    It may be read in any thread.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._texts: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, stream_id: str, text: str) -> None:
        """Keep that an actor was stopped, and the text of what it was stopped after."""
        if len(self._texts) >= self._most:
            oldest = next(iter(self._texts))
            del self._texts[oldest]
            logger.warning(
                "%d actors are stopped, more are not kept: %r, stopped longest ago, serves again", self._most, oldest
            )
        self._texts[stream_id] = text

    def remove(self, stream_id: str) -> bool:
        """Let an actor serve again. Returns whether it was stopped."""
        return self._texts.pop(stream_id, None) is not None

    def check(self, stream_id: str) -> None:
        """Raises `ActorStopped` for one of them."""
        text = self._texts.get(stream_id)
        if text is not None:
            raise stopped_after(stream_id, text)

    def ids(self) -> list[str]:
        """All of them, the newest last."""
        # A list is made in one step, whatever other threads do.
        return list(self._texts)


def stopped_after(stream_id: str, text: str) -> ActorStopped:
    """What a command to a stopped actor is answered with."""
    return ActorStopped(
        f"actor {stream_id!r} was stopped after {text}; when the cause is gone, call restart() on its reference"
    )
