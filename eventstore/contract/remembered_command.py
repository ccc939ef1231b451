"""What a stream remembers of the commands it was sent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple


class CommandLookup(NamedTuple):
    """A question for one stream's remembered commands: the outcome of one id, and with `recent` above 0 which ids
    there are, at most so many of them."""

    stream_id: str
    command_id: str
    recent: int = 0


class StoredCommand(NamedTuple):
    """A remembered outcome. `version` is that of the stream after the write it came with."""

    command_id: str
    fingerprint: bytes
    outcome_id: bytes
    is_rejection: bool
    payload: bytes
    version: int
    recorded_at: datetime


class CommandsFound(NamedTuple):
    """The answer to a `CommandLookup`, as one moment of the stream held it.

    Every remembered id that is greater than `known_above`, in the order of UTF-8 bytes, is in `recent`: "" says that
    these are all, None that nothing is known but the outcome itself. A command that was issued up to `forgotten`
    (`CommandOutcome.issued_at`) may have had an outcome that is no longer remembered; 0 says that none is.
    """

    outcome: StoredCommand | None
    recent: Sequence[str]
    known_above: str | None
    forgotten: int
