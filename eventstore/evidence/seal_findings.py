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
    """The truncation of a stream that reaches furthest: its number, and that of the seal that holds its record, if one
    does."""

    through: int
    number: int
    seal: int | None
