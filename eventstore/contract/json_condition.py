"""JsonCondition: a comparison of one place in a JSON document with a value, such as `/amount >= 50`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, cast
from urllib.parse import unquote

from eventstore.errors import InvalidQuery

JsonScalar = str | int | float | Decimal | bool | None

_MAX_POINTER = 64
_INDEX = re.compile(r"0|[1-9][0-9]*")
# The longer operators first: `<=` is not `<` and a value that begins with `=`.
_SPLIT = re.compile(r"(?P<pointer>[^=!<>*]*)(?P<operator>=|!=|<=|>=|<|>|\*=)(?P<value>.*)", re.DOTALL)
_SLIP = re.compile(r"\s*[=<>]\s*(?P<value>.*)", re.DOTALL)
_MISSING = object()


class Operator(Enum):
    """How a value is compared."""

    EQUAL = "="
    UNEQUAL = "!="
    LESS = "<"
    LESS_OR_EQUAL = "<="
    GREATER = ">"
    GREATER_OR_EQUAL = ">="
    CONTAINS = "*="
    EXISTS = "exists"


@dataclass(frozen=True, slots=True)
class JsonCondition:
    """What must stand at one place of a JSON document. The place is a JSON pointer's tokens (RFC 6901), unescaped.

    Values are compared only with their like: numbers with numbers, digit for digit whatever their size, strings with
    strings by code points. So `/amount > 5` lets no string pass. `=` takes null, true and false too. `!=` asks that
    something else is there: a document without the place does not pass. `*=` finds a text within a string, or a value
    among those of an array. `EXISTS` takes null for something.
    """

    pointer: tuple[str, ...]
    operator: Operator = Operator.EXISTS
    value: JsonScalar = None

    def __post_init__(self) -> None:
        if len(self.pointer) > _MAX_POINTER:
            raise InvalidQuery(f"a pointer has at most {_MAX_POINTER} steps, not {len(self.pointer)}")
        for text in (*self.pointer, self.value):
            _check_text(text)
        if isinstance(self.value, float | Decimal) and not Decimal(self.value).is_finite():
            raise InvalidQuery(f"{self.value} is no JSON number: infinities are stored as strings")
        is_ordered = self.operator in _ORDERED
        if is_ordered and (self.value is None or isinstance(self.value, bool)):
            raise InvalidQuery(f"{self.operator.value} takes a number or a string: {_shown(self.value)} has no order")

    def holds(self, document: Any) -> bool:
        """Whether a document, as `exact_json` or `json.loads` gives it, passes."""
        found = _at(document, self.pointer)
        if found is _MISSING:
            return False
        match self.operator:
            case Operator.EXISTS:
                return True
            case Operator.EQUAL:
                return _equal(found, self.value)
            case Operator.UNEQUAL:
                return not _equal(found, self.value)
            case Operator.CONTAINS:
                if isinstance(found, str):
                    return isinstance(self.value, str) and self.value in found
                return isinstance(found, list) and self._is_among(cast("Sequence[object]", found))
            case ordered:
                if isinstance(found, str) and isinstance(self.value, str):
                    return _ORDERED[ordered](found, self.value)
                if _is_number(found) and _is_number(self.value):
                    return _ORDERED[ordered](_exact(found), _exact(self.value))
                return False

    def _is_among(self, items: Sequence[object]) -> bool:
        return any(_equal(item, self.value) for item in items)

    @classmethod
    def parse(cls, text: str) -> JsonCondition:
        """A condition as it is written: a JSON pointer, an operator and a value, such as `/by/name="Ann"`; a pointer
        alone asks that something is there.

        The value is JSON if it can be, and else a string as it is, but for spaces around it. A key with one of `=!<>*`
        in it is written in the form of a URL's fragment, `#/a%3Db=1` (RFC 6901, section 6). Raises `InvalidQuery`.
        """
        parts = _SPLIT.fullmatch(text)
        if parts is None:
            return cls(_pointer(text, text))
        value = _value(parts["value"], text)
        # `=>5` and `== 5` are slips: texts such as these would be looked for in vain, and nobody would know why.
        slip = _SLIP.fullmatch(parts["value"]) if parts["operator"] == "=" else None
        if slip is not None and _value(slip["value"], text) != slip["value"].strip():
            raise InvalidQuery(
                f"{text!r}: the operators are =, !=, <, <=, >, >= and *=; a text that looks like one has quotes"
            )
        return cls(_pointer(parts["pointer"], text), Operator(parts["operator"]), value)


def exact_json(text: bytes | str) -> Any:
    """A JSON document with every number as it is written: no integer and no fraction is rounded.

    Raises `ValueError`; for one that is nested too deeply `RecursionError`.
    """
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError:
        # Python refuses to read integers of thousands of digits as such. What is no JSON is refused again.
        return json.loads(text, parse_float=Decimal, parse_int=Decimal)


def is_index(token: str) -> bool:
    """Whether a pointer's token can be a place in an array."""
    return _INDEX.fullmatch(token) is not None


def _at(document: Any, pointer: tuple[str, ...]) -> Any:
    found: Any = document
    for token in pointer:
        match found:
            case dict():
                found = cast("dict[str, Any]", found).get(token, _MISSING)
            case list() if is_index(token) and len(token) < 20:
                found = _item(cast("Sequence[object]", found), int(token))
            case _:
                return _MISSING
    return found


def _item(items: Sequence[object], index: int) -> object:
    return items[index] if index < len(items) else _MISSING


def _equal(found: Any, value: JsonScalar) -> bool:
    if _is_number(found) and _is_number(value):
        return bool(_exact(found) == _exact(value))
    # True is 1 to Python, and not to JSON.
    return type(found) is type(value) and bool(found == value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _exact(value: Any) -> Any:
    # A float is what its shortest decimal says, which is what was stored.
    return Decimal(repr(value)) if isinstance(value, float) else value


_ORDERED: dict[Operator, Callable[[Any, Any], bool]] = {
    Operator.LESS: lambda found, value: found < value,
    Operator.LESS_OR_EQUAL: lambda found, value: found <= value,
    Operator.GREATER: lambda found, value: found > value,
    Operator.GREATER_OR_EQUAL: lambda found, value: found >= value,
}


def _pointer(text: str, whole: str) -> tuple[str, ...]:
    pointer = text.strip()
    if pointer.startswith("#"):
        pointer = unquote(pointer[1:], errors="surrogateescape")
    if pointer and not pointer.startswith("/"):
        raise InvalidQuery(f"{whole!r}: a JSON pointer begins with a slash, such as /amount or /lines/0/sku")
    if not pointer and not text.strip():
        raise InvalidQuery(f"{whole!r} names no place: write a JSON pointer, such as /amount=50")
    tokens: list[str] = []
    for token in pointer.split("/")[1:]:
        if re.search(r"~(?![01])", token):
            raise InvalidQuery(f"{whole!r}: in a JSON pointer ~0 stands for ~ and ~1 for /, and ~ for nothing else")
        tokens.append(token.replace("~1", "/").replace("~0", "~"))
    return tuple(tokens)


def _value(text: str, whole: str) -> JsonScalar:
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=_refuse_constant)
    except (ValueError, InvalidOperation, RecursionError):
        return text.strip()
    if isinstance(value, dict | list):
        raise InvalidQuery(f"{whole!r} compares with an object or an array: compare what is in it, or ask for text")
    return cast("JsonScalar", value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _check_text(text: object) -> None:
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidQuery(f"{text!r} is no text that UTF-8 can encode: no event holds it") from error


def _shown(value: JsonScalar) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
