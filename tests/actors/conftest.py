"""The actors' tests run on memory and on SQLite, those that databases have most part in on every database."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from actors import ActorSystem
from eventstore import EventStore
from tests.actors.faults import Faults
from tests.actors.journals import empty_postgres, new_journal
from tests.loop_clock import LoopClock
from tests.servers.databases import Databases, asyncio_run

_TEST_SECONDS = 180
# No test with this system means that its time runs out, however long the machine takes.
_TRANSACTION_SECONDS = 60.0

# Where a database could show through: its order, its conflicts, what it gives back, and when it acknowledges.
_ON_EVERY_DATABASE = {
    "test_asking",
    "test_conflicts",
    "test_event_loops",
    "test_idempotency",
    "test_lifecycle",
    "test_ownership",
    "test_recovery",
    "test_replies",
    "test_snapshots",
    "test_tenants",
    "test_transaction_ids",
    "test_transactions",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "url" in metafunc.fixturenames:
        is_everywhere = metafunc.module.__name__.rpartition(".")[2] in _ON_EVERY_DATABASE
        servers = ["postgres", "redis"] if is_everywhere else []
        metafunc.parametrize("url", ["memory", "sqlite", *servers], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal of this test's own."""
    fixtures = {"postgres": "emptied_postgres_url", "redis": "redis_url"}
    if request.param in fixtures:
        url: str = request.getfixturevalue(fixtures[request.param])
        return url
    return new_journal(request.param, tmp_path)


@pytest.fixture
def emptied_postgres_url(shared_postgres_url: str) -> str:
    asyncio_run(empty_postgres(shared_postgres_url))
    return shared_postgres_url


@pytest.fixture(scope="session")
def shared_postgres_url(databases: Databases) -> Iterator[str]:
    """One database for all tests, which use it one after another."""
    with databases.migrated() as url:
        yield url


@pytest.fixture(autouse=True)
def nothing_hangs(request: pytest.FixtureRequest) -> Iterator[None]:
    """A reply that never comes fails its test, and not the whole run."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"it takes longer than {_TEST_SECONDS} s")

    if request.node.get_closest_marker("soak") is not None:
        yield
        return
    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again: what gave up may hang once more while it is being cleaned up.
    signal.setitimer(signal.ITIMER_REAL, _TEST_SECONDS, 5.0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_lost_in_the_loop() -> AsyncIterator[None]:
    """What asyncio can report to nobody but the loop (a failed callback, an exception nobody took) fails the test."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    yield
    assert reports == []


@pytest_asyncio.fixture
async def store(url: str) -> AsyncIterator[EventStore]:
    async with EventStore.open(url) as store:
        yield store


@pytest_asyncio.fixture
async def other(store: EventStore, url: str) -> AsyncIterator[EventStore]:
    """Another writer on the same journal, as another process would be."""
    async with EventStore.open(url) as other:
        yield other


@pytest_asyncio.fixture
async def system(store: EventStore) -> AsyncIterator[ActorSystem]:
    async with ActorSystem(store, transaction_timeout=_TRANSACTION_SECONDS) as system:
        yield system


@pytest_asyncio.fixture
async def clock() -> LoopClock:
    """For tests on memory."""
    return LoopClock(asyncio.get_running_loop())


@pytest_asyncio.fixture
async def faults() -> Faults:
    return Faults()


@pytest_asyncio.fixture
async def faulty(faults: Faults) -> AsyncIterator[ActorSystem]:
    """A system whose journal is reached through the fault injector."""
    async with (
        faults.store() as store,
        ActorSystem(store, shutdown_timeout=1.0, transaction_timeout=_TRANSACTION_SECONDS) as system,
    ):
        yield system
        faults.release()
