"""Seals and the record of truncations in SQL, which the SQL backends have alike."""

from __future__ import annotations

from backends.times import nearest_time
from eventstore.backend import Removal, StoredSeal
from eventstore.errors import JournalCorrupt

REMOVALS = """
SELECT r.id, s.tenant, s.stream_id, r.through, r.removed, r.reason, r.recorded_at
FROM {schema}journal_removals r JOIN {schema}journal_streams s ON s.id = r.stream
WHERE r.id > {after} ORDER BY r.id LIMIT {limit}
"""
_SEALS = """
SELECT number, statement, signature, leaves, removals FROM {schema}journal_seals
WHERE number > {after} ORDER BY number {order} LIMIT {limit}
"""


def seals(*, schema: str, after: str, limit: str, backwards: bool) -> str:
    """The statement that reads seals, with a database's own marks for parameters."""
    return _SEALS.format(schema=schema, after=after, limit=limit, order="DESC" if backwards else "ASC")


def removal(
    number: int, tenant: str, stream_id: str, through: int, removed: int, reason: str, recorded_at: int
) -> Removal:
    """A row of `REMOVALS`."""
    try:
        return Removal(number, stream_id, through, removed, reason, nearest_time(recorded_at), tenant)
    except TypeError as error:
        raise JournalCorrupt(f"the record of truncation {number} cannot be read: {error}") from error


def stored_seal(number: int, *columns: object) -> StoredSeal:
    """A row of `seals`. SQLite's columns hold whatever somebody has put there."""
    return StoredSeal(number, *(column if isinstance(column, bytes) else b"" for column in columns))
