"""One stored event on its way into an actor: through its upcasters, if older code stored it, then to its handlers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.actor import PersistentActor, Stage
from actors.replaying.unfoldable import NoHandler
from actors.told_error import ENDS_THE_PROGRAM
from eventstore.codec import decode_stored
from eventstore.errors import RecoveryError
from eventstore.events import Event, event_class


def apply_one(
    actor: PersistentActor[Any], stage: Stage, type_: str, schema_version: int, payload: bytes, version: int
) -> None:
    """Apply one stored event, whatever version of its type it is.

    If upcasters make several events of it, all have its version, and their handlers run in their order. Raises as
    `decoded_for` does, and `RecoveryError` for a handler that raises.
    """
    # All before the first is applied: a state that has half of an event in it is of no version.
    events = decoded_for(actor, type_, schema_version, payload, stream_id=stage.stream_id, version=version)
    stage.version = version
    for event in events:
        try:
            actor.handlers.events[event.__class__](actor, event)
        except ENDS_THE_PROGRAM:
            raise
        except BaseException as error:
            raise handler_raised(error, stage, event) from error


def decoded_for(
    actor: PersistentActor[Any], type_: str, schema_version: int, payload: bytes, *, stream_id: str, version: int
) -> Sequence[Event]:
    """A stored event as the events that the actor's handlers take. Raises the codec's errors, and `NoHandler`."""
    handlers = actor.handlers

    def class_of(name: str) -> type[Event] | None:
        # The class that is handled, should its module have been loaded again since.
        route = handlers.stored.get(name)
        return event_class(name) if route is None else route.cls

    events = decode_stored(type_, schema_version, payload, class_of=class_of, stream_id=stream_id, version=version)
    for event in events:
        if event.__class__ not in handlers.events:
            raise NoHandler(
                f"{type(actor).__qualname__} has no @event_handler for {type(event).__qualname__} "
                f"(stored as {type_!r}, version {version})",
                version=version,
            )
    return events


def handler_raised(error: BaseException, stage: Stage, event: Event) -> RecoveryError:
    """What a recovery fails with then."""
    return RecoveryError(
        stage.stream_id,
        f"its handler for {event.__event_type__!r} raised {type(error).__name__} at version {stage.version}: {error}",
        version=stage.version,
    )
