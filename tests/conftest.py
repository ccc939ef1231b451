"""Servers for every test that asks for one. A server that cannot be had fails the tests that need it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from .servers.binaries import ServerUnavailable
from .servers.databases import Databases
from .servers.keyspaces import Keyspaces
from .servers.postgres import Postgres
from .servers.redis import Redis
from .servers.server import Server
from .starter import Starter

_AServer = TypeVar("_AServer", bound=Server)

# What tells Postgres's clients about another server (PGHOST, PGSSLMODE, …) is not meant for these.
for _name in [name for name in os.environ if name.startswith("PG") and not name.startswith("PG_")]:
    del os.environ[_name]


# Behind `&` in a script the tests are not to be ended by a Ctrl-C, and what they start would not be either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Hypothesis takes a fifth of a second for a fault in what it calls, and a second for one in what it draws: on a busy
# machine a test is put aside for longer, and the first text takes a table of all characters, which is made then.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture
def postgres_url(databases: Databases) -> Iterator[str]:
    """A fresh Postgres database with an empty journal."""
    with databases.migrated() as url:
        yield url


@pytest.fixture
def empty_postgres_url(databases: Databases) -> Iterator[str]:
    """A fresh Postgres database without a journal."""
    with databases.empty() as url:
        yield url


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """A durable Postgres for this test alone, to be crashed, paused and started again. It has no journal yet."""
    with _started(lambda: Postgres(durable=True)) as server:
        yield server


@pytest.fixture
def redis_url(keyspaces: Keyspaces) -> Iterator[str]:
    """An empty journal under a fresh prefix on Redis."""
    with keyspaces.migrated() as url:
        yield url


@pytest.fixture
def empty_redis_url(keyspaces: Keyspaces) -> Iterator[str]:
    """A fresh prefix on Redis, without a journal."""
    with keyspaces.empty() as url:
        yield url


@pytest.fixture
def own_redis() -> Iterator[Redis]:
    """A durable Redis for this test alone, to be crashed, paused and started again. It has no journal yet."""
    with _started(lambda: Redis(durable=True)) as server:
        yield server


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """The Postgres that PG_DSN names, else one that the tests of this process share."""
    if dsn := os.environ.get("PG_DSN"):
        databases = Databases(dsn)
        yield databases
        databases.close()
    else:
        with _started(lambda: Postgres(durable=False)) as server:
            yield Databases(server.dsn())


@pytest.fixture(scope="session")
def keyspaces() -> Iterator[Keyspaces]:
    """The Redis that REDIS_URL names, else one that the tests of this process share."""
    if url := os.environ.get("REDIS_URL"):
        yield Keyspaces(url)
    else:
        with _started(lambda: Redis(durable=False)) as server:
            yield Keyspaces(server.url())


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Runs the command line, without the time that it takes to be imported."""
    with Starter() as starter:
        yield starter


def _started(make: Callable[[], _AServer]) -> _AServer:
    try:
        return make()
    except ServerUnavailable as error:
        pytest.fail(str(error), pytrace=False)
