"""Who may write to a stream alone, and for how long."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Owner(NamedTuple):
    """A process that may own streams. `id` is 16 bytes, new for each start; `name` is for people.

    Its lease runs out `seconds` after it was last renewed, by the database's clock.
    """

    id: bytes
    name: str
    seconds: float


class Claim(NamedTuple):
    """A wish to write to a stream alone, from its next epoch on.

    An `owner` gets it if nobody else with a lease that runs has it, or if that one's lease was renewed `lapsed` times
    and no more: who watched that for the length of the lease has seen it run out, whatever the database's clock says.
    Without an owner the epoch is raised unconditionally, and nobody owns the stream then.
    """

    stream_id: str
    owner: bytes | None = None
    lapsed: int | None = None


class Holder(NamedTuple):
    """Who owns a stream that was claimed in vain. `remaining` are the seconds until the lease runs out."""

    owner: bytes
    name: str
    renewals: int
    seconds: float
    remaining: float


class OwnerInfo(NamedTuple):
    """A process as its lease describes it. `remaining` seconds below 0 say for how long the lease has run out.

    `report` is what it says about itself, as JSON.
    """

    id: bytes
    name: str
    renewals: int
    remaining: float
    report: bytes


class Holding(NamedTuple):
    """A stream that an owner has claimed and not released. The owner's lease may have run out, or be gone."""

    stream_id: str
    epoch: int
    owner: bytes


class Lease(Protocol):
    """One owner's lease, on a connection of its own. It is used in another thread's event loop than the backend's, so
    that a loop that is kept busy does not let it run out. It is ended before the backend is closed."""

    async def renew(self, report: bytes) -> None:
        """Begin the lease, or let it run anew from now. Raises as every call does; then it runs on as it was."""
        ...

    async def end(self) -> None:
        """Give up the lease, and with it every stream the owner holds, listed or not. Then let go of the connection."""
        ...
