"""Shape: the form of an object that a command prints with `--json`.

A field maps to a remark, or to the fields of the object that it holds, in a list where it holds several. The name of
one that is not always there ends in a question mark. What is not known or not there is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, cast

Fields: TypeAlias = Mapping[str, Any]
"""By the name of a field: a remark, or `Fields`, or a list with the `Fields` of each object in it."""


class Shape(NamedTuple):
    """Objects of one form: for what there is one, and its fields."""

    of: str
    fields: Fields

    def fits(self, found: object) -> bool:
        """Whether an object has these fields and no others."""
        return _fit(self.fields, found)


def in_words(fields: Fields) -> str:
    """Fields as Markdown, in one line."""
    return ", ".join(_words(fields))


def _words(fields: Fields) -> Iterator[str]:
    for name, inside in fields.items():
        text = f"`{name.removesuffix('?')}`"
        remarks = ["not always there"] if name.endswith("?") else []
        match inside:
            case str():
                remarks = [*([inside] if inside else []), *remarks]
            case [each]:
                remarks = [f"a list, in each: {in_words(each)}", *remarks]
            case _:
                remarks = [in_words(inside), *remarks]
        yield f"{text} ({'; '.join(remarks)})" if remarks else text


def _fit(fields: Fields, found: Any) -> bool:
    if not isinstance(found, Mapping):
        return False
    item = cast("Mapping[str, Any]", found)
    every = {name.removesuffix("?") for name in fields}
    needed = {name for name in fields if not name.endswith("?")}
    if not needed <= item.keys() <= every:
        return False
    return all(_fit_inside(inside, item.get(name.removesuffix("?"))) for name, inside in fields.items())


def _fit_inside(inside: Any, found: Any) -> bool:
    match inside:
        case str():
            return True
        case _ if found is None:
            return True
        case [each]:
            return _is_list(found) and all(_fit(each, item) for item in found)
        case _:
            return _fit(inside, found)


def _is_list(found: object) -> bool:
    return isinstance(found, list)
