"""Changes other than appends: truncation, snapshots, forgotten commands; each is one transaction of the writer."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime

from backends import sqlite_checkpoints
from backends.sqlite_append_sql import LOG_END
from backends.sqlite_filing import OF_STREAM
from backends.times import microseconds
from eventstore.backend import StoredSeal, StoredSnapshot
from eventstore.contract.passed_events import check_passed, no_snapshot
from eventstore.errors import FencedError
from eventstore.events import stream_kind

_MAX_VERSION = 2**63 - 1

# An id may carry a time that lies ahead of this machine's clock: it counts as issued when it was stored, at the latest.
_FORGOTTEN = """
UPDATE journal_streams SET forgotten = max(forgotten, coalesce((
    SELECT max(min(c.issued_at, c.recorded_at / 1000)) FROM {of_stream} c WHERE {doomed}
), 0)) WHERE id = :stream
"""
_FORGET = "DELETE FROM journal_commands WHERE id IN (SELECT c.id FROM {of_stream} c WHERE {doomed})"
# Row ids rise in the order in which outcomes were stored.
_OLD = (
    "c.recorded_at < :before AND c.id NOT IN "  # noqa: S608 - a constant
    f"(SELECT n.id FROM {OF_STREAM} n ORDER BY n.id DESC LIMIT :keep)"
)
_ADD_SEAL = """
INSERT INTO journal_seals (number, statement, signature, leaves, removals)
SELECT ?1, ?2, ?3, ?4, ?5 WHERE ?1 = (SELECT coalesce(max(number), 0) + 1 FROM journal_seals)
"""
_TRUNCATED = "c.version <= :through"
_LAST = "SELECT position FROM journal_events WHERE stream = ? AND version <= ? ORDER BY version DESC LIMIT 1"
_IS_THERE = "SELECT 1 FROM journal_snapshots WHERE stream = ? AND version = ? AND fingerprint = ?"
_STANDING = "SELECT 1 FROM journal_snapshots WHERE stream = ? AND version >= ? AND fingerprint = ? LIMIT 1"


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """A transaction that holds the file's write lock from the start."""
    # IMMEDIATE: a transaction that starts by reading can be refused the write lock later, however long it waits.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def now() -> int:
    """The machine's clock, in microseconds since 1970."""
    return time.time_ns() // 1000


def truncate(
    connection: sqlite3.Connection,
    tenant: str,
    stream_id: str,
    through: int,
    reason: str,
    epoch: int | None,
    fingerprint: str | None,
) -> int:
    """Remove events and outcomes up to a version, and record it. Returns how many events were removed."""
    with transaction(connection):
        found = connection.execute(
            "SELECT s.id, s.epoch, s.truncated, (SELECT max(e.version) FROM journal_events e WHERE e.stream = s.id) "
            "FROM journal_streams s WHERE s.tenant = ? AND s.stream_id = ?",
            (tenant, stream_id),
        ).fetchone()
        if found is None:
            return 0
        stream, claimed, truncated, newest = found
        _check_epoch(stream_id, epoch, claimed)
        last = min(through, max(newest or 0, truncated))
        if last <= truncated:
            return 0
        for (position,) in connection.execute(_LAST, (stream, last)).fetchall():
            check_passed(sqlite_checkpoints.concerning(connection, tenant), tenant, stream_id, position)
        if fingerprint is not None and not connection.execute(_STANDING, (stream, last, fingerprint)).fetchone():
            raise no_snapshot(stream_id, last, fingerprint)
        removed = remove_events(connection, stream, last, reason)
        _forget(connection, _TRUNCATED, stream=stream, through=last)
    return removed


def remove_events(connection: sqlite3.Connection, stream: int, through: int, reason: str) -> int:
    """Remove the events of a stream's row up to a version, inside a transaction. Returns how many."""
    (log_end,) = connection.execute(LOG_END).fetchone()
    # The door that the delete trigger looks for; it stays as the record of what was removed, and of where
    # the log ended, so that no position is used again.
    door = connection.execute(
        "INSERT INTO journal_removals (stream, through, reason, is_open, log_end, recorded_at) "
        "VALUES (?, ?, ?, 1, ?, ?)",
        (stream, through, reason, log_end, now()),
    ).lastrowid
    removed = connection.execute(
        "DELETE FROM journal_events WHERE stream = ? AND version <= ?", (stream, through)
    ).rowcount
    connection.execute("UPDATE journal_streams SET truncated = ? WHERE id = ?", (through, stream))
    connection.execute("UPDATE journal_removals SET is_open = 0, removed = ? WHERE id = ?", (removed, door))
    return removed


