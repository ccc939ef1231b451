"""Times in microseconds since 1970, as databases have them, and as Python does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH_START = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = (datetime.max.replace(tzinfo=UTC) - EPOCH_START) // timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Since the beginning of 1970."""
    return (moment - EPOCH_START) // timedelta(microseconds=1)


def nearest_time(since_1970: int) -> datetime:
    """The time so long after the beginning of 1970, or the nearest that there is.

    A snapshot or an outcome whose time is damaged is as good as any other: nobody decides by that time.
    """
    return EPOCH_START + timedelta(microseconds=max(0, min(since_1970, _LATEST)))
