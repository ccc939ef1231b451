"""Leases and claims in a SQLite file: what its lock, its threads and its clock do to them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import pytest_asyncio

from backends.conformance.events import write
from backends.sqlite import SQLiteBackend
from eventstore import EventStore
from eventstore.backend import Claim, Owner
from eventstore.errors import OutcomeUnknown, StoreBusy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest_asyncio.fixture
async def backend(path: Path) -> AsyncGenerator[SQLiteBackend]:
    async with EventStore.open(f"sqlite:///{path}") as store:
        backend = store._backend
        assert isinstance(backend, SQLiteBackend)
        yield backend


def owner(number: int = 1, *, seconds: float = 30.0) -> Owner:
    return Owner(bytes([number]) * 16, f"owner-{number}", seconds)


def by_hand(path: Path, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


def writers() -> int:
    return sum(thread.name.startswith("sqlite-writer") for thread in threading.enumerate())


async def test_a_lease_is_renewed_between_appends_that_never_pause(backend: SQLiteBackend):
    seconds = 10.0
    lease = backend.lease(owner(seconds=seconds))
    await lease.renew(b"{}")
    is_over = asyncio.Event()

    async def append() -> None:
        while not is_over.is_set():
            await backend.append([[write("a", b"1")] for _ in range(64)])

    async with asyncio.TaskGroup() as tasks:
        # While one group is stored another one waits already: the writer is never idle.
        for _ in range(3):
            tasks.create_task(append())
        try:
            for _ in range(10):
                started = time.monotonic()
                await lease.renew(b"{}")
                assert time.monotonic() - started < seconds / 3
                await asyncio.sleep(0.05)
        finally:
            is_over.set()
    await lease.end()


async def test_a_lease_lets_go_of_its_thread_when_it_is_ended(backend: SQLiteBackend):
    before = writers()
    lease = backend.lease(owner())
    await lease.renew(b"{}")
    assert writers() == before + 1
    await lease.end()
    assert writers() == before
    await lease.end()
    assert writers() == before


async def test_a_lease_that_never_began_has_nothing_to_end(backend: SQLiteBackend, path: Path):
    before = writers()
    await backend.lease(owner()).end()
    assert writers() == before


async def test_a_renewal_waits_for_the_files_lock_no_longer_than_the_lease_and_queues_no_other(
    backend: SQLiteBackend, path: Path
):
    lease = backend.lease(owner(seconds=1.0))
    await lease.renew(b"{}")
    locking = sqlite3.connect(path, isolation_level=None)
    try:
        locking.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown):
            await lease.renew(b"{}")
        assert 0.9 < time.monotonic() - started < 20
        with pytest.raises(StoreBusy):
            await lease.renew(b"{}")
        locking.execute("ROLLBACK")
    finally:
        locking.close()
    async with asyncio.timeout(20):
        while True:
            try:
                await lease.renew(b"{}")
                break
            except StoreBusy:
                await asyncio.sleep(0.05)
    assert [info.remaining > 0 for info in await backend.owners()] == [True]
    await lease.end()


async def test_a_renewal_that_was_cancelled_leaves_no_transaction_open(backend: SQLiteBackend, path: Path):
    lease = backend.lease(owner())
    await lease.renew(b"{}")
    renewal = asyncio.create_task(lease.renew(b"{}"))
    await asyncio.sleep(0)
    renewal.cancel()
    await asyncio.wait([renewal])
    await lease.end()
    by_hand(path, "BEGIN IMMEDIATE")
    assert await backend.owners() == []


async def test_a_lease_that_ran_out_a_day_ago_is_removed_when_another_begins(backend: SQLiteBackend, path: Path):
    leases = {number: backend.lease(owner(number)) for number in (1, 2, 3)}
    for number in (1, 2):
        await leases[number].renew(b"{}")
    hours = {1: 25, 2: 23}
    for number, since in hours.items():
        ended = time.time_ns() // 1000 - since * 3_600_000_000
        by_hand(path, "UPDATE journal_owners SET ends_at = ? WHERE id = ?", ended, owner(number).id)
    await leases[2].renew(b"{}")
    assert [info.name for info in await backend.owners()] == ["owner-1", "owner-2"]
    by_hand(path, "UPDATE journal_owners SET ends_at = ends_at - 82800000000 WHERE id = ?", owner(2).id)
    await leases[3].renew(b"{}")
    assert [info.name for info in await backend.owners()] == ["owner-2", "owner-3"]
    # Its process was not dead after all: it begins anew.
    await leases[1].renew(b"{}")
    assert [info.name for info in await backend.owners()] == ["owner-1", "owner-2", "owner-3"]
    for lease in leases.values():
        await lease.end()


async def test_an_ended_lease_leaves_no_holdings_and_the_epochs(backend: SQLiteBackend, path: Path):
    lease = backend.lease(owner())
    await lease.renew(b"{}")
    await backend.claim([Claim("a", owner().id), Claim("b", owner().id)])
    await lease.end()
    assert await backend.holdings(after="", limit=10) == []
    assert by_hand(path, "SELECT stream_id, epoch, owner FROM journal_streams ORDER BY 1") == [
        ("a", 1, None),
        ("b", 1, None),
    ]


async def test_a_stream_that_is_claimed_twice_in_one_call_gets_two_epochs(backend: SQLiteBackend):
    lease = backend.lease(owner())
    await lease.renew(b"{}")
    claims = [Claim("a", owner().id), Claim("a"), Claim("a", owner().id), Claim("a")]
    assert await backend.claim(claims) == [1, 2, 3, 4]
    assert await backend.holdings(after="", limit=10) == []
    await lease.end()


async def test_claims_of_many_streams_are_a_handful_of_statements(backend: SQLiteBackend):
    lease = backend.lease(owner())
    await lease.renew(b"{}")
    statements: list[str] = []
    await backend._open_writer.run(lambda connection: connection.set_trace_callback(statements.append))
    await backend.claim([Claim(f"s-{number}", owner().id) for number in range(200)])
    assert 0 < len([statement for statement in statements if not statement.startswith("--")]) <= 6
    await lease.end()
