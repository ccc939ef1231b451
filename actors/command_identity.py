"""CommandIdentity: by what a command that comes again is recognised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from hashlib import blake2b
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic_core import PydanticSerializationError, to_json

from actors.command import Command
from eventstore.errors import CodecError, DefinitionError, InvalidCommandId

MAX_COMMAND_ID_BYTES = 255

_PLAIN_TYPES = (bool, int, float, str, bytes, Decimal, UUID, datetime, date, time, timedelta, NoneType)
_UUID_CHARACTERS = 36


class CommandIdentity(NamedTuple):
    """The id a command was sent under, a digest of what was sent, and when (milliseconds since 1970, 0: not known)."""

    command_id: str
    fingerprint: bytes
    issued_at: int


class _Kind(NamedTuple):
    """How one class of commands is digested. `to_json` is None where the fields must be brought into order first."""

    seed: blake2b
    to_json: Callable[..., bytes] | None


def identify(command: Command[Any], command_id: str) -> CommandIdentity:
    """Raises `InvalidCommandId`, and `CodecError` for a command that cannot be written as JSON."""
    check_command_id(command_id)
    seed, to_json_fast = _kind_of(command.__class__)
    try:
        # Defaults are left out: a new field with one leaves the commands that were sent before what they were.
        if to_json_fast is not None:
            content = to_json_fast(command, exclude_defaults=True)
        else:
            content = _canonical(command.model_dump(exclude_defaults=True))
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise CodecError(
            f"{type(command).__qualname__} cannot be written as JSON, so it cannot be recognised by an id: {error}"
        ) from error
    # To copy a digest is faster than to begin one.
    digest = seed.copy()
    digest.update(content)
    return CommandIdentity(command_id, digest.digest(), issued_at(command_id))


def issued_at(command_id: str) -> int:
    """The milliseconds since 1970 that a UUIDv7 begins with; 0 for every other id."""
    if len(command_id) != _UUID_CHARACTERS or command_id[14] != "7" or command_id[8:24:5] != "----":
        return 0
    digits = command_id[:8] + command_id[9:13]
    # For Python a number may have a sign, underscores, spaces around it, and the digits of any script.
    if not (digits.isascii() and digits.isalnum()):
        return 0
    try:
        return int(digits, 16)
    except ValueError:
        return 0


@cache
def _kind_of(cls: type[Command[Any]]) -> _Kind:
    if not issubclass(cls, Command):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(
            f"a command is an instance of a subclass of Command, not of {cls.__qualname__}: ask(Deposit(…))"
        )
    # By the name alone: a class may move to another module.
    person = blake2b(cls.__name__.encode(), digest_size=16).digest()
    return _Kind(
        blake2b(digest_size=16, person=person), cls.__pydantic_serializer__.to_json if _is_plain(cls) else None
    )


def check_command_id(command_id: str) -> None:
    """Raises `InvalidCommandId`."""
    if not isinstance(command_id, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        # What is not typed may give a UUID, which comes back from nowhere as one.
        raise InvalidCommandId(
            f"a command id is text, not a {type(command_id).__qualname__}: give command_id=str(…), the same text at "
            "every try"
        )
    if command_id.isascii() and 0 < len(command_id) <= MAX_COMMAND_ID_BYTES and "\0" not in command_id:
        return
    try:
        size = len(command_id.encode())
    except UnicodeEncodeError as error:
        raise InvalidCommandId(
            f"a command id must be text that UTF-8 can encode; it has half of a surrogate pair: {command_id[:80]!r}"
        ) from error
    if not 0 < size <= MAX_COMMAND_ID_BYTES or "\0" in command_id:
        raise InvalidCommandId(
            f"a command id takes 1 to {MAX_COMMAND_ID_BYTES} bytes of UTF-8 without NUL, not {size}: "
            f"{command_id[:40]!r}"
        )


def _is_plain(cls: type[Command[Any]]) -> bool:
    """Whether its fields hold nothing that has no order of its own: then its JSON is always the same."""
    if cls.model_config.get("ser_json_inf_nan") != "strings":
        return False
    return all(_is_plain_type(field.annotation) for field in cls.model_fields.values())


def _is_plain_type(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_plain_type(part) for part in get_args(annotation))
    is_enum = isinstance(annotation, type) and issubclass(annotation, Enum)
    return annotation in _PLAIN_TYPES or is_enum or get_origin(annotation) is Literal


def _canonical(value: object) -> bytes:
    """JSON with every dict and set in one order."""
    match value:
        case dict():
            items = sorted(
                (_canonical(key), _canonical(item)) for key, item in cast("Mapping[object, object]", value).items()
            )
            return b"{" + b",".join(key + b":" + item for key, item in items) + b"}"
        case set() | frozenset():
            return b"[" + b",".join(sorted(map(_canonical, cast("set[object]", value)))) + b"]"
        case list() | tuple():
            return b"[" + b",".join(map(_canonical, cast("list[object]", value))) + b"]"
        case _:
            return to_json(value)
