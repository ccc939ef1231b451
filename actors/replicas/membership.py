"""Membership: who takes part in replication, as the actors need to know it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eventstore.errors import ReplicationError
from eventstore.stamp import WallClock


class Membership(Protocol):
    """What a cell asks of the replication that it is a part of."""

    replica: str
    wall: WallClock
    page_timeout: float
    refusal: ReplicationError | None
    """Why this replica must not write any more."""

    @property
    def others(self) -> Sequence[str]:
        """The other replicas that take part."""
        ...

    @property
    def is_first(self) -> bool:
        """Whether this is the replica, of those that take part, that makes good what a merge broke."""
        ...
