"""Replies: what a command came to, as the journal remembers it, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import NoneType
from typing import Any, NamedTuple

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, to_json

from actors.command import Command, reply_type
from actors.command_identity import CommandIdentity
from eventstore.backend import CommandOutcome, StoredCommand
from eventstore.codec import new_event_id
from eventstore.errors import CommandRejected, DefinitionError, PayloadTooLarge, ReplyDecodeError, ReplyEncodeError

# A value of exactly such a type is one that its promise cannot be at odds with.
_PLAIN_TYPES = (bool, int, str, NoneType)


class _Writing(NamedTuple):
    """How the replies to one class of commands are written. `plain` is their type if that says it all, else None."""

    plain: type[object] | None
    to_json: Callable[..., bytes]


def replied(command: Command[Any], identity: CommandIdentity, reply: object, *, limit: int) -> CommandOutcome:
    """The outcome of a command that was answered.

    Raises `ReplyEncodeError` for a reply that is not of the type the command promises, or that JSON cannot hold.
    """
    return outcome_of(identity, encode_reply(command, reply), is_rejection=False, limit=limit)


def encode_reply(command: Command[Any], reply: object) -> bytes:
    """A reply as JSON. Raises `ReplyEncodeError`."""
    cls = command.__class__
    plain, to_json_fast = _writing(cls)
    try:
        # To be asked for warnings takes pydantic as long as all the rest of a reply.
        return to_json_fast(reply) if reply.__class__ is plain else to_json_fast(reply, warnings="error")
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise ReplyEncodeError(
            f"the reply to {cls.__qualname__} cannot be remembered as {reply_type(cls)!r}, nothing was stored: {error}"
        ) from error


def rejected(identity: CommandIdentity, rejection: CommandRejected, *, limit: int) -> CommandOutcome:
    """The outcome of a command that was rejected: the error's class by name, its message and what it carries.

    What JSON cannot hold of that is left out.
    """
    return outcome_of(identity, encode_rejection(rejection), is_rejection=True, limit=limit)


def encode_rejection(rejection: CommandRejected) -> bytes:
    """A rejection as JSON."""
    name, message = type(rejection).__name__, str(rejection)
    try:
        return to_json({"error": name, "message": message, "args": rejection.args, "attributes": vars(rejection)})
    except (PydanticSerializationError, ValueError, TypeError, RecursionError):
        return to_json({"error": name, "message": message, "args": [message], "attributes": {}})


def read_reply(cls: type[Command[Any]], stored: StoredCommand) -> Any:
    """The remembered reply. Raises the rejection if it was one, and `ReplyDecodeError` if the reply's type has changed
    so that it does not fit, or what was stored is damaged."""
    if stored.is_rejection:
        raise decode_rejection(cls, stored.payload, stored.command_id)
    return decode_reply(cls, stored.payload, stored.command_id)


def decode_reply(cls: type[Command[Any]], payload: bytes | str, command_id: str) -> Any:
    """A reply out of its JSON. Raises `ReplyDecodeError`."""
    try:
        return _adapter(cls).validate_json(payload)
    except ValidationError as error:
        raise ReplyDecodeError(
            f"the remembered reply to {cls.__qualname__} (command {command_id!r}) does not fit "
            f"{reply_type(cls)!r} any more: the command was handled, and nothing was done again"
        ) from error


def decode_rejection(cls: type[Command[Any]], payload: bytes | str, command_id: str) -> CommandRejected:
    """A rejection out of its JSON. Raises `ReplyDecodeError`."""
    try:
        return _rejection(orjson.loads(payload))
    except (ValueError, TypeError, LookupError) as error:
        raise ReplyDecodeError(
            f"the remembered rejection of {cls.__qualname__} (command {command_id!r}) is damaged: the command was "
            "handled, and nothing was done again"
        ) from error


def outcome_of(identity: CommandIdentity, payload: bytes, *, is_rejection: bool, limit: int) -> CommandOutcome:
    """What is remembered of one execution of a command. Raises `PayloadTooLarge`."""
    if len(payload) > limit:
        raise PayloadTooLarge("the reply", len(payload), limit)
    command_id, fingerprint, issued_at = identity
    return CommandOutcome(command_id, fingerprint, new_event_id(), is_rejection, payload, issued_at)


@cache
def _writing(cls: type[Command[Any]]) -> _Writing:
    promised = reply_type(cls)
    plain = next((type_ for type_ in _PLAIN_TYPES if type_ is promised), None)
    return _Writing(plain, _adapter(cls).serializer.to_json)


@cache
def _adapter(cls: type[Command[Any]]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(reply_type(cls))
    except PydanticUserError as error:
        raise DefinitionError(
            f"{cls.__qualname__}: its reply {reply_type(cls)!r} is no type that pydantic can write, so it cannot be "
            f"remembered under a command id: {error}"
        ) from error


def _rejection(remembered: dict[str, Any]) -> CommandRejected:
    classes = [cls for cls in _rejections(CommandRejected) if cls.__name__ == remembered["error"]]
    if len(classes) != 1:
        # Gone, or two of that name: what was said is told all the same.
        return CommandRejected(remembered["message"])
    # Not by calling it: its arguments are those it was made with only if it has no __init__ of its own.
    rejection = classes[0].__new__(classes[0], *remembered["args"])
    vars(rejection).update(remembered["attributes"])
    return rejection


def _rejections(cls: type[CommandRejected]) -> Iterator[type[CommandRejected]]:
    yield cls
    for subclass in cls.__subclasses__():
        yield from _rejections(subclass)
