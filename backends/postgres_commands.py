"""PostgresCommands: what commands came to, looked up for many streams at once."""

from __future__ import annotations

from collections.abc import Sequence

from backends.damaged_outcomes import damaged_outcome
from backends.postgres_pool import PostgresPool
from backends.postgres_sql import PostgresSQL
from backends.times import nearest_time
from eventstore.backend import CommandLookup, CommandsFound, StoredCommand
from eventstore.errors import JournalCorrupt

# One more id than is wanted tells whether there are others.
_FIND = """
SELECT w.number, s.forgotten, r.ids, c.fingerprint, c.outcome_id, c.is_rejection, c.payload, c.version, c.recorded_at
FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS w (stream_id, command_id, recent, number)
JOIN {schema}.journal_streams s ON s.tenant = {tenant} AND s.stream_id = w.stream_id
LEFT JOIN {schema}.journal_commands c ON c.stream = s.id AND c.command_id = w.command_id
LEFT JOIN LATERAL (
    SELECT array_agg(n.command_id ORDER BY n.command_id DESC) AS ids
    FROM (
        SELECT n.command_id FROM {schema}.journal_commands n WHERE n.stream = s.id
        ORDER BY n.command_id DESC LIMIT CASE WHEN w.recent > 0 THEN w.recent + 1 ELSE 0 END
    ) n
) r ON true
"""


class PostgresCommands:
    """Reads through the pool."""

    def __init__(self, sql: PostgresSQL, pool: PostgresPool) -> None:
        self._pool = pool
        self._find = sql.named(_FIND)

    async def find(self, lookups: Sequence[CommandLookup]) -> Sequence[CommandsFound | JournalCorrupt]:
        """Answer all questions with one statement, which is one moment of all their streams."""
        if not lookups:
            return []
        columns = list(zip(*lookups, strict=True))
        try:
            rows = await self._pool.run(lambda session: session.fetch(self._find, *columns))
        except JournalCorrupt as error:
            if len(lookups) == 1:
                return [damaged_outcome(lookups[0], error)]
            # What the server finds damaged spoils its whole answer: each is asked for by itself.
            return [(await self.find([lookup]))[0] for lookup in lookups]
        found = {row[0]: row for row in rows}
        return [
            _answer(lookup, *found[number][1:]) if number in found else _answer(lookup)
            for number, lookup in enumerate(lookups, start=1)
        ]


def _answer(
    lookup: CommandLookup,
    forgotten: int = 0,
    ids: Sequence[str] | None = None,
    fingerprint: bytes | None = None,
    outcome_id: bytes = b"",
    is_rejection: bool = False,
    payload: str = "",
    version: int = 0,
    recorded_at: int = 0,
) -> CommandsFound:
    found = ids or []
    recent = found[: lookup.recent]
    known_above = None
    if lookup.recent > 0:
        known_above = recent[-1] if len(found) > lookup.recent else ""
    outcome = None
    if fingerprint is not None:
        outcome = StoredCommand(
            lookup.command_id,
            fingerprint,
            outcome_id,
            is_rejection,
            payload.encode(),
            version,
            nearest_time(recorded_at),
        )
    return CommandsFound(outcome, recent, known_above, forgotten)
