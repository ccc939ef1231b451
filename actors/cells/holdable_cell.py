"""HoldableCell: an actor that a transaction, or a merge, has for itself from its `Hold` on until it is released."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from actors.actor import PersistentActor
from actors.cells.living_cell import LivingCell
from actors.cells.mailbox import Hold
from actors.cells.phase import Phase
from actors.handling import Handling
from eventstore.backend import CommandOutcome


class HoldableCell(LivingCell):
    """An actor that serves nobody else meanwhile."""

    __slots__ = ()

    @contextmanager
    def queued(self, hold: Hold) -> Generator[asyncio.Future[Any]]:
        """Have a transaction's place in the queue, in a block that waits for its turn.

        A block that raises gives it up, or the actor if that was given to it at this moment. Raises as `accept` does.
        """
        granted = cast("asyncio.Future[Any]", hold.reply)
        try:
            self.accept(hold)
            yield granted
        except BaseException:
            # What is done is passed over in the queue: nobody must be given an actor who has gone.
            if not granted.cancel() and not granted.cancelled() and granted.exception() is None:
                self.release()
            raise

    def _begin_hold(self, hold: Hold) -> bool:
        granted = cast("asyncio.Future[Any]", hold.reply)
        if granted.done():
            return False  # Whoever wanted it has given up.
        self._hold_for(hold.handling)
        granted.set_result(None)
        return True

    def _hold_for(self, handling: Handling) -> None:
        self.phase = Phase.HELD
        self.is_ready = False
        self.handling = handling

    def only_reads_before(self, hold: Hold) -> bool:
        """Whether the actor only has to be read from the journal before it serves a transaction that waits."""
        mailbox = self._mailbox
        is_next = mailbox is not None and len(mailbox) > 0 and mailbox.first is hold
        # To own it is a write, and its hooks may ask others for some.
        cls, plain = self.cls, cast("type[PersistentActor[Any]]", PersistentActor)
        is_plain = cls.recovered is plain.recovered and cls.after_restart is plain.after_restart
        return is_next and self.phase is Phase.RECOVERING and is_plain and not self._runtime.is_exclusive(cls)

    def hold_at_once(self, handling: Handling) -> bool:
        """Give a transaction the actor without a place in its queue, if it is idle. Returns whether it was."""
        if not self.is_idle or self._runtime.is_shut:
            return False
        if self.epoch is not None and not self._runtime.owns_streams(self.lease):
            return False
        self._hold_for(handling)
        return True

    def stored(self, before: int, outcome: CommandOutcome | None) -> None:
        """The journal has what the transaction decided on a version, and the outcome of it under its id."""
        self._pipeline.sent_version = self.version
        snapshot = self._pipeline.due_snapshot(before)
        if snapshot is not None:
            self._runtime.save_snapshot(self, self.version, snapshot)
        if outcome is not None:
            self._remember(outcome)
            self._runtime.command_remembered(self, outcome)

    def release(self, failure: BaseException | None = None) -> None:
        """The transaction is over: serve the others; with a failure, from the state that the journal has."""
        if self.phase is not Phase.HELD:
            return  # The system was closed meanwhile.
        self.phase = Phase.LIVE
        self.handling = None
        self._failure = self._failure or failure
        self._after_failure()
        if sys.exception() is None:
            self.pump()
        else:
            # What is raised for others from here on would carry the error that ended the transaction as its context.
            self._runtime.loop.call_soon(self.pump)
