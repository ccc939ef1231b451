"""What the tests of backends share: databases that are emptied between tests, because new ones take far longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from backends.conformance.sql import TRANSFERS
from tests.actors.journals import empty_postgres
from tests.backends.redis_help import admin
from tests.servers.databases import Databases, asyncio_run
from tests.servers.redis import Redis


@pytest.fixture(scope="session")
def shared_postgres_url(databases: Databases) -> Iterator[str]:
    with databases.migrated() as url:
        yield url


@pytest.fixture
def emptied_postgres_url(shared_postgres_url: str) -> str:
    """An empty journal, beside which nothing is."""
    empty(shared_postgres_url)
    return shared_postgres_url


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    """A Redis that tests may do anything to."""
    with Redis(durable=True) as server:
        yield server


@pytest.fixture
def client(server: Redis) -> Iterator[redis.Redis]:
    """Another client of it, which has emptied it."""
    with admin(server) as client:
        client.flushall()
        yield client


def empty(url: str) -> None:
    asyncio_run(empty_postgres(url, also=f"DROP TABLE IF EXISTS {TRANSFERS.name}"))
