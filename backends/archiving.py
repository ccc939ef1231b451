"""What every archive checks before it stores a page of another journal's log."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import orjson

from eventstore.contract.archive import ArchivePage, Fence, StreamKey
from eventstore.errors import CopyRefused, JournalCorrupt

COPIED, FENCE = "copied", "fence"
"""The names of marks."""

TRUNCATED = "copied: its source was truncated"
"""The reason of a removal that a copy makes."""

LOG_END = "copied: the log of its source ended here, behind its last event"
"""The reason of a removal that removes nothing, and keeps the end of the log."""


def check_copy(copied: int | None, *, after: int, end: int, is_empty: bool) -> None:
    """Raise `CopyRefused` unless a journal is a copy up to a position and no more, or empty and none yet."""
    if copied is None:
        if not is_empty:
            raise CopyRefused(
                "the target holds a journal of its own, and is no copy: nothing was stored; copy into an empty journal"
            )
        copied = 0
    if end > copied:
        raise CopyRefused(
            f"the target is a copy up to position {copied}, and its log ends at {end}: somebody has written to it, so "
            "it is no copy any more; nothing was stored, copy into an empty journal"
        )
    if copied != after:
        raise CopyRefused(
            f"the target is a copy up to position {copied} by now, not {after}: is another copy running? Nothing was "
            "stored by this one"
        )


def truncations(page: ArchivePage, versions: Mapping[StreamKey, int]) -> dict[StreamKey, int]:
    """Which streams are to be truncated, and up to which version, before a page's events are stored behind the versions
    that they have. Raises `JournalCorrupt` for versions that do not follow each other."""
    found: dict[StreamKey, int] = {}
    last = dict(versions)
    for event in page.events:
        key = event.key
        before = last.get(key, 0)
        if event.version != before + 1:
            if event.version <= before or page.truncated[key] < event.version - 1:
                raise JournalCorrupt(
                    f"version {event.version} follows {before}: not copied; run `eventstore verify` on the source",
                    stream_id=event.stream_id,
                    version=event.version,
                    position=event.position,
                )
            found[key] = event.version - 1
        last[key] = event.version
    return found


def packed_fence(fence: Fence) -> str:
    return orjson.dumps({"reason": fence.reason, "fenced_at": fence.fenced_at.astimezone(UTC)}).decode()


def unpacked_fence(value: str | bytes) -> Fence:
    found = orjson.loads(value)
    return Fence(found["reason"], datetime.fromisoformat(found["fenced_at"]))


def checked_reason(reason: str) -> str:
    """A reason as a database's trigger can hold it. Raises `ValueError`."""
    if not reason or len(reason) > 500 or not reason.isprintable():
        raise ValueError("a fence's reason is 1 to 500 printable characters")
    return reason
