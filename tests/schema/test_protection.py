"""The database itself refuses to change events, and to remove them except through the record of removals."""

from __future__ import annotations

import sqlite3

import pytest

from .conftest import insert_event

CHANGED = "journal events are never changed"
REMOVED = "journal events are only removed by truncation"


@pytest.mark.parametrize("verb", ["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE", "UPDATE OR FAIL"])
def test_an_update_is_refused(journal: sqlite3.Connection, verb: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=CHANGED):
        journal.execute(f"{verb} journal_events SET type = 'forged' WHERE version = 1")
    assert versions(journal) == [1, 2, 3]


def test_an_upsert_is_refused(journal: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=CHANGED):
        journal.execute(
            "INSERT INTO journal_events "
            "(stream, version, type, schema_version, payload, event_id, checksum, recorded_at) "
            "VALUES (1, 1, 't', 1, '{}', x'00', 0, 1) ON CONFLICT DO UPDATE SET type = 'forged'"
        )


@pytest.mark.parametrize("where", ["", "WHERE version = 3"])
def test_a_delete_is_refused(journal: sqlite3.Connection, where: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=REMOVED):
        journal.execute(f"DELETE FROM journal_events {where}")
    assert versions(journal) == [1, 2, 3]


@pytest.mark.xfail(
    strict=True,
    reason="SQLite runs no delete trigger for REPLACE unless the connection has recursive_triggers on",
)
def test_a_replace_is_refused(journal: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        insert_event(journal, 1, verb="INSERT OR REPLACE", type="forged")


def test_a_replace_is_refused_where_triggers_are_recursive(journal: sqlite3.Connection) -> None:
    journal.execute("PRAGMA recursive_triggers = ON")
    with pytest.raises(sqlite3.IntegrityError, match=REMOVED):
        insert_event(journal, 1, verb="INSERT OR REPLACE", type="forged")
    assert versions(journal) == [1, 2, 3]


def test_an_open_removal_lets_its_events_go(journal: sqlite3.Connection) -> None:
    record_removal(journal, stream=1, through=2, is_open=True)
    assert journal.execute("DELETE FROM journal_events WHERE version <= 2").rowcount == 2
    assert versions(journal) == [3]


@pytest.mark.parametrize(
    ("stream", "through", "is_open"),
    [(1, 2, True), (2, 3, True), (1, 3, False)],
    ids=["too short", "another stream's", "closed"],
)
def test_a_removal_that_does_not_cover_the_event_keeps_it(
    journal: sqlite3.Connection, stream: int, through: int, is_open: bool
) -> None:
    record_removal(journal, stream=stream, through=through, is_open=is_open)
    with pytest.raises(sqlite3.IntegrityError, match=REMOVED):
        journal.execute("DELETE FROM journal_events WHERE version = 3")


def record_removal(connection: sqlite3.Connection, *, stream: int, through: int, is_open: bool) -> None:
    connection.execute(
        "INSERT INTO journal_removals (stream, through, reason, is_open, recorded_at) VALUES (?, ?, 'test', ?, 1)",
        (stream, through, is_open),
    )


def versions(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT version FROM journal_events WHERE type = 't' ORDER BY 1")]
