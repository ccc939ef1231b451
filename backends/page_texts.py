"""A page of events as a database strings it together: one text for each column."""

from __future__ import annotations

SEPARATOR = "\x1e"
"""What stands between texts: JSON holds no control character but white space, and a stored name holds none."""


def names_of(types: str, count: int) -> list[str]:
    """The stored names of so many events. Raises nothing if there are more or fewer: the page's length tells."""
    first = types.partition(SEPARATOR)[0]
    alike = [first] * count
    return alike if types == SEPARATOR.join(alike) else types.split(SEPARATOR)
