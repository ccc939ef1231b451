"""Times out of the journal, for those on which nothing rests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = (datetime.max.replace(tzinfo=UTC) - _EPOCH_START) // timedelta(microseconds=1)


def nearest_time(microseconds: int) -> datetime:
    """The time so long after the beginning of 1970, or the nearest that there is.

    A snapshot or an outcome whose time is damaged is as good as any other: nobody decides by that time.
    """
    return _EPOCH_START + timedelta(microseconds=max(0, min(microseconds, _LATEST)))
