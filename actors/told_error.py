"""ToldError: what an asker and supervision are told of an error that was raised in an actor."""

from __future__ import annotations

from eventstore.errors import ActorError

ENDS_THE_PROGRAM = (KeyboardInterrupt, SystemExit)
"""Raised further, to whoever runs the event loop."""


def told_error(error: BaseException, stream_id: str) -> BaseException:
    """An error as it may be raised in another task. A `CancelledError` would be taken there for the asker's own end,
    and what is no `Exception` is looked for by nobody."""
    if isinstance(error, (Exception, *ENDS_THE_PROGRAM)):
        return error
    told = ActorError(f"{stream_id!r}: a handler raised {type(error).__name__}, which is no Exception: {error}")
    told.__cause__ = error
    return told
