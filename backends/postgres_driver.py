"""What is used of asyncpg, with the types that it does not declare."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol, cast

import asyncpg  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]  (it has none)

_asyncpg = cast("Any", asyncpg)


class Connection(Protocol):
    async def fetch(self, query: str, *parameters: object) -> list[Any]: ...

    async def execute(self, query: str, *parameters: object) -> str: ...

    def is_in_transaction(self) -> bool: ...

    def is_closed(self) -> bool: ...

    def get_server_pid(self) -> int: ...

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None: ...

    def add_termination_listener(self, callback: Callable[..., None]) -> None: ...

    async def close(self, *, timeout: float) -> None: ...

    def terminate(self) -> None: ...


connect: Callable[..., Coroutine[Any, Any, Connection]] = _asyncpg.connect

ServerError: type[Exception] = _asyncpg.PostgresError
"""The server refused something; it has an `sqlstate`."""

ClientError: type[Exception] = _asyncpg.InterfaceError
InternalClientError: type[Exception] = _asyncpg.InternalClientError

DRIVER_ERRORS = (ServerError, ClientError, InternalClientError, OSError)
"""What a statement can raise. A deadline that is over is a `TimeoutError`, which is an `OSError`."""


def sqlstate(error: BaseException) -> str:
    """The server's code for an error; empty where the server said nothing."""
    return (getattr(error, "sqlstate", None) or "") if isinstance(error, ServerError) else ""
