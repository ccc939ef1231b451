"""Postgres servers, roles and networks with which no journal can be made or looked at: each has its error, in time."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from eventstore import schema
from eventstore.errors import BackendUnavailable, InvalidStoreUrl, SchemaError
from eventstore.schema import postgres
from eventstore.url import StoreUrl, parse_store_url
from tests.servers.proxy import FaultProxy

from .postgres_database import PostgresDatabase

DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "migrations.md"
(GRANT,) = re.findall(r"^GRANT .* TO migrator;$", DOCUMENTATION.read_text(), re.MULTILINE)


@pytest.fixture
def database(empty_postgres_url: str) -> PostgresDatabase:
    return PostgresDatabase(empty_postgres_url)


@pytest.fixture
def url(database: PostgresDatabase) -> StoreUrl:
    return database.url


def test_a_database_that_does_not_exist_is_named(url: StoreUrl) -> None:
    missing = parse_store_url(url.raw.replace("/eventstore_test_", "/not_there_"))
    for function in (schema.upgrade, schema.check):
        with pytest.raises(InvalidStoreUrl, match='"not_there_.*does not exist.*CREATE DATABASE'):
            function(missing)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_whose_journal_no_store_would_open_gets_none(url: StoreUrl, encoding: str) -> None:
    name = f"eventstore_test_{os.getpid()}_{encoding.lower()}"
    PostgresDatabase(url.raw).execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    try:
        other = parse_store_url(urlsplit(url.raw)._replace(path=f"/{name}").geturl())
        with pytest.raises(BackendUnavailable, match=f"encoding is {encoding}"):
            schema.upgrade(other)
        assert PostgresDatabase(other.raw).relations() == []
    finally:
        PostgresDatabase(url.raw).execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_server_that_is_not_there_is_unavailable_and_no_password_is_shown() -> None:
    url = parse_store_url("postgresql://ann:hunter2@127.0.0.1:1/bank")
    for function in (schema.upgrade, schema.check):
        with pytest.raises(BackendUnavailable, match="127.0.0.1:1") as caught:
            function(url)
        assert "hunter2" not in repr(caught.value)


def test_a_parameter_that_is_not_known_is_refused(database: PostgresDatabase) -> None:
    with pytest.raises(InvalidStoreUrl, match="unknown parameter colour"):
        schema.check(database.with_parameters(colour="blue"))


@pytest.fixture
def limited(database: PostgresDatabase) -> Iterator[tuple[str, StoreUrl]]:
    """A role that may connect, and nothing else, and the database's URL as that role."""
    role = f"eventstore_test_{os.getpid()}_limited"
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'; REVOKE ALL ON SCHEMA public FROM PUBLIC")
    yield role, parse_store_url(f"postgresql://{role}:hunter2@{database.url.raw.rpartition('@')[2]}")
    database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_role_without_the_rights_is_told_so(limited: tuple[str, StoreUrl], database: PostgresDatabase) -> None:
    with pytest.raises(SchemaError, match=r"permission denied.*docs/migrations.md") as caught:
        schema.upgrade(limited[1])
    assert "hunter2" not in str(caught.value)
    assert database.relations() == []


def test_the_documented_rights_are_enough(limited: tuple[str, StoreUrl], database: PostgresDatabase) -> None:
    role, url = limited
    database.execute(GRANT.replace("migrator", role))
    schema.upgrade(url)
    assert schema.check(url).is_current


async def test_a_server_that_does_not_answer_is_not_waited_for(url: StoreUrl) -> None:
    async with proxy_to(url) as proxy:
        proxy.stall()
        through = via(proxy, url, "connect_timeout=0.3")
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            await asyncio.to_thread(schema.upgrade, through)
    assert proxy.accepted == 1


@pytest.mark.parametrize(
    ("limit", "work", "sent"),
    [
        ("_LOOK_SECONDS", schema.check, b"search_path"),
        ("_STATEMENT_SECONDS", schema.upgrade, b"CREATE TABLE journal_events"),
        ("_STATEMENT_SECONDS", schema.upgrade, b"COMMIT"),
    ],
)
async def test_a_server_that_stops_answering_is_not_waited_for(
    url: StoreUrl,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    work: Callable[[StoreUrl], object],
    sent: bytes,
) -> None:
    # Longer than any other statement takes on a busy machine.
    monkeypatch.setattr(postgres, limit, 1.5)
    async with proxy_to(url) as proxy:
        proxy.lose_reply(to=sent, reset=False)
        with pytest.raises(BackendUnavailable, match="did not answer in time"):
            async with asyncio.timeout(60):
                await asyncio.to_thread(work, via(proxy, url))
        assert proxy.reply_was_lost.is_set()
    schema.upgrade(url)
    assert schema.check(url).is_current


async def test_a_commit_whose_answer_is_lost_can_be_run_again(url: StoreUrl) -> None:
    async with proxy_to(url) as proxy:
        proxy.lose_reply(to=b"COMMIT")
        with pytest.raises(BackendUnavailable, match="running this again is safe"):
            await asyncio.to_thread(schema.upgrade, via(proxy, url))
        assert proxy.reply_was_lost.is_set()
        assert schema.check(url).is_current
        await asyncio.to_thread(schema.upgrade, via(proxy, url))
    assert schema.check(url).is_current


def proxy_to(url: StoreUrl) -> FaultProxy:
    host, _, port = url.authority.rpartition("@")[2].partition(":")
    return FaultProxy(host, int(port or 5432))


def via(proxy: FaultProxy, url: StoreUrl, *parameters: str) -> StoreUrl:
    _, at, host = url.authority.rpartition("@")
    raw = url.raw.replace(f"{at}{host}/", f"{at}{proxy.host}:{proxy.port}/", 1)
    return parse_store_url(raw + "".join(("&" if "?" in raw else "?") + parameter for parameter in parameters))
