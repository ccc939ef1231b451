"""Command: what an actor is asked to do, and the type of the reply."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict

R = TypeVar("R")


class Command(BaseModel, Generic[R]):
    """A wish, named in the imperative: `class Deposit(Command[int])` is answered with an int.

    Fields are validated when the command is made, so a handler gets only what is well-formed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
