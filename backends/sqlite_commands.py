"""Reading what commands came to: one statement, and one row, for the questions of many streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from backends.sqlite_filing import FILED_THROUGH
from backends.times import nearest_time
from eventstore.backend import CommandLookup, CommandsFound, StoredCommand
from eventstore.errors import JournalCorrupt

# One more id than is wanted tells whether there are others. json(): what a subquery gives is text by itself. Outcomes
# that are not filed yet are looked through once, for all who ask (CROSS JOIN: in this order).
FIND = f"""
WITH wanted AS MATERIALIZED (
    SELECT w.key AS number, s.id AS stream, s.forgotten, w.value ->> '$[1]' AS command_id, w.value ->> '$[2]' AS recent
    FROM json_each(?1) w CROSS JOIN journal_streams s ON s.tenant = ?3 AND s.stream_id = w.value ->> '$[0]'
)
SELECT json_array(
    json((SELECT json_group_array(json_array(w.number, w.forgotten,
        json((SELECT json_array(
                hex(c.fingerprint), hex(c.outcome_id), c.is_rejection, c.payload, c.version, c.recorded_at)
            FROM journal_commands c WHERE c.command_id = w.command_id AND c.stream = w.stream)),
        json(CASE WHEN w.recent > 0 THEN (SELECT json_group_array(r.command_id) FROM (
            SELECT c.command_id FROM journal_commands c WHERE c.stream = w.stream AND c.is_filed
            ORDER BY c.command_id DESC LIMIT ?2) r) END)
    )) FROM wanted w)),
    json((SELECT json_group_array(json_array(w.number, c.command_id))
        FROM journal_commands c CROSS JOIN wanted w ON w.stream = c.stream AND w.recent > 0
        WHERE ?2 > 1 AND c.id > {FILED_THROUGH}))
)
"""  # noqa: S608 - a constant


def parameters(tenant: str, lookups: Sequence[CommandLookup]) -> tuple[str, int, str]:
    """What `FIND` is asked."""
    wanted = orjson.dumps([tuple(lookup) for lookup in lookups]).decode()
    return wanted, max(each.recent for each in lookups) + 1, tenant


def answers(lookups: Sequence[CommandLookup], found: str) -> Sequence[CommandsFound]:
    """What `FIND` has answered. Streams without a row are not in it. Raises `JournalCorrupt`, which names no stream."""
    try:
        by_streams, not_filed = orjson.loads(found)
        by_number: dict[int, tuple[int, list[Any] | None, list[str]]] = {
            number: (forgotten, outcome, ids or []) for number, forgotten, outcome, ids in by_streams
        }
        for number, command_id in not_filed:
            by_number[number][2].append(command_id)
        return [_answer(lookup, *by_number.get(number, (0, None, []))) for number, lookup in enumerate(lookups)]
    except (ValueError, TypeError) as error:
        raise JournalCorrupt(f"a stored outcome cannot be read: {error}") from error


def _answer(lookup: CommandLookup, forgotten: int, found: list[Any] | None, ids: Iterable[str]) -> CommandsFound:
    outcome = None if found is None else _stored(lookup.command_id, *found)
    if lookup.recent == 0:
        return CommandsFound(outcome, [], None, forgotten)
    # Texts compare by their code points, which is the order of their bytes.
    falling = sorted(ids, reverse=True)
    recent = falling[: lookup.recent]
    return CommandsFound(outcome, recent, recent[-1] if len(falling) > lookup.recent else "", forgotten)


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
