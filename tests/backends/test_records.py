"""Times and ids of many rows at once are those of each."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from backends.records import times_of

START = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("last", [10**6, 2**32 * 10**6, 2**33 * 10**6, 250_000_000_000_000_000])
def test_times_are_exact_to_the_microsecond(last: int) -> None:
    chosen = random.Random(last)
    microseconds = [0, 1, last - 1, *(chosen.randrange(last) for _ in range(20_000))]
    assert times_of(microseconds) == [START + timedelta(microseconds=one) for one in microseconds]


def test_times_before_1970_are_exact_too() -> None:
    assert times_of([-1, -999_999, 5]) == [START + timedelta(microseconds=one) for one in (-1, -999_999, 5)]
