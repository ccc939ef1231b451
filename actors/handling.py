"""Handling: a run of code that waits for actors. A circle of these would wait for ever."""

from __future__ import annotations

import contextvars
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Protocol

from eventstore.errors import AskCycle


class Awaited(Protocol):
    """An actor, as far as waiting is concerned. `handling` is what must end before it serves anybody else."""

    stream_id: str
    handling: Handling | None


class Handling:
    """One run of an actor's async handler or `recovered` hook, or one transaction, which keeps several actors waiting.

    `asking` are the actors it waits for. `parent` is the run within which a transaction was begun: that one waits for
    whatever the transaction waits for.
    """

    __slots__ = ("asking", "is_over", "parent")

    def __init__(self) -> None:
        self.asking: list[Awaited] = []
        self.is_over = False
        self.parent: Handling | None = None

    @contextmanager
    def waiting_for(self, target: Awaited) -> Generator[None]:
        """Count as one that waits for the target. If that waits, in turn, for this run to end, a transaction in between
        gives way; where there is none, raises `AskCycle`."""
        lineage = list(self.lineage())
        while circle := self.circle(target):
            others = [actor.handling for actor in circle if actor.handling not in lineage]
            if not any(other is not None and other.give_way() for other in others):
                raise AskCycle([actor.stream_id for actor in (*circle, target)])
        for handling in lineage:
            handling.asking.append(target)
        try:
            yield
        finally:
            for handling in lineage:
                handling.asking.remove(target)

    def circle(self, target: Awaited) -> list[Awaited]:
        """The actors by which the target waits, directly or through others, for this run to end; none if it does not.

        The first is the target, the last is one that this run keeps waiting.
        """
        own = list(self.lineage())
        seen: set[int] = set()
        paths: list[list[Awaited]] = [[target]]
        while paths:
            path = paths.pop()
            handling = path[-1].handling
            if handling is None or id(path[-1]) in seen:
                continue
            if any(ours in own for ours in handling.lineage()):
                return path
            seen.add(id(path[-1]))
            paths.extend([*path, waited_for] for waited_for in handling.asking)
        return []

    def give_way(self) -> bool:
        """End now, so that others need not wait for it. Returns whether it does: only what can be run again may."""
        return False

    def lineage(self) -> Iterator[Handling]:
        """This run, and those it is a part of."""
        handling: Handling | None = self
        while handling is not None:
            yield handling
            handling = handling.parent


serving: contextvars.ContextVar[Handling | None] = contextvars.ContextVar("eventstore_serving", default=None)
"""The run that this context belongs to."""

deciding: contextvars.ContextVar[object] = contextvars.ContextVar("eventstore_deciding", default=None)
"""What marks the one run of an async handler that this context is a part of, which nothing is that an earlier one has
left running."""


def current_handling() -> Handling | None:
    """The run that the present code is a part of, if it is not over."""
    handling = serving.get()
    return None if handling is None or handling.is_over else handling
