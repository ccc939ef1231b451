"""What an append that was not stored means to the actor that decided it, and to those who wait for it."""

from __future__ import annotations

from actors.cells.mailbox import Envelope
from actors.command_identity import CommandIdentity
from eventstore.errors import (
    BackendUnavailable,
    CommandForgotten,
    ConcurrencyError,
    DuplicateCommand,
    DurabilityError,
    EventStoreError,
    FencedError,
    OutcomeUnknown,
    OwnedElsewhere,
    ProjectionError,
    ProjectionFailed,
    SchemaError,
    StoreClosed,
    TransactionError,
)

# A conflict is cured by catching up and deciding again, so often before the asker is told.
_ATTEMPTS = 3

# These say nothing about the actor, so they are not its failures: the database is away, or not what it should be, or
# somebody else owns the stream, or an inline projection cannot apply the events.
NOT_ITS_OWN = (
    BackendUnavailable,
    DurabilityError,
    FencedError,
    OutcomeUnknown,
    OwnedElsewhere,
    ProjectionError,
    SchemaError,
    StoreClosed,
    TransactionError,
)
OVERTAKEN = (ConcurrencyError, DuplicateCommand, CommandForgotten)
"""Another process was faster: nothing is wrong with the actor."""


def is_decided_again(envelope: Envelope, error: EventStoreError, *, is_pure: bool) -> bool:
    """Whether a command is to be decided again instead of telling its asker that nothing was stored.

    A pure decision may be run again; what does I/O may not.
    """
    if isinstance(error, (DuplicateCommand, CommandForgotten)):
        is_named = envelope.identity is not None and envelope.identity.command_id == error.command_id
        # Another process was faster with this very command: what came of it there is the answer.
        envelope.is_decided = envelope.is_decided or is_named
        return is_pure or is_named
    if isinstance(error, ProjectionFailed):
        return is_pure and not envelope.is_apart
    return isinstance(error, ConcurrencyError) and is_pure and envelope.attempts < _ATTEMPTS


def told(error: EventStoreError, identity: CommandIdentity | None, version: int) -> EventStoreError:
    """An append's error as the asker of one command gets it."""
    command_id = None if identity is None else identity.command_id
    if isinstance(error, (DuplicateCommand, CommandForgotten)) and error.command_id != command_id:
        # It was another command, which went the same way, that could not be stored.
        conflict = ConcurrencyError(error.stream_id, version, None)
        conflict.__cause__ = error
        return conflict
    return outcome_unknown(error, command_id) if isinstance(error, OutcomeUnknown) else error


def outcome_unknown(error: OutcomeUnknown, command_id: str | None) -> OutcomeUnknown:
    """An append's unknown outcome as that of a command, which says how to find out."""
    if command_id is None:
        return error
    unknown = OutcomeUnknown(f"{error}; ask again with command_id {command_id!r} to find out", command_id=command_id)
    unknown.__cause__ = error
    return unknown
