"""Rejections: a handler's refusal as the journal remembers it, and back, with what it carries."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, cast
from uuid import UUID

from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python

from actors.canonical import is_array, is_object
from actors.command import Command
from eventstore.errors import CommandRejected, ReplyDecodeError, remade

# What JSON has no word for is written as an object with these two members.
_TYPE, _VALUE = "$type", "value"

# No declared type says what a rejection carries, so each value says it itself.
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "float": float,
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "uuid": UUID,
    "bytes": b64decode,
    "tuple": lambda items: tuple(map(_value_of, items)),
    "dict": lambda members: {name: _value_of(member) for name, member in members.items()},
}


def encode_rejection(rejection: CommandRejected) -> bytes:
    """The error's class by name, its message and what it carries. That is left out where JSON cannot hold it."""
    name, message = type(rejection).__name__, str(rejection)
    try:
        args, attributes = [_written(each) for each in rejection.args], _members(vars(rejection))
        return to_json({"error": name, "message": message, "args": args, "attributes": attributes})
    except (PydanticSerializationError, ValueError, TypeError, RecursionError):
        return to_json({"error": name, "message": message, "args": [message], "attributes": {}})


def decode_rejection(cls: type[Command[Any]], payload: bytes | str, command_id: str) -> CommandRejected:
    """A rejection out of its JSON. Raises `ReplyDecodeError`."""
    try:
        return _rejection(from_json(payload))
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise ReplyDecodeError(
            f"the remembered rejection of {cls.__qualname__} (command {command_id!r}) is damaged: the command was "
            "handled, and nothing was done again"
        ) from error


def _rejection(remembered: dict[str, Any]) -> CommandRejected:
    classes = [cls for cls in _rejections(CommandRejected) if cls.__name__ == remembered["error"]]
    if len(classes) != 1:
        # Gone, or two of that name: what was said is told all the same.
        return CommandRejected(remembered["message"])
    rejection = remade(classes[0], *map(_value_of, remembered["args"]))
    vars(rejection).update({name: _value_of(each) for name, each in remembered["attributes"].items()})
    return rejection


def _rejections(cls: type[CommandRejected]) -> Iterator[type[CommandRejected]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _rejections(subclass)


def _written(value: object) -> Any:
    match value:
        case float():
            return value if isfinite(value) else _typed("float", str(value))
        case Decimal():
            return _typed("decimal", str(value))
        case datetime():
            return _typed("datetime", value.isoformat())
        case date():
            return _typed("date", value.isoformat())
        case time():
            return _typed("time", value.isoformat())
        case timedelta():
            return _typed("timedelta", [value.days, value.seconds, value.microseconds])
        case UUID():
            return _typed("uuid", str(value))
        case bytes():
            return _typed("bytes", b64encode(value).decode())
        case tuple():
            return _typed("tuple", [_written(each) for each in cast("Sequence[object]", value)])
        case list():
            return [_written(each) for each in cast("list[object]", value)]
        case dict():
            members = _members(cast("Mapping[object, object]", value))
            return _typed("dict", members) if _TYPE in members else members
        case _:
            return to_jsonable_python(value, inf_nan_mode="strings")


def _members(value: Mapping[Any, object]) -> dict[str, Any]:
    return {str(to_jsonable_python(name)): _written(member) for name, member in value.items()}


def _typed(name: str, value: object) -> dict[str, object]:
    return {_TYPE: name, _VALUE: value}


def _value_of(written: Any) -> Any:
    if is_array(written):
        return list(map(_value_of, written))
    if not is_object(written):
        return written
    if _TYPE in written:
        return _READERS[written[_TYPE]](written[_VALUE])
    return {name: _value_of(member) for name, member in written.items()}
