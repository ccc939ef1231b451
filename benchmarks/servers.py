"""Servers: an empty journal on a durable Postgres or Redis, which runs already or is started for it alone."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager, closing
from typing import cast
from urllib.parse import urlencode, urlsplit, urlunsplit

import asyncpg
import redis

from eventstore import schema
from eventstore.url import parse_store_url
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

# What the tests' servers have is for many small tests. A checkpoint in the middle of one side would hurt that side.
_POSTGRES = {"shared_buffers": "256MB", "max_wal_size": "4GB"}

_numbers = itertools.count(1)


@asynccontextmanager
async def postgres() -> AsyncGenerator[str, None]:
    """The URL of a new database with an empty journal, on the server that PG_DSN names or on one of its own.

    The store refuses a server without fsync or synchronous_commit, so both sides of a ratio are durable.
    """
    with ExitStack() as stack:
        dsn = os.environ.get("PG_DSN")
        if not dsn:
            dsn = stack.enter_context(Postgres(durable=True, settings=_POSTGRES)).dsn()
        name = f"eventstore_benchmark_{os.getpid()}_{next(_numbers)}"
        await _execute(dsn, f'CREATE DATABASE "{name}"')
        try:
            url = urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
            await asyncio.to_thread(schema.upgrade, parse_store_url(url))
            yield url
        finally:
            await _execute(dsn, f'DROP DATABASE "{name}" WITH (FORCE)')


@asynccontextmanager
async def redis_server() -> AsyncGenerator[str, None]:
    """The URL of an empty journal under a new prefix, on the server that REDIS_URL names or on one of its own.

    The store refuses a server that does not sync its log at every write.
    """
    with ExitStack() as stack:
        url = os.environ.get("REDIS_URL")
        if not url:
            url = stack.enter_context(Redis(durable=True)).url()
        prefix = f"eventstore-benchmark-{os.getpid()}-{next(_numbers)}-"
        parts = urlsplit(url)
        query = "&".join(part for part in (parts.query, urlencode({"prefix": prefix})) if part)
        journal = urlunsplit(parts._replace(query=query))
        await asyncio.to_thread(schema.upgrade, parse_store_url(journal))
        try:
            yield journal
        finally:
            _remove_keys(dsn_of(journal), prefix)


def dsn_of(url: str) -> str:
    """A store's URL as other clients take it: without the parameters that are the store's."""
    return urlunsplit(urlsplit(url)._replace(query=""))


def prefix_of(url: str) -> str:
    """What the keys of a Redis journal made here begin with."""
    return parse_store_url(url).parameters["prefix"]


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=10, command_timeout=60)
    try:
        await connection.execute(statement)
    finally:
        await connection.close(timeout=5)


def _remove_keys(dsn: str, prefix: str) -> None:
    with closing(redis.Redis.from_url(dsn, socket_timeout=30)) as client:
        # The prefix may stand inside of a hash tag.
        for key in client.scan_iter(match=f"*{prefix}*", count=1000):
            client.unlink(cast("bytes", key))
