"""Ownership: the streams that this process alone writes to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple
from uuid import uuid4

from actors.lease_keeper import LeaseKeeper
from eventstore.backend import Claim, Holder, Owner
from eventstore.errors import LeaseLost, OwnedElsewhere
from eventstore.store import EventStore

logger = logging.getLogger(__name__)

# A holder that was seen to renew within this part of its lease is alive: it renews three times as often.
_ALIVE_SHARE = 0.5
_LOOKS = 20
_LONGEST_PAUSE_SECONDS = 0.25
_REMEMBERED_HOLDERS = 1000


class _Seen(NamedTuple):
    """A holder's renewals, since when they are so many, and whether there were fewer before."""

    renewals: int
    since: float
    was_renewed: bool


class Ownership:
    """Claims streams under a lease of this process's own, and lets go of them.

    A claim raises the stream's epoch, and the store refuses every older one: that is what keeps histories apart. The
    lease only says who may claim, and until when its holder may answer without asking the store.
    """

    def __init__(self, store: EventStore, *, name: str, seconds: float, report: Callable[[], bytes]) -> None:
        self._store = store
        self._owner = Owner(uuid4().bytes, name, seconds)
        self._keeper = LeaseKeeper(store.lease(self._owner), seconds, report)
        self._seen: dict[bytes, _Seen] = {}
        self._released: dict[str, int] = {}

    def holds(self, lease: int) -> bool:
        """Whether what was claimed under a lease is still this process's, by its own clock."""
        keeper = self._keeper
        return time.monotonic() < keeper.ends_at and lease == keeper.number

    async def claim(self, stream_id: str) -> tuple[int, int]:
        """Take a stream's next epoch, and tell the number of the lease. A holder that has died is waited out.

        Raises `OwnedElsewhere` if another process holds it and lives, and `BackendUnavailable`.
        """
        lapsed: int | None = None
        deadline = time.monotonic() + self._owner.seconds
        while True:
            await self._keeper.held()
            lease = self._keeper.number
            try:
                answer = await self._store.claim_as(Claim(stream_id, self._owner.id, lapsed))
            except LeaseLost:
                # It ran out between the look and the claim, or the database's clock has jumped: until it is renewed.
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(min(self._owner.seconds / _LOOKS, _LONGEST_PAUSE_SECONDS))
                continue
            if not isinstance(answer, Holder):
                self._released.pop(stream_id, None)
                return answer, lease
            seen = self._look(answer)
            silent = time.monotonic() - seen.since
            if seen.was_renewed and silent < answer.seconds * _ALIVE_SHARE:
                raise OwnedElsewhere(stream_id, answer.name, answer.remaining)
            # Nobody's wall clock is needed to tell that this holder is gone.
            lapsed = seen.renewals if silent >= answer.seconds else None
            await asyncio.sleep(min(answer.seconds / _LOOKS, _LONGEST_PAUSE_SECONDS))

    def release(self, stream_id: str, epoch: int) -> bool:
        """Note that a stream is to be let go of. Returns whether `flush` must be called for it."""
        self._released[stream_id] = epoch
        return len(self._released) == 1

    async def flush(self) -> None:
        """Let go of the streams that were noted."""
        # One turn of the loop later, so that all that are noted in this one go together.
        await asyncio.sleep(0)
        while self._released:
            released, self._released = self._released, {}
            try:
                await self._store.release(self._owner.id, released)
            except Exception as error:
                # Whatever it is: what was noted meanwhile is let go of all the same.
                logger.warning("%d streams are not released before this process ends: %s", len(released), error)

    async def close(self) -> None:
        """End the lease, and with it every claim."""
        await self._keeper.close()

    def _look(self, holder: Holder) -> _Seen:
        before = self._seen.get(holder.owner)
        if before is None or before.renewals != holder.renewals:
            if len(self._seen) >= _REMEMBERED_HOLDERS:
                self._seen.clear()
            self._seen[holder.owner] = _Seen(holder.renewals, time.monotonic(), before is not None)
        return self._seen[holder.owner]
