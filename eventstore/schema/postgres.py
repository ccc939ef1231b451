"""The schema of a journal in a Postgres database: in the URL's `schema`, beside whatever else is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar
from uuid import uuid4

from alembic.util import CommandError
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateSchema

from eventstore.errors import (
    BackendUnavailable,
    EventStoreError,
    InvalidStoreUrl,
    SchemaError,
    StorageFull,
    StoreBusy,
)
from eventstore.postgres_url import PostgresTarget, postgres_target
from eventstore.schema import scripts
from eventstore.schema.scripts import OfflineOptions
from eventstore.url import StoreUrl

_T = TypeVar("_T")

# Seconds that a lock is waited for: the migrators' own, and those on tables that others are using.
_LOCK_SECONDS = 30.0
# Seconds that one statement may take. A later revision may build an index over a large table.
_STATEMENT_SECONDS = 600.0
# Looking takes a few milliseconds; a server that accepts and does not answer must not hold anybody.
_LOOK_SECONDS = 30.0

# The migrators' advisory lock: "eventsto" in ASCII, and the schema's name hashed by the server.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended(:schema, 7311142570157110383))")
_SET_LOCK_TIMEOUT = text("SELECT set_config('lock_timeout', :milliseconds, true)")
# For this transaction alone: behind a proxy that pools connections the session belongs to somebody else next.
_SET_SEARCH_PATH = text("SELECT set_config('search_path', :path, true)")
_ENCODING = text("SELECT current_setting('server_encoding')")
# NULL where there is no such schema.
_MAY_USE_SCHEMA = text("SELECT has_schema_privilege(to_regnamespace(:schema), 'USAGE')")


class PostgresSchema:
    """A `SchemaTool`, and what `migrations/env.py` needs beyond it."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._target = postgres_target(url)

    @property
    def revisions(self) -> Sequence[str]:
        return scripts.revisions()

    def check(self) -> str | None:
        def look(connection: Connection) -> str | None:
            if not self._has_schema(connection):
                return None
            self._use_schema(connection)
            return scripts.found_in(connection)

        return self._run(look, seconds=_LOOK_SECONDS)

    def upgrade(self, revision: str) -> None:
        self.in_transaction(lambda connection: scripts.run_on(connection, revision, self._url))

    def sql(self, revision: str) -> str:
        with _own_errors(self._url):
            return scripts.text_for(revision, **self.offline_options())

    def offline_options(self) -> OfflineOptions:
        """What it takes to write SQL."""
        return OfflineOptions(dialect="postgresql", schema=self._target.schema)

    def in_transaction(self, work: Callable[[Connection], _T]) -> _T:
        """Do something to the database in one transaction that holds the migrators' lock, with the URL's schema alone
        in its search path. The schema is created if need be. The transaction is committed when the work is done.
        """

        def locked(connection: Connection) -> _T:
            connection.execute(_SET_LOCK_TIMEOUT, {"milliseconds": str(int(_LOCK_SECONDS * 1000))})
            connection.execute(_LOCK, {"schema": self._target.schema})
            encoding = connection.execute(_ENCODING).scalar_one()
            if encoding != "UTF8":
                # A store would not open what is made here.
                raise BackendUnavailable(
                    f"{self._url}: the database's encoding is {encoding}, which cannot hold every text: make one with "
                    "ENCODING 'UTF8'; nothing was changed"
                )
            # Not CREATE SCHEMA IF NOT EXISTS: that asks for the right to create it even where it is there.
            if not self._has_schema(connection):
                connection.execute(CreateSchema(self._target.schema))
            self._use_schema(connection)
            result = work(connection)
            connection.commit()
            return result

        return self._run(locked, seconds=None)

    def _has_schema(self, connection: Connection) -> bool:
        name = self._target.schema
        may_use = connection.execute(_MAY_USE_SCHEMA, {"schema": name}).scalar_one()
        if may_use is False:
            # What is in it would be invisible, and a journal there would look like none.
            raise _rights_error(f"{self._url}: permission denied for schema {name}")
        return may_use is not None

    def _use_schema(self, connection: Connection) -> None:
        connection.execute(_SET_SEARCH_PATH, {"path": f'"{self._target.schema}"'})

    def _run(self, work: Callable[[Connection], _T], *, seconds: float | None) -> _T:
        """Connect, do the work, disconnect; in an event loop of its own, because the driver is asynchronous."""

        async def connected() -> _T:
            engine = _engine(self._target)
            async with asyncio.timeout(seconds), engine.connect() as connection:
                return await connection.run_sync(work)

        def run() -> _T:
            # A factory: the runner then leaves alone what this thread has for an event loop.
            with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
                return runner.run(connected())

        with _own_errors(self._url):
            if not _is_loop_running():
                return run()
            # Called on an event loop, which it blocks as it does with SQLite: only one can run in a thread.
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(run).result()


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _engine(target: PostgresTarget) -> AsyncEngine:
    arguments = {
        **target.connect_arguments(),
        "command_timeout": _STATEMENT_SECONDS,
        # A proxy that pools connections may know statements by the driver's usual names, from other clients.
        "statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"eventstore_{uuid4().hex}",
    }
    return create_async_engine("postgresql+asyncpg://", connect_args=arguments, poolclass=NullPool)


@contextmanager
def _own_errors(url: StoreUrl) -> Generator[None]:
    """Turn the driver's and Alembic's errors into this package's."""
    try:
        yield
    except DBAPIError as error:
        raise _database_error(error.orig or error, url) from error
    except CommandError as error:
        raise SchemaError(f"{url}: {error}", found=None, expected=scripts.revisions()[-1]) from error
    except TimeoutError as error:
        raise BackendUnavailable(f"{url} did not answer in time; {_SAFE}") from error
    except OSError as error:
        raise _database_error(error, url) from error


_SAFE = "the journal is as it was, or whole: running this again is safe"


def _database_error(error: BaseException, url: StoreUrl) -> EventStoreError:
    state: str = getattr(error, "sqlstate", None) or ""
    reason = str(getattr(error, "__cause__", None) or error)
    match state:
        case "55P03":
            return StoreBusy(f"{url}: another process is migrating, or uses a table ({reason}); {_SAFE}")
        case "53100":
            return StorageFull(f"{url}: the disk is full ({reason}); nothing was changed")
        case "3D000":
            return InvalidStoreUrl(f"{url}: {reason}; create it first (CREATE DATABASE)")
        case "42501":
            return _rights_error(f"{url}: {reason}")
        case "42P07" | "42710" | "42703" | "42P01":
            return _schema_error(f"{url}: {reason}; does the schema hold tables of its own by the journal's names?")
        case "25006":
            return BackendUnavailable(f"{url} can only be read, as a standby can; name the primary ({reason})")
        case _:
            return BackendUnavailable(f"{url} cannot be used: {reason or type(error).__name__}; {_SAFE}")


def _rights_error(message: str) -> SchemaError:
    return _schema_error(f"{message}; docs/migrations.md names the rights a migrating role needs")


def _schema_error(message: str) -> SchemaError:
    return SchemaError(message, found=None, expected=scripts.revisions()[-1])