def forget_commands(
    connection: sqlite3.Connection, tenant: str, stream_id: str, keep: int, before: datetime | None
) -> int:
    """Forget the outcomes that are neither among the newest nor recorded late enough. Returns how many."""
    with transaction(connection):
        found = connection.execute(
            "SELECT id FROM journal_streams WHERE tenant = ? AND stream_id = ?", (tenant, stream_id)
        ).fetchone()
        if found is None:
            return 0
        latest = _MAX_VERSION if before is None else microseconds(before)
        return _forget(connection, _OLD, stream=found[0], keep=keep, before=latest)


def add_seal(connection: sqlite3.Connection, seal: StoredSeal) -> bool:
    """Store a seal if it is the next one."""
    with transaction(connection):
        return connection.execute(_ADD_SEAL, seal).rowcount == 1


# Where events were removed, other code has nothing but its newest snapshot from there on: that stays.
_SAVE_SNAPSHOT = """
INSERT INTO journal_snapshots (stream, version, fingerprint, encoding, payload, checksum, epoch, recorded_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (stream, version) DO UPDATE SET fingerprint = excluded.fingerprint, encoding = excluded.encoding,
    payload = excluded.payload, checksum = excluded.checksum, epoch = excluded.epoch, recorded_at = excluded.recorded_at
WHERE journal_snapshots.fingerprint = excluded.fingerprint OR NOT EXISTS
    (SELECT 1 FROM journal_streams WHERE id = excluded.stream AND truncated > 0 AND truncated <= excluded.version)
"""
_DROP_SNAPSHOTS = """
DELETE FROM journal_snapshots WHERE stream = ?1 AND version NOT IN (
    SELECT version FROM (SELECT version FROM journal_snapshots WHERE stream = ?1 ORDER BY version DESC LIMIT ?2)
    UNION SELECT max(n.version) FROM journal_snapshots n JOIN journal_streams s ON s.id = n.stream
    WHERE n.stream = ?1 AND s.truncated > 0 AND n.version >= s.truncated GROUP BY n.fingerprint
)
"""


def save_snapshot(connection: sqlite3.Connection, tenant: str, snapshot: StoredSnapshot, keep: int) -> bool:
    """Store a snapshot, and remove all but the newest, and but those that stand for removed events. Returns whether it
    is there then."""
    with transaction(connection):
        stream, claimed = stream_row(connection, tenant, snapshot.stream_id)
        _check_epoch(snapshot.stream_id, snapshot.epoch or None, claimed)
        connection.execute(
            _SAVE_SNAPSHOT,
            (
                stream,
                snapshot.version,
                snapshot.fingerprint,
                snapshot.encoding,
                snapshot.payload,
                snapshot.checksum,
                snapshot.epoch,
                microseconds(snapshot.recorded_at),
            ),
        )
        connection.execute(_DROP_SNAPSHOTS, (stream, keep))
        return connection.execute(_IS_THERE, (stream, snapshot.version, snapshot.fingerprint)).fetchone() is not None


def delete_snapshots(connection: sqlite3.Connection, tenant: str, stream_id: str, through: int | None) -> int:
    """Remove snapshots up to a version, or all. Returns how many."""
    return connection.execute(
        "DELETE FROM journal_snapshots WHERE version <= ? AND stream IN "
        "(SELECT id FROM journal_streams WHERE tenant = ? AND stream_id = ?)",
        (_MAX_VERSION if through is None else through, tenant, stream_id),
    ).rowcount


def stream_row(connection: sqlite3.Connection, tenant: str, stream_id: str) -> tuple[int, int]:
    """The id and the epoch of a stream's row, which is made if there is none."""
    connection.execute(
        "INSERT INTO journal_streams (tenant, stream_id, kind, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (tenant, stream_id, stream_kind(stream_id), now()),
    )
    id_, epoch = connection.execute(
        "SELECT id, epoch FROM journal_streams WHERE tenant = ? AND stream_id = ?", (tenant, stream_id)
    ).fetchone()
    return id_, epoch


def _forget(connection: sqlite3.Connection, doomed: str, **parameters: int) -> int:
    parts = {"of_stream": OF_STREAM, "doomed": doomed}
    connection.execute(_FORGOTTEN.format(**parts), parameters)
    return connection.execute(_FORGET.format(**parts), parameters).rowcount


def _check_epoch(stream_id: str, epoch: int | None, claimed: int) -> None:
    """Raise `FencedError` for an epoch that has been overtaken."""
    if epoch is not None and epoch < claimed:
        raise FencedError(stream_id, epoch, claimed)
