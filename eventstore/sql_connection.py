"""SqlConnection: where a user's own statements are executed in a transaction that begins with the first of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from eventstore.sql_transaction import SqlTransaction

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult, Executable, ScalarResult
    from sqlalchemy.ext.asyncio import AsyncConnection

P = ParamSpec("P")
T = TypeVar("T")


class SqlConnection:
    """What SQLAlchemy's `AsyncConnection` offers for a statement; `open` returns that for everything else.

    Nothing is begun before the first statement. How the transaction ends is not decided here.
    """

    def __init__(self, begin: Callable[[], Awaitable[SqlTransaction]]) -> None:
        self._begin = begin

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """Execute a statement, with one set of parameters or a list of them."""
        return await (await self.open()).execute(statement, parameters)

    async def scalar(self, statement: Executable, parameters: Any = None) -> Any:
        """The first column of the first row, None if there is no row."""
        return await (await self.open()).scalar(statement, parameters)

    async def scalars(self, statement: Executable, parameters: Any = None) -> ScalarResult[Any]:
        """The first column of every row."""
        return await (await self.open()).scalars(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> CursorResult[Any]:
        """Execute SQL as the driver takes it."""
        return await (await self.open()).exec_driver_sql(statement, parameters)

    async def run_sync(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that works on SQLAlchemy's plain `Connection`."""
        return await (await self.open()).run_sync(function, *args, **kwargs)

    async def open(self) -> AsyncConnection:
        """SQLAlchemy's own connection, in a transaction that has begun: do not end that."""
        return (await self._begin()).connection
