"""DeadLetters: the told commands that failed. Nobody waits for their replies, so here is where it shows."""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from actors.command import Command
from actors.supervisor import described
from eventstore.errors import DefinitionError

logger = logging.getLogger(__name__)


class DeadLetter(NamedTuple):
    """A command that was told to an actor, accepted, and then failed.

    `error` is the error's type and text, `error_type` the name of its type alone. The error itself is not kept: its
    traceback would keep the failed actor's state alive.
    """

    stream_id: str
    command: Command[Any]
    error: str
    error_type: str
    at: datetime
    command_id: str | None = None


class DeadLetters:
    """The newest `limit` dead letters of a system, and the count of all. They live in memory only."""

    def __init__(self, limit: int, on_dead_letter: Callable[[DeadLetter], object] | None = None) -> None:
        if not isinstance(cast("object", limit), int) or limit < 0:
            raise DefinitionError(f"ActorSystem: dead_letters is how many are kept, 0 or more, not {limit!r}")
        if on_dead_letter is not None and not callable(cast("object", on_dead_letter)):
            raise DefinitionError(f"ActorSystem: on_dead_letter is a function, not {on_dead_letter!r}")
        if inspect.iscoroutinefunction(on_dead_letter):
            raise DefinitionError("ActorSystem: on_dead_letter is a plain function; let it start a task of your own")
        self._kept: deque[DeadLetter] = deque(maxlen=limit)
        self._on_dead_letter = on_dead_letter
        self.count = 0

    def add(self, stream_id: str, command: Command[Any], error: BaseException, command_id: str | None = None) -> None:
        """Keep one more, and tell whoever wants to know."""
        letter = DeadLetter(stream_id, command, described(error), type(error).__name__, datetime.now(UTC), command_id)
        self.count += 1
        self._kept.append(letter)
        if self._on_dead_letter is None:
            return
        try:
            self._on_dead_letter(letter)
        except Exception:
            logger.exception("on_dead_letter failed for a %s to %r", type(command).__name__, stream_id)

    @property
    def dropped(self) -> int:
        """How many are not kept any more, because newer ones came."""
        return self.count - len(self._kept)

    def kept(self) -> list[DeadLetter]:
        """Those that are kept, the oldest first."""
        return list(self._kept)
