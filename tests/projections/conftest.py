"""The projections' tests run on every database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from eventstore import EventStore
from tests.actors.journals import empty_postgres, new_journal
from tests.projections.ledger import drop_tables
from tests.servers.databases import Databases, asyncio_run

SQL = ["sqlite", "postgres"]
WITHOUT_SQL = ["memory", "redis"]
EVERYWHERE = [*SQL, *WITHOUT_SQL]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "url" in metafunc.fixturenames:
        marked = metafunc.definition.get_closest_marker
        stores = SQL if marked("sql_alone") else WITHOUT_SQL if marked("without_sql") else EVERYWHERE
        metafunc.parametrize("url", stores, indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """An empty journal of this test's own."""
    match request.param:
        case "postgres":
            return request.getfixturevalue("emptied_postgres_url")
        case "redis":
            return request.getfixturevalue("redis_url")
        case kind:
            return new_journal(kind, tmp_path)


@pytest.fixture(scope="session")
def shared_projections_url(databases: Databases) -> Any:
    """One database for all tests, which use it one after another."""
    with databases.migrated() as url:
        yield url


@pytest.fixture
def emptied_postgres_url(shared_projections_url: str) -> str:
    asyncio_run(empty_postgres(shared_projections_url))
    return shared_projections_url


@pytest_asyncio.fixture
async def store(url: str) -> AsyncIterator[EventStore]:
    async with EventStore.open(url) as store:
        if store.capabilities.user_sql:
            await drop_tables(store)
        yield store


@pytest_asyncio.fixture
async def other(store: EventStore, url: str) -> AsyncIterator[EventStore]:
    """The same journal as another process has it."""
    async with EventStore.open(url) as other:
        yield other
