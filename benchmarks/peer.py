"""Peer: the same account on `eventsourcing`, with its own recorders for SQLite and Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event


class Account(Aggregate):
    def __init__(self) -> None:
        self.amount = 0

    @event("Deposited")
    def deposit(self, amount: int) -> None:
        self.amount += amount


@contextmanager
def opened(journal: str, directory: Path) -> Iterator[Application[UUID]]:
    """An application on a file of its own, or in the same Postgres database as the journal of that URL.

    The file is checked to be as durable as the journal: WAL and synchronous=FULL. On Postgres it is the same server.
    """
    parts = urlsplit(journal)
    is_sqlite = parts.scheme == "sqlite"
    application: Application[UUID] = Application(env=_sqlite(directory / "peer.db") if is_sqlite else _postgres(parts))
    try:
        if is_sqlite:
            _check_durable(application)
        yield application
    finally:
        application.close()


def _sqlite(path: Path) -> dict[str, str]:
    return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}


def _postgres(parts: SplitResult) -> dict[str, str]:
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_HOST": parts.hostname or "127.0.0.1",
        "POSTGRES_PORT": str(parts.port or 5432),
        "POSTGRES_DBNAME": parts.path.removeprefix("/"),
        "POSTGRES_USER": unquote(parts.username or ""),
        # It wants one; a server that trusts its clients does not look at it.
        "POSTGRES_PASSWORD": unquote(parts.password or "none"),
        "POSTGRES_POOL_SIZE": "8",
        "POSTGRES_CREATE_TABLE": "yes",
    }


def _check_durable(application: Application[UUID]) -> None:
    with application.factory.datastore.transaction(commit=False) as cursor:  # type: ignore[attr-defined]
        for pragma, wanted in (("journal_mode", "wal"), ("synchronous", 2)):
            cursor.execute(f"PRAGMA {pragma}")
            (found,) = cursor.fetchone()
            assert found == wanted, f"eventsourcing's file has {pragma} = {found}"


def new_accounts(application: Application[UUID], count: int) -> list[Account]:
    accounts = [Account() for _ in range(count)]
    application.save(*accounts)
    return accounts


def deposit_in_turn(application: Application[UUID], accounts: Sequence[Account], seconds: float) -> float:
    """Save one event after another. Returns events per second."""
    start = time.perf_counter()
    end = start + seconds
    stored = 0
    while time.perf_counter() < end:
        for account in accounts:
            account.deposit(1)
            application.save(account)
        stored += len(accounts)
    return stored / (time.perf_counter() - start)


def deposit_in_threads(
    application: Application[UUID], accounts: Sequence[Account], seconds: float, *, threads: int
) -> float:
    """The same from threads, each with its own part of the accounts. Returns events per second."""
    parts = [accounts[number::threads] for number in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda part: deposit_in_turn(application, part, seconds), parts))
