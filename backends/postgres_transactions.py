"""PostgresTransactions: the connections on which users execute statements of their own, and the transactions there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from sqlalchemy import event
from sqlalchemy.engine import Connection as EngineConnection
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

from backends.open_transactions import OpenTransactions
from backends.postgres_append import PostgresAppend
from backends.postgres_driver import DRIVER_ERRORS, Connection
from backends.postgres_errors import is_lost, translated
from backends.postgres_session import PostgresSession
from backends.postgres_sql import PostgresSQL
from backends.postgres_transaction import PostgresTransaction, transaction_of
from eventstore.errors import ConnectionsBusy, StoreClosed
from eventstore.postgres_url import PostgresTarget

_T = TypeVar("_T")

# The first server that ends a transaction by itself when it is too old, also while a statement runs.
_TRANSACTION_TIMEOUT = 17

# What a user's statements may have left in a session. Its prepared statements stay: they are the driver's.
_RESET = (
    "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); "
    "DISCARD TEMP; DISCARD SEQUENCES"
)


class PostgresTransactions:
    """At most `pool_size` at a time, on connections that nothing else uses; who finds none free waits, with a deadline.

    The connections are made as all others are, and SQLAlchemy is told to leave their transactions alone.
    """

    def __init__(
        self,
        target: PostgresTarget,
        sql: PostgresSQL,
        append: PostgresAppend,
        connect: Callable[[], Awaitable[PostgresSession]],
        *,
        server_version: str,
        is_pooled: bool,
        stored: Callable[[], None],
    ) -> None:
        self._target = target
        self._sql = sql
        self._append = append
        self._connect = connect
        self._has_transaction_timeout = int(server_version.partition(".")[0]) >= _TRANSACTION_TIMEOUT
        self._is_pooled = is_pooled
        self._stored = stored
        self._engine: AsyncEngine | None = None
        self._places = asyncio.Semaphore(target.pool_size)
        self._open: OpenTransactions[PostgresTransaction] = OpenTransactions()
        self._is_closed = False

    async def begin(self, seconds: float) -> PostgresTransaction:
        """Begin a transaction. If the caller is cancelled it is rolled back, in the background."""
        await self._place()
        return await self._open.begun(self._begin(seconds))

    async def close(self) -> None:
        """Roll back what is open, finish what is being committed, close every connection."""
        self._is_closed = True
        await self._open.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    async def _place(self) -> None:
        seconds = self._target.command_timeout
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError as error:
            raise ConnectionsBusy(
                f"{self._target.pool_size} transactions with SQL of the user's own were open for {seconds:g} s: try "
                "again, or give the URL a larger pool_size"
            ) from error

    async def _begin(self, seconds: float) -> PostgresTransaction:
        try:
            connection, session = await self._begun(self._begin_statement(seconds))
        except BaseException:
            self._places.release()
            raise
        transaction = PostgresTransaction(
            connection,
            session,
            self._sql,
            self._append,
            seconds=seconds,
            connect=lambda: self._open.own(self._connected()),
            let_go=lambda transaction, is_clean: self._open.own(self._let_go(transaction, is_clean)),
            stored=self._stored,
        )
        await connection.execution_options(eventstore_transaction=transaction)
        self._open.add(transaction)
        return transaction

    async def _begun(self, statement: str) -> tuple[AsyncConnection, PostgresSession]:
        """A connection inside a new transaction. Those in the pool may have been lost since they were used."""
        for tries_left in reversed(range(self._target.pool_size + 1)):
            if self._is_closed:
                raise StoreClosed("the store was closed: nothing was done")
            connection = await self._new_connection()
            driver: Any = (await connection.get_raw_connection()).driver_connection
            session = PostgresSession(driver, self._target, is_pooled=self._is_pooled, planning={})
            try:
                await session.execute(statement)
                return connection, session
            except BaseException as error:
                session.cut()
                await connection.invalidate()
                await connection.close()
                if not isinstance(error, DRIVER_ERRORS):
                    raise
                if not tries_left or not is_lost(error) or isinstance(error, TimeoutError):
                    raise translated(error, writing=False) from error
        raise AssertionError("unreachable: the last try returns or raises")

    async def _new_connection(self) -> AsyncConnection:
        try:
            return await self._open_engine.connect()
        except (DBAPIError, *DRIVER_ERRORS) as error:
            # A new session is asked some things within SQLAlchemy, which wraps some of the driver's errors, twice.
            found: BaseException = error
            while not isinstance(found, DRIVER_ERRORS) and found.__cause__ is not None:
                found = found.__cause__
            raise translated(found, writing=False) from error

    def _begin_statement(self, seconds: float) -> str:
        milliseconds = max(1, int(seconds * 1000))
        limits = {"idle_in_transaction_session_timeout": milliseconds, "statement_timeout": milliseconds}
        if self._has_transaction_timeout:
            limits["transaction_timeout"] = milliseconds
        # Behind a proxy the connection is inside the transaction already.
        begin = [] if self._is_pooled else ["BEGIN"]
        return "; ".join(begin + [f"SET LOCAL {name} = {value}" for name, value in limits.items()])

    async def _let_go(self, transaction: PostgresTransaction, is_clean: bool) -> None:
        connection, session = transaction.connection, transaction.session
        try:
            if self._is_pooled:
                # The proxy keeps the server's sessions, and tidies them up.
                await session.close()
            elif is_clean:
                with suppress(*DRIVER_ERRORS):
                    await session.execute(_RESET)
            if not session.is_usable and not connection.closed:
                await connection.invalidate()
            await connection.close()
        finally:
            self._open.discard(transaction)
            self._places.release()

    async def _connected(self) -> PostgresSession:
        return await self._connect()

    @property
    def _open_engine(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = self._new_engine()
        return self._engine

    def _new_engine(self) -> AsyncEngine:
        def connection() -> Any:
            arguments: dict[str, Any] = {}
            if self._is_pooled:
                # A name could be one that another client has given in the same session of the server.
                arguments = {"prepared_statement_name_func": str, "prepared_statement_cache_size": 0}
            # SQLAlchemy's `async_creator` passes over such arguments, so this does what it does, with them.
            dialect: Any = engine.dialect
            return dialect.dbapi.connect(async_creator_fn=self._driver_connection, **arguments)

        engine = create_async_engine(
            "postgresql+asyncpg://",
            creator=connection,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_reset_on_return=None,
            # Also where no connection is used twice: the first ones to connect at once on a NullPool would wait for
            # each other in a lock that stops the whole event loop.
            poolclass=AsyncAdaptedQueuePool,
            pool_size=self._target.pool_size,
            max_overflow=0,
        )
        sync = engine.sync_engine
        event.listen(sync, "before_cursor_execute", _check_statement)
        event.listen(sync, "commit", _check_end)
        event.listen(sync, "rollback", _check_end)
        event.listen(sync, "handle_error", _on_error, retval=True)
        event.listen(sync, "checkin", _check_in)
        return engine

    async def _driver_connection(self, **_: Any) -> Connection:
        session = await self._connect()
        if self._is_pooled:
            # What SQLAlchemy asks of a new connection takes several trips, which must not part.
            try:
                await session.begin()
            except DRIVER_ERRORS as error:
                session.cut()
                raise translated(error, writing=False) from error
        return session.connection


def _check_statement(connection: EngineConnection, _cursor: Any, statement: str, *_: Any) -> None:
    if (transaction := transaction_of(connection)) is not None:
        transaction.check_statement(statement)


def _check_end(connection: EngineConnection) -> None:
    # Where SQLAlchemy has begun none it tidies up after an error, and the user has asked for nothing.
    if (transaction := transaction_of(connection)) is not None and connection.in_transaction():
        transaction.check_end()


def _check_in(connection: object | None, record: ConnectionPoolEntry) -> None:
    """The user has closed the connection in the middle of the transaction: nobody else is to get it."""
    if connection is not None and cast("Connection", record.driver_connection).is_in_transaction():
        cast("Connection", record.driver_connection).terminate()


def _on_error(context: ExceptionContext) -> BaseException | None:
    connection = context.connection
    transaction = None if connection is None else transaction_of(connection)
    return None if transaction is None else transaction.on_error(context)
