"""Peer: the same account on `eventsourcing`, with its own SQLite recorder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
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
def opened(path: Path) -> Iterator[Application[UUID]]:
    """An application on a file of its own, checked to be as durable as the journal: WAL and synchronous=FULL."""
    application: Application[UUID] = Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
    )
    try:
        with application.factory.datastore.transaction(commit=False) as cursor:  # type: ignore[attr-defined]
            for pragma, wanted in (("journal_mode", "wal"), ("synchronous", 2)):
                cursor.execute(f"PRAGMA {pragma}")
                (found,) = cursor.fetchone()
                assert found == wanted, f"eventsourcing's file has {pragma} = {found}"
        yield application
    finally:
        application.close()


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
