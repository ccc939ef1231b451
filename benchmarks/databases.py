"""Database: one of the databases a row is measured on: where a fresh journal is, and the same without the library."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol

from benchmarks import servers
from benchmarks.bare_postgres import bare_postgres
from benchmarks.bare_redis import bare_redis
from benchmarks.bare_sqlite import bare_sqlite
from benchmarks.harness import FULL, Plan


class Bare(Protocol):
    """The database as a program uses it that has no library, in the fastest way it offers."""

    async def commits(self, seconds: float, *, rows: int) -> list[float]:
        """Commit `rows` rows at a time, for so long. Returns how long each commit took."""
        ...

    async def pairs(self, seconds: float, *, connections: int) -> float:
        """Commit two rows at a time, each by an insert of its own, for so long. Returns commits per second."""
        ...


class Journal(NamedTuple):
    """An empty journal. `bare` opens the same database beside it, for rows of so many streams."""

    url: str
    bare: Callable[[int], AbstractAsyncContextManager[Bare]]


class Database(NamedTuple):
    """`durability` is what a reply means on both sides of a ratio; `bare` names the other side's way to store."""

    name: str
    durability: str
    bare: str
    journal: Callable[[Plan], AbstractAsyncContextManager[Journal]]


@asynccontextmanager
async def _sqlite(plan: Plan) -> AsyncGenerator[Journal, None]:
    path = plan.directory / "bare.db"
    yield Journal(f"sqlite:///{plan.directory / 'journal.db'}", lambda streams: bare_sqlite(path, streams=streams))


@asynccontextmanager
async def _postgres(_: Plan) -> AsyncGenerator[Journal, None]:
    async with servers.postgres() as url:
        yield Journal(url, lambda streams: bare_postgres(servers.dsn_of(url), streams=streams))


@asynccontextmanager
async def _redis(_: Plan) -> AsyncGenerator[Journal, None]:
    async with servers.redis_server() as url:
        where = servers.dsn_of(url), servers.prefix_of(url)
        yield Journal(url, lambda streams: bare_redis(*where, streams=streams))


SQLITE = Database("SQLite", FULL, "executemany", _sqlite)
POSTGRES = Database("Postgres", "fsync=on, synchronous_commit=on", "asyncpg, INSERT from unnest", _postgres)
REDIS = Database("Redis", "appendonly, appendfsync=always", "one script", _redis)
