"""The verdict finds every kind of violation, one at a time, in a store that is sound but for that."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from actors import ActorSystem
from eventstore import EventStore, Snapshot

from .journals import sqlite_url
from .vault import Deposit, Intent, Receipt, Record, Vault, deposit
from .verdict import verdict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vaults.db"


@pytest.fixture
def record(path: Path) -> Record:
    """The record of a store with one vault of four events: deposits a, b (of two parts) and c."""
    lines: list[str] = []

    async def load() -> None:
        async with ActorSystem(f"sqlite:///{path}") as system:
            for id_, parts in (("a", 1), ("b", 2), ("c", 1)):
                await deposit(system.ref(Vault, "1"), Deposit(id=id_, parts=parts, amount=3), lines.append)

    asyncio.run(load())
    record = Record()
    record.read("\n".join(lines))
    return record


def rules(path: Path, record: Record) -> set[str]:
    return {violation.rule for violation in verdict(sqlite_url(path), record)}


def test_a_sound_store_has_none(path: Path, record: Record) -> None:
    assert record.acks == {"a": Receipt(1, 3), "b": Receipt(3, 9), "c": Receipt(4, 12)}
    assert verdict(sqlite_url(path), record) == []


@pytest.mark.parametrize(
    ("rule", "tampering"),
    [
        ("lost", "DELETE FROM journal_events WHERE version = 4"),
        ("hole", "DELETE FROM journal_events WHERE version = 1"),
        ("torn", "DELETE FROM journal_events WHERE version = 3"),
        ("torn", "UPDATE journal_events SET batch_id = NULL WHERE version = 3"),
        ("not intended", "UPDATE journal_events SET payload = json_set(payload, '$.amount', 7) WHERE version = 4"),
        (
            "doubled",
            "INSERT INTO journal_events (stream, version, type, schema_version, payload, event_id, checksum, "
            "recorded_at) "
            "SELECT stream, 5, type, 1, payload, randomblob(16), checksum, 1 FROM journal_events WHERE version = 1",
        ),
        ("no replay", "UPDATE journal_events SET type = 'unheard-of' WHERE version = 4"),
    ],
)
def test_what_was_done_to_the_file_is_found(path: Path, record: Record, rule: str, tampering: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.executescript(tampering)
        for _, definition in triggers:
            connection.execute(definition)

    assert rule in rules(path, record)


def test_a_page_that_was_overwritten_is_found(path: Path, record: Record) -> None:
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT (rootpage - 1) * page_size FROM sqlite_schema, pragma_page_size WHERE name = 'journal_events'"
        (offset,) = connection.execute(query).fetchone()
    with path.open("r+b") as file:
        file.seek(offset + 3000)
        file.write(b"\xff" * 1000)

    assert rules(path, record) == {"corrupt"}


def test_a_snapshot_that_disagrees_with_the_events_is_found(path: Path, record: Record) -> None:
    async def save() -> None:
        async with EventStore.open(f"sqlite:///{path}") as store:
            wrong = Snapshot("vault-1", 2, Vault.state_type.fingerprint, b'{"total":1000}', datetime.now(UTC))
            await store.save_snapshot(wrong)

    asyncio.run(save())

    assert rules(path, record) == {"wrong replay"}


def test_what_does_not_fit_the_record_is_found(path: Path, record: Record) -> None:
    del record.intents["c"], record.acks["c"]
    assert rules(path, record) == {"not intended"}

    record.intents["c"] = Intent("vault-1", 1, 3)
    record.refused["c"] = "StoreBusy"
    assert rules(path, record) == {"refused but stored"}

    record.refused.clear()
    record.acks["c"] = Receipt(4, 13)
    assert rules(path, record) == {"wrong reply"}

    record.acks["c"] = Receipt(5, 15)
    assert rules(path, record) == {"wrong reply"}
