"""What the tests of Postgres share: the database as any program sees it, and appends that are not committed yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from backends.postgres import PostgresBackend
from backends.postgres_sql import PostgresSQL
from eventstore import EventStore
from eventstore.codec import checksum_of, new_event_id
from tests.servers.proxy import FaultProxy

PATIENCE = 20.0


def with_parameters(url: str, **parameters: object) -> str:
    joined = "&".join(f"{name}={value}" for name, value in parameters.items())
    return url + ("&" if "?" in url else "?") + joined


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any, None]:
    """A plain connection to the URL's database."""
    connection = await asyncpg.connect(
        urlsplit(url)._replace(query="").geturl(), timeout=PATIENCE, command_timeout=3 * PATIENCE
    )
    try:
        yield connection
    finally:
        await connection.close(timeout=PATIENCE)


async def fetch(url: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with connected(url) as connection:
        return [tuple(row) for row in await connection.fetch(query, *parameters)]


async def execute(url: str, script: str) -> None:
    async with connected(url) as connection:
        await connection.execute(script)


def backend_of(store: EventStore) -> PostgresBackend:
    backend = store._backend
    assert isinstance(backend, PostgresBackend)
    return backend


@asynccontextmanager
async def unfinished_append(url: str, stream_id: str, *, schema: str = "public") -> AsyncGenerator[Any, None]:
    """A connection inside a transaction that has appended one event to a new stream: position taken, not committed."""
    async with connected(url) as connection:
        await connection.execute("BEGIN")
        checksum = checksum_of("conformance.happened", 1, b'{"number":0}', None)
        columns = ("{-1}", "{1}", "conformance.happened", [], '{"number":0}', [], new_event_id(), [], "{}")
        event = (*columns, f"{{{checksum}}}", 0)
        stream = ([stream_id], [stream_id], [1])
        ((count, *_),) = await connection.fetch(
            PostgresSQL(schema, "").append_to(new=True, commands=False, replicas=False), *event, [], [], [], [], *stream
        )
        assert count == 1
        yield connection


def proxy_to(url: str) -> FaultProxy:
    host, _, port = urlsplit(url).netloc.rpartition("@")[2].partition(":")
    return FaultProxy(host, int(port or 5432))


def via(proxy: FaultProxy, url: str, **parameters: object) -> str:
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    through = parts._replace(netloc=f"{user}{at}{proxy.host}:{proxy.port}").geturl()
    return with_parameters(through, **parameters) if parameters else through


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def has_told(store: EventStore) -> None:
    """Until the readers have been told of what a store has appended, on a connection that it reads with; a store on
    another database uses none for that."""
    backend = store._backend
    if isinstance(backend, PostgresBackend):
        wakeup = backend._open.wakeup
        await until(lambda: wakeup._timer is None and (wakeup._notification is None or wakeup._notification.done()))


WAITING = "wait_event_type = 'Lock' AND datname = current_database()"


async def waiting_for_locks(url: str, count: int = 1) -> None:
    """Until so many sessions of the database wait for a lock."""
    async with asyncio.timeout(PATIENCE):
        while (await fetch(url, f"SELECT count(*) FROM pg_stat_activity WHERE {WAITING}"))[0][0] < count:
            await asyncio.sleep(0.02)
