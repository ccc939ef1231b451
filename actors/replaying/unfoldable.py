"""Unfoldable: what stands in the way of a fold, in the journal or in the code, and how that is told."""

from __future__ import annotations

from eventstore.errors import CodecError, DefinitionError, JournalCorrupt, RecoveryError

UNFOLDABLE = (CodecError, JournalCorrupt, DefinitionError)
"""What stands in the way of a fold, and is told as a `RecoveryError`."""


def unfoldable(stream_id: str, error: Exception) -> RecoveryError:
    """What a fold fails with where the journal, or the code, does not let it go on."""
    return RecoveryError(stream_id, str(error), version=getattr(error, "version", None))
