"""The tests' own Postgres does what the tests rely on."""

from __future__ import annotations

import asyncio
import os
import time
from urllib.parse import urlsplit

import asyncpg
import pytest

from .postgres import Postgres


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(urlsplit(url)._replace(query="").geturl(), timeout=20)


async def test_databases_are_fresh(empty_postgres_url: str) -> None:
    await create_a_table(empty_postgres_url)


async def test_databases_are_fresh_for_every_test(empty_postgres_url: str) -> None:
    await create_a_table(empty_postgres_url)


async def create_a_table(url: str) -> None:
    connection = await connect(url)
    await connection.execute("CREATE TABLE only_here (id int)")
    await connection.close()


async def test_a_database_is_dropped_while_somebody_is_connected(empty_postgres_url: str) -> None:
    # Left open on purpose: the fixture must not wait for it.
    connection = await connect(empty_postgres_url)
    connection.terminate()


async def test_the_url_says_how_durable_the_server_is(empty_postgres_url: str) -> None:
    connection = await connect(empty_postgres_url)
    is_durable = await connection.fetchval("SHOW fsync") == "on"
    assert ("durability=process-crash" not in empty_postgres_url) is is_durable
    await connection.close()


async def test_a_server_of_ones_own_is_durable_and_survives_a_crash(own_postgres: Postgres) -> None:
    connection = await connect(own_postgres.url())
    assert [await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
    await connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
    family = own_postgres.family()
    own_postgres.crash()
    assert len(family) > 3
    # Who has been killed may take a moment to be gone.
    deadline = time.monotonic() + 20
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline, "a session would go on without its server, and commit"
        time.sleep(0.01)
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await connection.fetchval("SELECT 1")
    connection.terminate()
    own_postgres.start()
    connection = await connect(own_postgres.url())
    assert await connection.fetchval("SELECT id FROM kept") == 1
    await connection.close()


async def test_a_paused_server_does_not_answer_and_goes_on_afterwards(own_postgres: Postgres) -> None:
    connection = await connect(own_postgres.url())
    own_postgres.pause()
    with pytest.raises(TimeoutError):
        await asyncpg.connect(own_postgres.dsn(), timeout=0.2)
    answer = asyncio.create_task(connection.fetchval("SELECT 1"))
    await asyncio.sleep(0.1)
    assert not answer.done(), "a session that was there goes on"
    own_postgres.resume()
    async with asyncio.timeout(20):
        assert await answer == 1
    await connection.close()


def test_nothing_is_left_of_a_server(own_postgres: Postgres) -> None:
    family = own_postgres.family()
    assert len(family) > 3
    own_postgres.pause()
    own_postgres.close()
    deadline = time.monotonic() + 20
    while any(map(is_alive, family)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not own_postgres.home.exists()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_server_runs_as_root(own_postgres: Postgres) -> None:
    if os.geteuid() == 0:
        assert own_postgres.account != type(own_postgres.account)()
    assert own_postgres.psql("postgres", "SELECT 1;", "-At").strip() == "1"
