"""Replies: what a command came to, as the journal remembers it, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import NoneType
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError

from actors.cells.rejections import decode_rejection, encode_rejection
from actors.command import Command, reply_type
from actors.command_identity import CommandIdentity
from eventstore.backend import CommandOutcome, StoredCommand
from eventstore.codec import new_event_id
from eventstore.errors import CommandRejected, DefinitionError, PayloadTooLarge, ReplyDecodeError, ReplyEncodeError
from eventstore.json_form import JsonForm, form_of

# A value of exactly such a type is one that its promise cannot be at odds with, and that comes back as it was.
_PLAIN_TYPES = (bool, int, float, str, NoneType)


class _Writing(NamedTuple):
    """How the replies to one class of commands are written. `plain` is their type if that says it all, else None."""

    plain: type[object] | None
    to_json: Callable[..., bytes]
    form: JsonForm


def replied(command: Command[Any], identity: CommandIdentity, reply: object, *, limit: int) -> CommandOutcome:
    """The outcome of a command that was answered.

    Raises `ReplyEncodeError` for a reply that is not of the type the command promises, or that JSON cannot hold.
    """
    return outcome_of(identity, encode_reply(command, reply), is_rejection=False, limit=limit)


def encode_reply(command: Command[Any], reply: object) -> bytes:
    """A reply as JSON that is read as the same reply. Raises `ReplyEncodeError`, which does not tell the reply."""
    cls = command.__class__
    plain, to_json, form = _writing(cls)
    try:
        if reply.__class__ is plain:
            return to_json(reply)
        # To be asked for warnings takes pydantic as long as all the rest of a reply.
        encoded = to_json(reply, warnings="error")
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        # Pydantic's message quotes the value, which may be personal, and would be chained.
        raise _not_remembered(cls, f"{_what_it_is(reply)}, which cannot be written as that", error) from None
    if (difference := form.difference(reply, encoded)) is not None:
        raise _not_remembered(cls, f"asked again it would not be the same: {difference}")
    return encoded


def _not_remembered(cls: type[Command[Any]], reason: str, error: Exception | None = None) -> ReplyEncodeError:
    kind = "" if error is None else f" ({type(error).__name__})"
    return ReplyEncodeError(
        f"the reply to {cls.__qualname__} cannot be remembered as {reply_type(cls)!r}, nothing was stored: "
        f"{reason}{kind}"
    )


def _what_it_is(reply: object) -> str:
    return f"it is a {type(reply).__qualname__}"


def rejected(identity: CommandIdentity, rejection: CommandRejected, *, limit: int) -> CommandOutcome:
    """The outcome of a command that was rejected: the error's class by name, its message and what it carries.

    What JSON cannot hold of that is left out.
    """
    return outcome_of(identity, encode_rejection(rejection), is_rejection=True, limit=limit)


def read_reply(cls: type[Command[Any]], stored: StoredCommand) -> Any:
    """The remembered reply. Raises the rejection if it was one, and `ReplyDecodeError` if the reply's type has changed
    so that it does not fit, or what was stored is damaged."""
    if stored.is_rejection:
        raise decode_rejection(cls, stored.payload, stored.command_id)
    return decode_reply(cls, stored.payload, stored.command_id)


def decode_reply(cls: type[Command[Any]], payload: bytes | str, command_id: str) -> Any:
    """A reply out of its JSON. Raises `ReplyDecodeError`."""
    try:
        return _writing(cls).form.read(payload)
    except ValidationError as error:
        raise ReplyDecodeError(
            f"the remembered reply to {cls.__qualname__} (command {command_id!r}) does not fit "
            f"{reply_type(cls)!r} any more: the command was handled, and nothing was done again"
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
    form = _form(cls)
    return _Writing(plain, form.write, form)


def _form(cls: type[Command[Any]]) -> JsonForm:
    try:
        return form_of(TypeAdapter(reply_type(cls)))
    except PydanticUserError as error:
        raise DefinitionError(
            f"{cls.__qualname__}: its reply {reply_type(cls)!r} is no type that pydantic can write, so it cannot be "
            f"remembered under a command id: {error}"
        ) from error
