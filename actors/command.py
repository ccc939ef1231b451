"""Command: what an actor is asked to do, and the type of the reply."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from uuid_utils import uuid7

R = TypeVar("R")


class Command(BaseModel, Generic[R]):
    """A wish, named in the imperative: `class Deposit(Command[int])` is answered with an int.

    Fields are validated when the command is made, so a handler gets only what is well-formed.
    """

    # An infinity is written as null otherwise, as None is, and a digest would take the one for the other.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def reply_type(command: type[Command[Any]]) -> Any:
    """The reply that a class of commands promises: int for a `Command[int]`; `Any` if it says nothing."""
    for base in command.__mro__:
        if issubclass(base, Command) and (args := base.__pydantic_generic_metadata__["args"]):
            return type(None) if args[0] is None else args[0]
    return Any


def without_handler(actor: type, command: object) -> str:
    """What is said of something that no command handler of an actor's class takes."""
    if isinstance(command, type):
        return f"a command is an instance of its class, not the class itself: {command.__qualname__}(…)"
    return f"{actor.__qualname__} has no @command_handler for {type(command).__qualname__}"


def new_command_id() -> str:
    """An id for a command: a UUIDv7. It tells when the command was issued, so that a store which has forgotten the
    outcomes of that time can say so."""
    return str(uuid7())
