"""Whether two values are the same to whoever uses them: what was there before it was written, and what was read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, cast

from pydantic import BaseModel

_SCALARS = (int, float, str, bytes, Decimal)


# Pairs of objects, by their ids, that are being compared further up. All of them are held there.
_Path = set[tuple[int, int]]


def first_difference(one: Any, other: Any) -> str | None:
    """Where two values differ first, without the values: they may be personal. None if they do not.

    Numbers and texts count as what they say: a 1 in a field for floats is a 1.0, a not-a-number is like another. Parts
    that lead back to where they are parts of are the same if they do so in both.
    """
    return _difference(one, other, "", set())


def _difference(one: Any, other: Any, place: str, path: _Path) -> str | None:
    if one is other:
        return None
    # Classes first: to ask whether something is a mapping takes ten times as long.
    if isinstance(one, _SCALARS) and isinstance(other, _SCALARS):
        # No not-a-number equals another.
        is_same = one == other or repr(one) == repr(other)
        return None if is_same else _as_another(place, one, other)
    cls = cast("type[Any]", type(one))  # type: ignore[redundant-cast]
    if cls is not type(other):
        return _as_another(place, one, other)
    if one is None:
        return None
    pair = (id(one), id(other))
    if pair in path:
        return None
    path.add(pair)
    try:
        return _inside(one, other, cls, place, path)
    finally:
        path.remove(pair)


def _inside(one: Any, other: Any, cls: type[Any], place: str, path: _Path) -> str | None:
    if isinstance(one, BaseModel):
        return _in_model(one, cast("BaseModel", other), place, path)
    if isinstance(one, (list, tuple, deque)):
        return _in_sequence(cast("Sequence[Any]", one), other, place, path)
    if cls is dict or isinstance(one, Mapping):
        return _in_mapping(cast("Mapping[Any, Any]", one), other, place, path)
    if is_dataclass(one):
        return _in_attributes(one, other, (field.name for field in fields(one)), place, path)
    if isinstance(one, Set):
        # A not-a-number is no member of another set.
        members = cast("Set[Any]", one)  # type: ignore[redundant-cast]
        is_same = members == other or sorted(map(repr, members)) == sorted(map(repr, other))
        return None if is_same else _as_another(place, members, other)
    if isinstance(one, Enum):
        # There is one of each, and it has its class in it, which has all of them.
        return _as_another(place, one, other)
    if getattr(cls, "__eq__", None) is object.__eq__:
        # It compares by identity, so that it says nothing.
        return _in_parts(getattr(one, "__dict__", {}), getattr(other, "__dict__", {}), place, path)
    return None if one == other else _as_another(place, one, other)


def _in_model(one: BaseModel, other: BaseModel, place: str, path: _Path) -> str | None:
    # Not its whole dictionary: what is computed once stands there too.
    found = _in_attributes(one, other, type(one).__pydantic_fields__, place, path)
    if found is None and (one.__pydantic_extra__ or other.__pydantic_extra__):
        found = _in_parts(one.__pydantic_extra__ or {}, other.__pydantic_extra__ or {}, place, path)
    if found is None and (one.__pydantic_private__ or other.__pydantic_private__):
        found = _in_parts(one.__pydantic_private__ or {}, other.__pydantic_private__ or {}, place, path)
    return found


def _in_attributes(one: object, other: object, names: Iterable[str], place: str, path: _Path) -> str | None:
    prefix = f"{place}." if place else ""
    for name in names:
        found = _difference(getattr(one, name, None), getattr(other, name, None), prefix + name, path)
        if found is not None:
            return found
    return None


def _in_parts(one: Mapping[str, Any], other: Mapping[str, Any], place: str, path: _Path) -> str | None:
    prefix = f"{place}." if place else ""
    for name, part in one.items():
        if name not in other:
            return f"{prefix}{name} would be lost"
        if (found := _difference(part, other[name], f"{prefix}{name}", path)) is not None:
            return found
    for name in other:
        if name not in one:
            return f"{prefix}{name} would be there, which was not"
    return None


def _in_mapping(one: Mapping[Any, Any], other: Mapping[Any, Any], place: str, path: _Path) -> str | None:
    if len(one) != len(other):
        return f"{_named(place)} would have {len(other)} members, not {len(one)}"
    for (key, value), (again, read) in zip(one.items(), other.items(), strict=True):
        found = _difference(key, again, f"a key of {_named(place)}", path)
        if found is None:
            found = _difference(value, read, f"a member of {_named(place)}", path)
        if found is not None:
            return found
    return None


def _in_sequence(one: Sequence[Any], other: Sequence[Any], place: str, path: _Path) -> str | None:
    if len(one) != len(other):
        return f"{_named(place)} would have {len(other)} members, not {len(one)}"
    for number, (value, read) in enumerate(zip(one, other, strict=True)):
        if (found := _difference(value, read, f"{place}[{number}]", path)) is not None:
            return found
    return None


def _named(place: str) -> str:
    return place or "it"


def _as_another(place: str, one: object, other: object) -> str:
    if type(one) is type(other):
        return f"{_named(place)} would be read as another {type(one).__qualname__}"
    return f"{_named(place)}, a {type(one).__qualname__}, would be read as a {type(other).__qualname__}"
