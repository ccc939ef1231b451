"""KitFailure: what the test kit says of an actor that breaks a rule."""

from __future__ import annotations

from eventstore.errors import ActorError


class KitFailure(ActorError, AssertionError):
    """An actor breaks a rule that its recovery rests on. `handler` names the method, or the class, to correct."""

    def __init__(self, handler: str, message: str) -> None:
        super().__init__(f"{handler}: {message}")
        self.handler = handler
