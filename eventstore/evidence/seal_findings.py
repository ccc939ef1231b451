"""Findings: where a journal is not what was sealed, and what that is."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Found(Enum):
    """What was found. All but `TRUNCATED` is tampering, or cannot be told from it."""

    TRUNCATED = "truncated"
    CHANGED = "changed"
    DELETED = "deleted"
    INSERTED = "inserted"
    MOVED = "moved"
    SEAL = "seal"
    REMOVAL = "truncation record"
    UNREADABLE = "unreadable"


class Finding(NamedTuple):
    """One place where the journal is not what was sealed, as far as it could be found out where that is. `tenant` is
    whose the stream is."""

    what: Found
    stream_id: str | None
    version: int | None
    position: int | None
    text: str
    tenant: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether it speaks against the journal."""
        return self.what is not Found.TRUNCATED


class Sanctioned(NamedTuple):
    """A truncation of a stream that was recorded: up to which version, its number, and that of the seal that holds its
    record, if one does."""

    through: int
    number: int
    seal: int | None

    def is_after(self, seal: int) -> bool:
        """Whether it can have removed what a seal covers. Who seals reads the records first, and then the events: what
        stands there although its removal was recorded was not removed by that."""
        return self.seal is None or self.seal > seal
