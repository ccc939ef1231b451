"""Mailbox: the commands that wait for one actor, in order and bounded."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from actors.command import Command
from actors.command_identity import CommandIdentity
from actors.handling import Handling
from eventstore.errors import MailboxFull
from eventstore.events import Metadata


class Envelope:
    """A command in a mailbox, or one that was decided and waits for its events to be durable.

    `is_fresh` asks for a state that is the newest; `is_decided` says that an outcome of it is known to be stored;
    `is_apart` has it stored by itself, so that what refuses it refuses no other.
    """

    __slots__ = (
        "attempts",
        "command",
        "context",
        "error",
        "identity",
        "is_apart",
        "is_decided",
        "is_fresh",
        "metadata",
        "reply",
        "result",
    )

    def __init__(
        self,
        command: Command[Any] | None,
        reply: asyncio.Future[Any] | None,
        metadata: Metadata | None,
        context: contextvars.Context | None = None,
        identity: CommandIdentity | None = None,
    ) -> None:
        self.command = command
        self.reply = reply
        self.metadata = metadata
        self.context = context
        self.identity = identity
        self.is_fresh = False
        self.is_decided = False
        self.is_apart = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.attempts = 0

    def answer(self) -> None:
        """Give the asker the result, or the error, unless it has stopped waiting."""
        reply, error = self.reply, self.error
        if reply is None or reply.done():
            return
        if error is None:
            reply.set_result(self.result)
        elif isinstance(error, StopIteration):
            # A future refuses it, as a coroutine does (PEP 479).
            stopped = RuntimeError("a handler raised StopIteration")
            stopped.__cause__ = error
            reply.set_exception(stopped)
        else:
            reply.set_exception(error)
        # Its traceback leads back here: without the circle both are gone as soon as the asker has dealt with it.
        self.error = None


class Hold(Envelope):
    """A transaction's place in the queue. Its reply comes when the actor serves nobody else until it is released.

    Of two transactions, the older has the lower `age`.
    """

    __slots__ = ("age", "handling")

    def __init__(self, granted: asyncio.Future[None], handling: Handling, age: int) -> None:
        super().__init__(None, granted, None)
        self.handling = handling
        self.age = age


class Mailbox:
    """Made when the first command must wait, and let go when none does: an idle actor has none.

    Whoever cannot put a command in may wait for `room`.
    """

    __slots__ = ("_envelopes", "_limit", "_waiters")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._envelopes: deque[Envelope] = deque()
        self._waiters: dict[asyncio.Future[None], None] = {}

    def __len__(self) -> int:
        return len(self._envelopes)

    @property
    def is_full(self) -> bool:
        """Whether it holds as many commands as it may."""
        return len(self._envelopes) >= self._limit

    @property
    def first(self) -> Envelope:
        """The command that is next."""
        return self._envelopes[0]

    def put(self, envelope: Envelope, stream_id: str) -> None:
        """Keep a command behind the others. Raises `MailboxFull`."""
        if self.is_full:
            raise MailboxFull(f"actor {stream_id!r} has {self._limit} commands waiting: this one was not accepted")
        self._envelopes.append(envelope)

    def put_hold(self, hold: Hold, stream_id: str, *, is_bounded: bool) -> None:
        """Keep a transaction's place. Commands are served in their order, and transactions have their places among
        them by age, so that the oldest gets through. Raises `MailboxFull` if it is bounded."""
        if is_bounded:
            self.put(hold, stream_id)
        else:
            self._envelopes.append(hold)
        if len(self._envelopes) == 1:
            return
        places = [(index, held) for index, held in enumerate(self._envelopes) if isinstance(held, Hold)]
        by_age = sorted((held for _, held in places), key=lambda held: held.age)
        for (index, _), held in zip(places, by_age, strict=True):
            self._envelopes[index] = held

    def put_back(self, envelopes: Iterable[Envelope]) -> None:
        """Put commands that were accepted once before all others, whatever the bound."""
        self._envelopes.extendleft(reversed(list(envelopes)))

    def take(self) -> Envelope:
        """Remove the first command; one who waits for room may try."""
        envelope = self._envelopes.popleft()
        self._release(1)
        return envelope

    def empty(self) -> Iterator[Envelope]:
        """Remove every command, and let everyone who waits for room try."""
        while self._envelopes:
            yield self._envelopes.popleft()
        self.close()

    def close(self) -> None:
        """There is room for everyone: this mailbox is let go."""
        self._release(len(self._waiters))

    def room(self, waiter: asyncio.Future[None]) -> asyncio.Future[None]:
        """Have a future done when there may be room again. Whoever gives up before `leaves` the queue."""
        self._waiters[waiter] = None
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> None:
        """Wait for room no longer."""
        self._waiters.pop(waiter, None)

    def _release(self, count: int) -> None:
        while count and self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            if not waiter.done():
                waiter.set_result(None)
                count -= 1
