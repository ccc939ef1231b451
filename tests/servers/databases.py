"""Databases: fresh ones for each test, on one Postgres server that the tests of a process share."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from eventstore import schema
from eventstore.url import parse_store_url

_T = TypeVar("_T")
_SECONDS = 60.0


class Databases:
    """`dsn` names a database of the server, as a role that may create others."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._numbers = itertools.count(1)
        self._template: str | None = None
        self._strategy = ""
        self._durability = ""

    @contextmanager
    def empty(self) -> Generator[str]:
        """The URL of a new, empty database, which is dropped afterwards."""
        with self._database("") as url:
            yield url

    @contextmanager
    def migrated(self) -> Generator[str]:
        """The URL of a new database with an empty journal: a copy of one that was migrated once."""
        if self._template is None:
            name = f"eventstore_test_{os.getpid()}_template"
            self._run(f'CREATE DATABASE "{name}"')
            schema.upgrade(parse_store_url(self.url(name)))
            self._template = name
            # Copied as files: the server's own way since 15 goes block by block through its log.
            version = int(str(asyncio_run(self._execute("SHOW server_version_num"))))
            self._strategy = "STRATEGY FILE_COPY" if version >= 150000 else ""
        with self._database(f'TEMPLATE "{self._template}" {self._strategy}') as url:
            yield url

    def close(self) -> None:
        if self._template is not None:
            self._run(f'DROP DATABASE "{self._template}" WITH (FORCE)')

    def url(self, database: str) -> str:
        """A database of the server as a store URL, which asks for no more durability than the server has."""
        if not self._durability:
            is_durable = asyncio_run(self._execute("SHOW fsync")) == "on"
            self._durability = "power-loss" if is_durable else "process-crash"
        parts = urlsplit(self._dsn)
        query = "" if self._durability == "power-loss" else f"durability={self._durability}"
        joined = "&".join(part for part in (parts.query, query) if part)
        return urlunsplit(parts._replace(path=f"/{quote(database)}", query=joined))

    @contextmanager
    def _database(self, template: str) -> Generator[str]:
        name = f"eventstore_test_{os.getpid()}_{next(self._numbers)}"
        self._run(f'CREATE DATABASE "{name}" {template}')
        try:
            yield self.url(name)
        finally:
            self._run(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        asyncio_run(self._execute(statement))

    async def _execute(self, statement: str) -> object:
        async with asyncio.timeout(_SECONDS):
            connection = await asyncpg.connect(self._dsn)
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()


def asyncio_run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine where no loop runs, as in a fixture, and leave the thread's own event loop as it was."""
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(work)
