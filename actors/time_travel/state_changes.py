"""Changes between two states, each named by a JSON pointer (RFC 6901)."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from typing import Final, Literal, NamedTuple

from pydantic import JsonValue

from eventstore.errors import ActorError


class StateChange(NamedTuple):
    """One place in which two states differ. Where it was added there is no `before`, where it was removed no `after`:
    both are None then."""

    pointer: str
    kind: Literal["added", "removed", "changed"]
    before: JsonValue
    after: JsonValue


class InvalidPointer(ActorError, ValueError):
    """The text is no JSON pointer: `/items/0/name`, with `~1` for a slash and `~0` for a tilde in a name. The whole
    state is the empty text."""


class Nothing:
    """What stands where a pointer leads nowhere."""

    __slots__ = ()


NOTHING: Final = Nothing()


def state_changes(before: JsonValue, after: JsonValue, pointer: str = "") -> Iterator[StateChange]:
    """Where two JSON values differ, in the order of the first. Items of arrays are compared place by place.

    The order of an object's members means nothing, and 1 is 1.0: a state may hold either, before and after it was read
    from a snapshot.
    """
    match before, after:
        case dict(), dict():
            for name, value in before.items():
                if name in after:
                    yield from state_changes(value, after[name], f"{pointer}/{escaped_name(name)}")
                else:
                    yield StateChange(f"{pointer}/{escaped_name(name)}", "removed", value, None)
            for name, value in after.items():
                if name not in before:
                    yield StateChange(f"{pointer}/{escaped_name(name)}", "added", None, value)
        case list(), list():
            for index, (one, other) in enumerate(zip(before, after, strict=False)):
                yield from state_changes(one, other, f"{pointer}/{index}")
            for index in range(len(after), len(before)):
                yield StateChange(f"{pointer}/{index}", "removed", before[index], None)
            for index in range(len(before), len(after)):
                yield StateChange(f"{pointer}/{index}", "added", None, after[index])
        case _ if not _is_same(before, after):
            yield StateChange(pointer, "changed", before, after)
        case _:
            pass


def leaves(value: JsonValue, pointer: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Every value within that holds no others, with its pointer; empty objects and arrays are such ones."""
    match value:
        case dict() if value:
            for name, member in value.items():
                yield from leaves(member, f"{pointer}/{escaped_name(name)}")
        case list() if value:
            for index, item in enumerate(value):
                yield from leaves(item, f"{pointer}/{index}")
        case _:
            yield pointer, value


def value_at(value: JsonValue, names: tuple[str, ...]) -> JsonValue | Nothing:
    """What the names of a pointer lead to, `NOTHING` if that is not there."""
    for name in names:
        match value:
            case dict() if name in value:
                value = value[name]
            case list() if name.isdecimal() and str(int(name)) == name and int(name) < len(value):
                value = value[int(name)]
            case _:
                return NOTHING
    return value


def names_of(pointer: str) -> tuple[str, ...]:
    """The names that a pointer is made of. Raises `InvalidPointer`."""
    if not pointer:
        return ()
    if not pointer.startswith("/"):
        raise InvalidPointer(f"{pointer!r} is no JSON pointer: it begins with a slash, such as /{pointer}")
    names = pointer[1:].split("/")
    for name in names:
        if "~" in name.replace("~0", "").replace("~1", ""):
            raise InvalidPointer(f"{pointer!r} is no JSON pointer: write ~0 for a tilde, and ~1 for a slash in a name")
    return tuple(name.replace("~1", "/").replace("~0", "~") for name in names)


def escaped_name(name: str) -> str:
    """A member's name as part of a pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _is_same(before: JsonValue, after: JsonValue) -> bool:
    if isinstance(before, float) and isinstance(after, float) and isnan(before):
        return isnan(after)
    # Python takes True for 1.
    return bool(before == after) and isinstance(before, bool) == isinstance(after, bool)
