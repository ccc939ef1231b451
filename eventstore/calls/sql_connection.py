"""SqlConnection: where a user's own statements are executed in a transaction that begins with the first of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.errors import EventStoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Executable, ScalarResult
    from sqlalchemy.ext.asyncio import AsyncConnection

P = ParamSpec("P")
T = TypeVar("T")


class SqlConnection:
    """What SQLAlchemy's `AsyncConnection` offers for a statement; `open` returns that for everything else.

    Nothing is begun before the first statement. How the transaction ends is not decided here: `end` tells why it did.
    """

    def __init__(
        self, begin: Callable[[], Awaitable[SqlTransaction]], end: Callable[[], EventStoreError | None]
    ) -> None:
        self._begin = begin
        self._end = end

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute a statement, with one set of parameters or a list of them."""
        return await self._do(lambda connection: connection.execute(statement, parameters))

    async def scalar(self, statement: Executable, parameters: Any = None) -> Any:
        """The first column of the first row, None if there is no row."""
        return await self._do(lambda connection: connection.scalar(statement, parameters))

    async def scalars(self, statement: Executable, parameters: Any = None) -> ScalarResult[Any]:
        """The first column of every row."""
        return await self._do(lambda connection: connection.scalars(statement, parameters))

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> CursorResult[Any]:
        """Execute SQL as the driver takes it."""
        return await self._do(lambda connection: connection.exec_driver_sql(statement, parameters))

    async def run_sync(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that works on SQLAlchemy's plain `Connection`."""
        return await self._do(lambda connection: connection.run_sync(function, *args, **kwargs))

    async def open(self) -> AsyncConnection:
        """SQLAlchemy's own connection, in a transaction that has begun: do not end that."""
        return (await self._begin()).connection

    async def _do(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        connection = await self.open()
        try:
            return await work(connection)
        except EventStoreError as error:
            # A statement that was under way when the transaction ended has lost its connection by that.
            end = self._end()
            if end is not None and end is not error:
                raise end from error
            raise
