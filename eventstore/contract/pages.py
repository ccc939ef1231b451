"""What a reader gets at a time, of the whole log or of one stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from eventstore.errors import InvalidArgument
from eventstore.events import RecordedEvent

MAX_POSITION = 2**63 - 1
"""The greatest position, version or count that databases hold."""


class LogPage(NamedTuple):
    """Part of the whole log, in position order.

    The `events` may be a `RecordPage`, which makes records when they are looked at; all were checked before. `position`
    is how far the log has been looked through: the next page starts after it, even when the filter let nothing pass.
    `is_end` says that there was no more when the page was read, and `end` where the log ended then.
    """

    events: Sequence[RecordedEvent]
    position: int
    is_end: bool
    end: int


class Moved(NamedTuple):
    """Which streams got events in a part of the log that ends at `position`, and their versions at the newest of these.

    `is_end` says that the log had no more when it was looked at.
    """

    versions: Mapping[str, int]
    position: int
    is_end: bool


class StreamPage(NamedTuple):
    """Part of one stream. `version` is the stream's version when the page was read, whatever the range was; 0 if
    the stream does not exist. `truncated` is the version up to which events were removed."""

    events: Sequence[RecordedEvent]
    version: int
    truncated: int


def checked_page_size(page_size: int) -> int:
    """Return it, or raise `InvalidArgument`: pages of nothing would never come to an end."""
    if page_size < 1:
        raise InvalidArgument(f"page_size is how many are read at a time, 1 or more, not {page_size}")
    return page_size


def checked_limit(limit: int | None, name: str = "limit") -> int | None:
    """Return it, or raise `InvalidArgument`: what is below nothing is a slip, and each database would take it for
    something else."""
    if limit is not None and limit < 0:
        raise InvalidArgument(f"{name} is how many may come at most, 0 or more, not {limit}")
    return limit


def held(number: int) -> int:
    """A version, a position or a count as databases can be asked for it: they hold none below 0, and no greater one."""
    return max(0, min(number, MAX_POSITION))
