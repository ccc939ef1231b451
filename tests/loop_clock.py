"""LoopClock: the event loop's clock, which a test may put forward."""

from __future__ import annotations

import asyncio

# More than anybody here needs who waits for no database.
_TURNS = 30


class LoopClock:
    """A time that is to run out, or must not, is then so long that no busy machine matters, and nobody waits for it.

    Everything that the loop times is put forward with it, so nothing that waits for a server may be under way.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ahead = 0.0
        time = loop.time
        loop.time = lambda: time() + self._ahead  # type: ignore[method-assign]

    async def forward(self, seconds: float) -> None:
        """Let everybody come to where they wait, put the clock forward, and let happen what is due then."""
        await _turns()
        self._ahead += seconds
        await _turns()

    async def forward_after(self, event: asyncio.Event, seconds: float) -> None:
        await event.wait()
        await self.forward(seconds)


async def _turns() -> None:
    for _ in range(_TURNS):
        await asyncio.sleep(0)
