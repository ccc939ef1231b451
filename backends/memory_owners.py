"""Owners: the processes that own streams of a memory journal, and their leases."""

from __future__ import annotations

import time
from typing import NamedTuple

from eventstore.backend import Holder, Owner, OwnerInfo
from eventstore.errors import LeaseLost


class _Running(NamedTuple):
    """A lease as it was last renewed, on this process's monotonic clock: all that use it are in this process."""

    owner: Owner
    renewals: int
    ends_at: float
    report: bytes

    @property
    def remaining(self) -> float:
        return self.ends_at - time.monotonic()


class Owners:
    """Leases are renewed in one thread while they are looked at in another.

    So each step is one operation on a dict with a value that never changes, which the interpreter does not interrupt.
    """

    def __init__(self) -> None:
        self._leases: dict[bytes, _Running] = {}

    def renew(self, owner: Owner, report: bytes) -> None:
        known = self._leases.get(owner.id)
        renewals = 1 if known is None else known.renewals + 1
        self._leases[owner.id] = _Running(owner, renewals, time.monotonic() + owner.seconds, report)

    def end(self, owner: Owner) -> None:
        self._leases.pop(owner.id, None)

    def check(self, owner_id: bytes) -> None:
        """Raise `LeaseLost` unless the owner's lease runs."""
        lease = self._leases.get(owner_id)
        if lease is None or lease.remaining <= 0:
            raise LeaseLost("this process holds no lease that runs: nothing was claimed")

    def holder(self, owner_id: bytes) -> Holder | None:
        """Who holds the streams of an owner. None once its lease has run out or ended."""
        lease = self._leases.get(owner_id)
        if lease is None or (remaining := lease.remaining) <= 0:
            return None
        return Holder(owner_id, lease.owner.name, lease.renewals, lease.owner.seconds, remaining)

    def listed(self) -> list[OwnerInfo]:
        infos = [
            OwnerInfo(lease.owner.id, lease.owner.name, lease.renewals, lease.remaining, lease.report)
            for lease in list(self._leases.values())
        ]
        return sorted(infos, key=lambda info: (info.name, info.id))


class MemoryLease:
    def __init__(self, owners: Owners, owner: Owner) -> None:
        self._owners = owners
        self._owner = owner

    async def renew(self, report: bytes) -> None:
        self._owners.renew(self._owner, report)

    async def end(self) -> None:
        self._owners.end(self._owner)
