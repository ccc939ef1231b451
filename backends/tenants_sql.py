"""Which tenants there are, in SQL: one look into the index of streams for each tenant, not one for each stream."""

from __future__ import annotations

TENANTS_FROM = """
WITH RECURSIVE found (tenant) AS (
    SELECT min(s.tenant) FROM {streams} s WHERE s.tenant >= {first} AND ({own} = '' OR s.tenant = {own})
    UNION ALL
    SELECT (SELECT min(s.tenant) FROM {streams} s WHERE s.tenant > f.tenant AND {own} = '')
    FROM found f WHERE f.tenant IS NOT NULL
)
SELECT tenant FROM found WHERE tenant IS NOT NULL LIMIT {limit}
"""

TENANTS = TENANTS_FROM.format(streams="journal_streams", first="?1", limit="?2", own="?3")
"""On SQLite."""


def first_tenant(after: str | None) -> str:
    """The least text that a tenant's name behind another one can be. No name holds a character as low as that."""
    return "" if after is None else after + "\x01"
