"""What the contract's tests share: one database that is emptied between them, because a new one takes far longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.conformance.sql import TRANSFERS
from tests.actors.journals import empty_postgres
from tests.servers.databases import Databases, asyncio_run


@pytest.fixture(scope="session")
def shared_postgres_url(databases: Databases) -> Iterator[str]:
    with databases.migrated() as url:
        yield url


@pytest.fixture
def emptied_postgres_url(shared_postgres_url: str) -> str:
    """An empty journal, beside which nothing is."""
    empty(shared_postgres_url)
    return shared_postgres_url


def empty(url: str) -> None:
    asyncio_run(empty_postgres(url, also=f"DROP TABLE IF EXISTS {TRANSFERS.name}"))
