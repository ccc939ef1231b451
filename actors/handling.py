"""Handling: an async handler that runs, and whom it waits for. A circle of these would wait for ever."""

from __future__ import annotations

import contextvars
from typing import Protocol

from eventstore.errors import AskCycle


class Handler(Protocol):
    """An actor, as far as waiting is concerned."""

    stream_id: str
    handling: Handling | None


class Handling:
    """One run of an actor's async handler or `recovered` hook. `asking` are the actors whose replies it waits for."""

    __slots__ = ("asking", "cell", "is_over")

    def __init__(self, cell: Handler) -> None:
        self.cell = cell
        self.asking: list[Handler] = []
        self.is_over = False

    def check_ask(self, target: Handler) -> None:
        """Raise `AskCycle` if the target waits, directly or through others, for this handler to end."""
        seen: set[int] = set()
        paths: list[list[Handler]] = [[target]]
        while paths:
            path = paths.pop()
            if path[-1] is self.cell:
                raise AskCycle([cell.stream_id for cell in (*path, target)])
            if id(path[-1]) in seen or path[-1].handling is None:
                continue
            seen.add(id(path[-1]))
            paths.extend([*path, waited_for] for waited_for in path[-1].handling.asking)


serving: contextvars.ContextVar[Handling | None] = contextvars.ContextVar("eventstore_serving", default=None)
"""The handler that this context belongs to."""
