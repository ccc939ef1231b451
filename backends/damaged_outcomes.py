"""What is said of a remembered outcome that cannot be read."""

from __future__ import annotations

from eventstore.backend import CommandLookup
from eventstore.errors import JournalCorrupt


def damaged_outcome(lookup: CommandLookup, reason: BaseException) -> JournalCorrupt:
    """The answer to one question alone: whoever asks in the same trip about other streams gets his."""
    error = JournalCorrupt(
        f"the outcome of command {lookup.command_id!r}, or what is remembered beside it, is damaged ({reason}); "
        "restore it from a copy",
        stream_id=lookup.stream_id,
    )
    error.__cause__ = reason
    return error
