"""States as JSON values that compare: equal states, equal values, in any process."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence, Set
from hashlib import blake2b
from typing import Any, TypeGuard


def in_order(value: Any, written: Any) -> Any:
    """What was `written` of a Python value as JSON, with the members of its sets in one order. Those come in the order
    of their hashes otherwise, which for texts differs from process to process."""
    if is_object(written):
        if is_object(value) and len(value) == len(written):
            pairs = zip(value.values(), written.items(), strict=True)
            return {name: in_order(one, member) for one, (name, member) in pairs}
        return written
    if is_array(written):
        if isinstance(value, Set):
            return without_order(written)
        if is_array(value) and len(value) == len(written):
            return [in_order(one, item) for one, item in zip(value, written, strict=True)]
    return written


def without_order(value: Any) -> Any:
    """The value with every array sorted."""
    if is_object(value):
        return {name: without_order(member) for name, member in value.items()}
    if is_array(value):
        return sorted(map(without_order, value), key=canonical_text)
    return value


def is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is what JSON writes as an object."""
    return isinstance(value, Mapping)


def is_array(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether it is what JSON writes as an array, in an order that means something."""
    return isinstance(value, list | tuple | deque)


def canonical_text(value: Any) -> str:
    """JSON in which the order of an object's members is one."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest_of(value: Any) -> str:
    """A short name for a canonical value: two different ones never have the same."""
    return blake2b(canonical_text(value).encode(errors="surrogatepass"), digest_size=12).hexdigest()
