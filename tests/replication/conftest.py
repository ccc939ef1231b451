"""Replicas in one process: each has a store of its own, and reads the others' when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.actors.journals import new_journal
from tests.replication.replicas import Replicas


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "replicas" in metafunc.fixturenames:
        metafunc.parametrize("urls", ["memory", "mixed"], indirect=True)


@pytest.fixture
def urls(request: pytest.FixtureRequest) -> dict[str, str]:
    """Where each replica has its journal: all in memory, or each on another database."""
    if request.param == "memory":
        return {}
    found: dict[str, str] = request.getfixturevalue("mixed_urls")
    return found


@pytest.fixture
def mixed_urls(postgres_url: str, redis_url: str, tmp_path: Path) -> dict[str, str]:
    """One replica on SQLite, one on Postgres, one on Redis."""
    return {"eu": new_journal("sqlite", tmp_path), "us": postgres_url, "ap": redis_url}


@pytest_asyncio.fixture
async def replicas(urls: dict[str, str]) -> AsyncIterator[Replicas]:
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        yield Replicas(stack, urls)
