"""Appending: an append under way, for backends whose outcome comes by a callback of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from eventstore.backend import AppendOutcome


class Appending(asyncio.Future[Sequence[AppendOutcome]]):
    """`Backend.append` may return one. A future's callbacks run one turn of the loop after it is done, and such a turn
    is a fifth of what a lone append costs the loop. `on_end`, if set, is called at once; then nothing else need wait.
    """

    on_end: Callable[[Appending], None] | None = None

    def end(self, outcomes: Sequence[AppendOutcome] | None, error: BaseException | None) -> None:
        """Give it its outcomes, or its error."""
        if self.done():
            return
        if error is None:
            self.set_result(outcomes or ())
        else:
            self.set_exception(error)
        if self.on_end is not None:
            self.on_end(self)
