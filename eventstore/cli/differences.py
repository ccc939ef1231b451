"""Differences between two states, as JSON."""

from __future__ import annotations

import json
from math import isnan

from pydantic import JsonValue

_LONGEST_VALUE = 60


def first_difference(stored: JsonValue, folded: JsonValue, path: str = "$") -> str | None:
    """Where two parsed JSON values first differ, in words; None if they mean the same.

    The order of an object's members means nothing, and 1 is 1.0: a state may hold either, before and after it was read
    from a snapshot.
    """
    match stored, folded:
        case dict(), dict():
            return _between_objects(stored, folded, path)
        case list(), list():
            return _between_arrays(stored, folded, path)
        case _:
            if _is_same(stored, folded):
                return None
            return f"{path} is {_shown(stored)} in it, {_shown(folded)} when replayed"


def without_order(value: JsonValue) -> JsonValue:
    """The value with every array sorted: a set's members come in any order."""
    if isinstance(value, dict):
        return {name: without_order(member) for name, member in value.items()}
    if isinstance(value, list):
        return sorted(map(without_order, value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def _between_objects(stored: dict[str, JsonValue], folded: dict[str, JsonValue], path: str) -> str | None:
    for name, value in stored.items():
        if name not in folded:
            return f"{path}.{name} is in it, and not there when replayed"
        if (found := first_difference(value, folded[name], f"{path}.{name}")) is not None:
            return found
    for name in folded:
        if name not in stored:
            return f"{path}.{name} is not in it, and there when replayed"
    return None


def _between_arrays(stored: list[JsonValue], folded: list[JsonValue], path: str) -> str | None:
    for index, (one, other) in enumerate(zip(stored, folded, strict=False)):
        if (found := first_difference(one, other, f"{path}[{index}]")) is not None:
            return found
    if len(stored) != len(folded):
        return f"{path} has {len(stored)} items in it, {len(folded)} when replayed"
    return None


def _is_same(stored: JsonValue, folded: JsonValue) -> bool:
    if isinstance(stored, float) and isinstance(folded, float) and isnan(stored):
        return isnan(folded)
    # Python takes True for 1.
    return bool(stored == folded) and isinstance(stored, bool) == isinstance(folded, bool)


def _shown(value: JsonValue) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
