"""Unfoldable: what stands in the way of a fold, in the journal or in the code, and how that is told."""

from __future__ import annotations

from eventstore.errors import CodecError, DefinitionError, JournalCorrupt, RecoveryError

UNFOLDABLE = (CodecError, JournalCorrupt, DefinitionError)
"""What stands in the way of a fold, and is told as a `RecoveryError`."""


class NoHandler(DefinitionError):
    """A class has no event handler for what is stored, or for what its rule has made of that. `version` is that of the
    stored event."""

    def __init__(self, message: str, *, version: int) -> None:
        super().__init__(message)
        self.version = version


class EventsRemoved(RecoveryError):
    """Events were removed while a fold was on its way to them. One that begins anew starts at a snapshot behind them,
    or is told why it cannot."""

    def __init__(self, stream_id: str, through: int) -> None:
        super().__init__(stream_id, f"its events up to version {through} were removed while they were read: try again")


def unfoldable(stream_id: str, error: Exception) -> RecoveryError:
    """What a fold fails with where the journal, or the code, does not let it go on."""
    return RecoveryError(stream_id, str(error), version=getattr(error, "version", None))


def removed(stream_id: str, through: int, *, use_snapshots: bool = True) -> RecoveryError:
    """What a fold fails with where it would have to begin with events that were removed."""
    reason = (
        "no snapshot from there on can be used: if one is there, run the code whose state has its schema, or else "
        "restore one from a backup"
        if use_snapshots
        else "it can only be rebuilt from a snapshot, and none was to be used: do without --full (use_snapshots=False)"
    )
    return RecoveryError(stream_id, f"its events up to version {through} were removed, and {reason}")
