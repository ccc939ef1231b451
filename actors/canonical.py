"""States as JSON values that compare: equal states, equal values, in any process."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Set
from hashlib import blake2b
from typing import Any, cast


def in_order(value: Any, written: Any) -> Any:
    """What was `written` of a Python value as JSON, with the members of its sets in one order. Those come in the order
    of their hashes otherwise, which for texts differs from process to process."""
    if isinstance(written, dict):
        members = cast("dict[str, Any]", written)
        if isinstance(value, Mapping) and len(cast("Mapping[Any, Any]", value)) == len(members):
            values = cast("Mapping[Any, Any]", value).values()
            return {name: in_order(one, member) for one, (name, member) in zip(values, members.items(), strict=True)}
        return members
    if isinstance(written, list):
        items = cast("list[Any]", written)
        if isinstance(value, Set):
            return without_order(items)
        if isinstance(value, list | tuple | deque) and len(cast("list[Any]", value)) == len(items):
            return [in_order(one, item) for one, item in zip(cast("list[Any]", value), items, strict=True)]
    return cast("Any", written)


def without_order(value: Any) -> Any:
    """The value with every array sorted."""
    if isinstance(value, dict):
        return {name: without_order(member) for name, member in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return sorted(map(without_order, cast("list[Any]", value)), key=canonical_text)
    return value


def canonical_text(value: Any) -> str:
    """JSON in which the order of an object's members is one."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest_of(value: Any) -> str:
    """A short name for a canonical value: two different ones never have the same."""
    return blake2b(canonical_text(value).encode(errors="surrogatepass"), digest_size=12).hexdigest()
