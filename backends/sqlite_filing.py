"""Filing: bringing outcomes into the index by streams, many at a time.

What is asked of one stream's outcomes (which ids are the newest, which are to be forgotten) needs them by stream. An
index that each outcome entered at once would write one page more for each stream in each commit, a quarter of what a
command with an id costs. So an outcome is stored where the last one was, and `is_filed` later: at any moment all are,
up to a row id, and those above it are few enough to be looked through.
"""

from __future__ import annotations

import sqlite3

MOST_UNFILED = 2048
"""Beyond so many, the next append files them first: that takes some milliseconds, and to look through them one."""

# From the end, which is near. By the index it would be every outcome that is filed.
FILED_THROUGH = """
coalesce((SELECT id FROM journal_commands NOT INDEXED WHERE is_filed ORDER BY id DESC LIMIT 1), 0)
"""
OF_STREAM = f"""
(SELECT * FROM journal_commands WHERE stream = :stream AND is_filed
UNION ALL SELECT * FROM journal_commands WHERE id > {FILED_THROUGH} AND stream = :stream)
"""  # noqa: S608 - a constant
"""Every outcome of a stream."""

_FILE = f"UPDATE journal_commands SET is_filed = 1 WHERE id > {FILED_THROUGH}"  # noqa: S608 - a constant
_UNFILED = f"SELECT coalesce(max(id), 0) - {FILED_THROUGH} FROM journal_commands"  # noqa: S608 - a constant


def unfiled(connection: sqlite3.Connection) -> int:
    """How many outcomes are to be filed, or a few more."""
    return int(connection.execute(_UNFILED).fetchone()[0])


def file_all(connection: sqlite3.Connection) -> None:
    """File every outcome, in a commit of its own."""
    # New outcomes get row ids above all that are there, so those that are filed stay below those that are not.
    connection.execute(_FILE)
