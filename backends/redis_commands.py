"""Remembered commands: their outcomes as the bytes that Redis holds."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from backends.damaged_outcomes import damaged_outcome
from backends.redis_connection import Argument
from backends.redis_tenant import RedisTenant
from backends.times import nearest_time
from eventstore.backend import CommandLookup, CommandOutcome, CommandsFound, StoredCommand
from eventstore.contract.archive import ArchivedCommand
from eventstore.errors import JournalCorrupt

# Fingerprint, outcome id, when the command was issued, whether it was rejected; then the payload.
_GIVEN = struct.Struct(">16s16sQ?")
# What the script puts in front: version (7 bytes, as in heads) and time.
_PLACE_BYTES = 15


def packed_command(outcome: CommandOutcome) -> bytes:
    _, fingerprint, outcome_id, is_rejection, payload, issued_at = outcome
    return _GIVEN.pack(fingerprint, outcome_id, issued_at, is_rejection) + payload


def packed_archived(command: ArchivedCommand) -> bytes:
    """An outcome that has its place already, as the scripts store it."""
    outcome, version, recorded_at = command
    return version.to_bytes(7) + recorded_at.to_bytes(8) + packed_command(outcome)


def unpacked_archived(command_id: str, packed: bytes) -> ArchivedCommand:
    """Raises `JournalCorrupt` for one that is cut off."""
    try:
        fingerprint, outcome_id, issued_at, is_rejection = _GIVEN.unpack_from(packed, _PLACE_BYTES)
    except struct.error as error:
        raise JournalCorrupt(f"the outcome of command {command_id!r} is damaged: {error}") from error
    payload = packed[_PLACE_BYTES + _GIVEN.size :]
    outcome = CommandOutcome(command_id, fingerprint, outcome_id, is_rejection, payload, issued_at)
    return ArchivedCommand(outcome, int.from_bytes(packed[:7]), int.from_bytes(packed[7:_PLACE_BYTES]))


def lookup_arguments(tenant: RedisTenant, lookups: Sequence[CommandLookup]) -> list[Argument]:
    arguments: list[Argument] = [len(lookups), *(tenant.name(lookup.stream_id) for lookup in lookups)]
    for _, command_id, recent in lookups:
        arguments += (command_id.encode(), max(recent, 0))
    return arguments


def found_commands(lookup: CommandLookup, answer: Sequence[Any]) -> CommandsFound | JournalCorrupt:
    outcome, ids, is_whole, forgotten = answer
    try:
        stored = None if outcome is None else _stored(lookup, outcome)
        # Text sorts by code point, which is the order of its UTF-8 bytes.
        recent = sorted((command_id.decode() for command_id in ids), reverse=True)
    except (struct.error, UnicodeDecodeError) as error:
        return damaged_outcome(lookup, error)
    return CommandsFound(stored, recent, "" if is_whole else None, forgotten)


def _stored(lookup: CommandLookup, packed: bytes) -> StoredCommand:
    version = int.from_bytes(packed[:7])
    time = int.from_bytes(packed[7:_PLACE_BYTES])
    fingerprint, outcome_id, _, is_rejection = _GIVEN.unpack_from(packed, _PLACE_BYTES)
    payload = packed[_PLACE_BYTES + _GIVEN.size :]
    return StoredCommand(lookup.command_id, fingerprint, outcome_id, is_rejection, payload, version, nearest_time(time))
