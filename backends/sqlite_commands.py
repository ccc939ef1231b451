"""Reading what commands came to: one statement, and one row, for the questions of many streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from backends.times import nearest_time
from eventstore.backend import CommandLookup, CommandsFound, StoredCommand

# One more id than is wanted tells whether there are others. json(): what a subquery gives is text by itself.
FIND = """
SELECT json_group_array(json_array(w.key, s.forgotten,
    json((SELECT json_array(hex(c.fingerprint), hex(c.outcome_id), c.is_rejection, c.payload, c.version, c.recorded_at)
        FROM journal_commands c WHERE c.stream = s.id AND c.command_id = w.value ->> '$[1]')),
    json(CASE WHEN w.value ->> '$[2]' > 0 THEN (SELECT json_group_array(r.command_id) FROM
        (SELECT c.command_id FROM journal_commands c WHERE c.stream = s.id ORDER BY c.command_id DESC LIMIT ?2) r) END)
))
FROM json_each(?1) w CROSS JOIN journal_streams s ON s.tenant = '' AND s.stream_id = w.value ->> '$[0]'
"""


def parameters(lookups: Sequence[CommandLookup]) -> tuple[str, int]:
    """What `FIND` is asked."""
    return orjson.dumps([tuple(lookup) for lookup in lookups]).decode(), max(each.recent for each in lookups) + 1


def answers(lookups: Sequence[CommandLookup], found: str) -> Sequence[CommandsFound]:
    """What `FIND` has answered. Streams without a row are not in it."""
    by_number: dict[int, tuple[int, list[Any] | None, list[str] | None]] = {
        number: (forgotten, outcome, ids) for number, forgotten, outcome, ids in orjson.loads(found)
    }
    return [_answer(lookup, *by_number.get(number, (0, None, None))) for number, lookup in enumerate(lookups)]


def _answer(lookup: CommandLookup, forgotten: int, found: list[Any] | None, ids: list[str] | None) -> CommandsFound:
    outcome = None if found is None else _stored(lookup.command_id, *found)
    recent = (ids or [])[: lookup.recent]
    known_above = None
    if lookup.recent > 0:
        known_above = recent[-1] if len(ids or ()) > lookup.recent else ""
    return CommandsFound(outcome, recent, known_above, forgotten)


def _stored(
    command_id: str, fingerprint: str, outcome_id: str, is_rejection: int, payload: str, version: int, recorded_at: int
) -> StoredCommand:
    return StoredCommand(
        command_id,
        bytes.fromhex(fingerprint),
        bytes.fromhex(outcome_id),
        bool(is_rejection),
        payload.encode(),
        version,
        nearest_time(recorded_at),
    )
