"""Metadata that goes with a message: from where it is sent to the events, and from its handler to what that sends."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from actors.command_identity import CommandIdentity
from eventstore.events import Metadata

_sent_with: ContextVar[Metadata | None] = ContextVar("eventstore_metadata", default=None)


@contextmanager
def with_metadata(metadata: Metadata) -> Generator[None]:
    """Let everything that is sent in this block have metadata, and with it every event that comes of it.

        with with_metadata(Metadata(user="ann", correlation_id=request_id)):
            await account.ask(Deposit(amount=5))

    Blocks within each other, and what `ask` is given, add to it: what is set further in counts. An `async def` handler
    that sends something further passes it on, with the id of its own command, if that has one, as `causation_id`.
    """
    token = _sent_with.set(merged(_sent_with.get(), metadata))
    try:
        yield
    finally:
        _sent_with.reset(token)


sent_with: Callable[[], Metadata | None] = _sent_with.get
"""Gives what is set where the present code runs."""


def merged(outer: Metadata | None, inner: Metadata | None) -> Metadata | None:
    """Both, the inner one's fields before the outer one's."""
    if outer is None or inner is None:
        return inner or outer
    changed = {name: getattr(inner, name) for name in Metadata.model_fields if getattr(inner, name)}
    changed["tags"] = tuple(dict.fromkeys((*outer.tags, *inner.tags)))
    changed["values"] = {**outer.values, **inner.values}
    return outer.model_copy(update=changed)


def pass_on(metadata: Metadata | None, identity: CommandIdentity | None) -> None:
    """Called where an async handler begins, in the context of its own task: what it sends is caused by its command."""
    if identity is not None:
        caused = Metadata(causation_id=identity.command_id)
        correlated = Metadata(correlation_id=identity.command_id)
        metadata = merged(merged(correlated, metadata), caused)
    if metadata is not None:
        # An id of a command is its own, and tags are those of one event.
        _sent_with.set(metadata.model_copy(update={"command_id": None, "tags": ()}))
