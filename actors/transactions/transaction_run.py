"""TransactionRun: a transaction as one that waits for actors, and keeps others waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.cells.cell import Cell
from actors.cells.mailbox import Hold
from actors.handling import Handling
from eventstore.errors import AskCycle, EventStoreError, TransactionOvertaken


class TransactionRun(Handling):
    """Takes actors one after the other. Nobody waits in a circle: of the transactions in it, the youngest ends.

    Of two transactions, the older has the lower `age`. `abort` ends the transaction.
    """

    __slots__ = ("_abort", "_hold", "age")

    def __init__(self, age: int, abort: Callable[[EventStoreError], None]) -> None:
        super().__init__()
        self.age = age
        self._abort = abort
        self._hold: Hold | None = None

    async def take(self, cell: Cell, *, has_statements: bool) -> None:
        """Have an actor alone. Raises `TransactionOvertaken`, or `AskCycle` for one that can never be had from here."""
        if cell.hold_at_once(self):
            return
        self._clear_the_way(cell)
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hold = hold = Hold(granted, self, self.age)
        try:
            with cell.queued(hold):
                if not granted.done():
                    if has_statements and not cell.only_reads_before(hold):
                        # Whoever has the actor may wait in the database for what these statements hold.
                        raise TransactionOvertaken(
                            cell.stream_id, "it has begun statements, and others have that actor; ask the actors first"
                        )
                    with self.waiting_for(cell):
                        await granted
                granted.result()
        finally:
            self._hold = None

    def end_wait(self, reason: EventStoreError) -> None:
        """The transaction has ended: whoever waits for an actor need not any more."""
        hold, self._hold = self._hold, None
        granted = None if hold is None else hold.reply
        if granted is not None and not granted.done():
            granted.set_exception(reason)
            # Whoever waited may have been cancelled at this moment.
            granted.exception()

    def give_way(self) -> bool:
        if self._hold is None:
            return False
        self._abort(_overtaken(self.asking[-1].stream_id))
        return True

    def _clear_the_way(self, cell: Cell) -> None:
        while circle := self.circle(cell):
            closing = circle[-1].handling
            if closing is None or self not in closing.lineage():
                raise AskCycle([actor.stream_id for actor in (*circle, cell)])
            runs = (actor.handling for actor in circle)
            waiting = [run for run in runs if isinstance(run, TransactionRun) and run._hold is not None]
            youngest = max([self, *waiting], key=lambda run: run.age)
            if youngest is self:
                raise _overtaken(cell.stream_id)
            youngest.give_way()


def _overtaken(stream_id: str) -> TransactionOvertaken:
    return TransactionOvertaken(stream_id, "an older one waits for what it holds")
