"""PostgresSession: one connection, with a deadline for everything that is done on it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast

from backends.postgres_driver import DRIVER_ERRORS, Connection, sqlstate
from backends.postgres_driver import connect as driver_connect
from backends.postgres_errors import translated
from backends.server_forks import OPEN_CONNECTIONS
from eventstore.errors import BackendUnavailable
from eventstore.postgres_url import PostgresTarget

# The server gives a statement up a little before the client does: then it is known that nothing was stored.
_SERVER_SHARE = 0.9
_CLOSE_SECONDS = 2.0
_STARTING_SECONDS = 0.05
_MOST_CUTS = 5
# Behind a proxy each transaction may have another session, of a role or a database that has it off.
_BEGIN_SYNCHRONOUS = """
BEGIN; SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'
"""
# The server starts, recovers, or ends all sessions because one of them crashed; or it closed the connection before it
# said anything, which it does then.
_COMES_BACK = ("57P01", "57P02", "57P03", "08003", "08006")


class PostgresSession:
    """A connection to the server, used by one task at a time. Its methods raise the driver's errors.

    No statement is cancelled, ever: asyncpg would open a second connection to ask the server for it, and wait for that.
    When time is up the connection is cut instead, which ends at once whatever waits on it.

    Behind a proxy that pools connections by transaction (`is_pooled`), every statement is run inside a transaction, and
    none is prepared by name.
    """

    def __init__(
        self, connection: Connection, target: PostgresTarget, *, is_pooled: bool, planning: Mapping[str, str]
    ) -> None:
        self.connection = connection
        self.is_pooled = is_pooled
        self.planning = planning
        """How its statements are planned, unless it `is_pooled`: then that is for each transaction to say."""
        self._seconds = target.command_timeout
        self._pid = os.getpid()
        OPEN_CONNECTIONS.opened(self)

    @property
    def transport(self) -> asyncio.WriteTransport | None:
        """None if the driver does not tell."""
        return cast("asyncio.WriteTransport | None", getattr(self.connection, "_transport", None))

    @property
    def is_usable(self) -> bool:
        """Whether the connection is there, as far as is known here, and outside of any transaction."""
        return not self.connection.is_closed() and not self.connection.is_in_transaction()

    @property
    def is_connected(self) -> bool:
        """Whether the connection is there, as far as is known here."""
        return not self.connection.is_closed()

    @property
    def server_pid(self) -> int:
        """The server's process, as it, or a proxy, has told when the connection was made."""
        if self.connection.is_closed():
            # The driver would stumble over one that was cut.
            raise ConnectionResetError("the connection was cut as the server had answered")
        return self.connection.get_server_pid()

    async def plan(self, planning: Mapping[str, str]) -> None:
        """Have all statements planned so from now on. It takes a trip, unless they are already, or it `is_pooled`."""
        if self.planning is planning or self.is_pooled:
            return
        with self._deadline():
            await self.connection.execute("; ".join(f"SET {name} = {value}" for name, value in planning.items()))
        self.planning = planning

    async def prepare(self, statements: str, *, seconds: float) -> None:
        """Run what a new session begins with, or cut the connection."""
        try:
            with self._deadline(seconds):
                await self.connection.execute(statements)
        except BaseException:
            self.cut()
            raise

    async def fetch(self, statement: str, *parameters: object) -> Sequence[Any]:
        """The rows of a statement."""
        if self.is_pooled and self.is_usable:
            async with self.transaction():
                return await self.fetch(statement, *parameters)
        with self._deadline():
            return await self.connection.fetch(statement, *parameters)

    async def execute(self, statement: str, *parameters: object) -> int:
        """Run a statement. Returns how many rows it touched."""
        if self.is_pooled and self.is_usable:
            async with self.transaction():
                return await self.execute(statement, *parameters)
        with self._deadline():
            status = await self.connection.execute(statement, *parameters)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def begin(self) -> None:
        """Begin a transaction that lasts until a statement ends it."""
        with self._deadline():
            await self.connection.execute("BEGIN")

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None, None]:
        """Commit when the block ends, roll back when it raises."""
        with self._deadline():
            await self.connection.execute(_BEGIN_SYNCHRONOUS if self.is_pooled else "BEGIN")
        try:
            yield
        except BaseException:
            # What cannot be rolled back is cut off (`is_usable`), and the server rolls it back.
            with suppress(*DRIVER_ERRORS), self._deadline():
                await self.connection.execute("ROLLBACK")
            raise
        with self._deadline():
            await self.connection.execute("COMMIT")

    @asynccontextmanager
    async def reading(self, planning: Mapping[str, str]) -> AsyncGenerator[None, None]:
        """A transaction that only reads, whose statements are planned in its own way."""
        settings = "".join(f"; SET LOCAL {name} = {value}" for name, value in planning.items())
        with self._deadline():
            await self.connection.execute(f"BEGIN READ ONLY{settings}")
        try:
            yield
        except BaseException:
            # As in `transaction`.
            with suppress(*DRIVER_ERRORS), self._deadline():
                await self.connection.execute("ROLLBACK")
            raise
        with self._deadline():
            await self.connection.execute("COMMIT")

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call back for every notification on a channel, as long as the session lives."""
        with self._deadline():
            await self.connection.add_listener(channel, _without_arguments(heard))

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back when the connection ends, for whatever reason."""
        self.connection.add_termination_listener(_without_arguments(callback))

    async def close(self) -> None:
        """Say goodbye to the server, or cut the connection if that takes long. In the child of a fork, where it is the
        parent's, nothing is done."""
        if os.getpid() != self._pid:
            return
        try:
            await self.connection.close(timeout=min(_CLOSE_SECONDS, self._seconds))
        except DRIVER_ERRORS:
            self.connection.terminate()

    def cut(self) -> None:
        """End the connection at once. What waits on it fails; what the server is doing it may still finish. Nothing is
        done in the child of a fork."""
        if os.getpid() == self._pid:
            self.connection.terminate()

    def cut_off(self) -> None:
        # Or the driver would connect, and ask the server to give up what the parent waits for.
        self.connection.terminate()

    @contextmanager
    def _deadline(self, seconds: float | None = None) -> Generator[None]:
        limit = self._seconds if seconds is None else seconds
        is_over = False

        def end() -> None:
            nonlocal is_over
            is_over = True
            self.cut()

        timer = asyncio.get_running_loop().call_later(limit, end)
        try:
            yield
        except (*DRIVER_ERRORS, AttributeError) as error:
            # The driver stumbles over a connection that was cut between two steps of a statement.
            if isinstance(error, AttributeError) and not self.connection.is_closed():
                raise
            if is_over:
                raise TimeoutError(f"the server did not answer within {limit:g} s (command_timeout)") from error
            if isinstance(error, AttributeError):
                raise ConnectionResetError("the connection was cut between two steps of a statement") from error
            raise
        finally:
            timer.cancel()


# How the journal's own statements are planned.
PLANNING = {
    # Planning an append anew takes about as long as running it, and compiling it much longer.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # A plan that was made while the journal was small is kept when it has grown. Without this it went through all
    # streams for each that was wanted, which was the larger part of an append and a thousandfold that of a claim.
    "enable_seqscan": "off",
}
# For statements whose best plan depends on the values, which differ by orders: planning them anew takes 0.3 ms.
PLANNING_ANEW = {"plan_cache_mode": "force_custom_plan", "jit": "off", "enable_seqscan": "on"}


# A role or a database may have it off, also since the store was opened. Stricter settings stay as they are.
_SYNCHRONOUS = """
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""


async def connect(
    target: PostgresTarget, *, is_pooled: bool, planning: Mapping[str, str] = PLANNING
) -> PostgresSession:
    """Connect to the server; one that starts or recovers is waited for. Raises this package's errors.

    Unless it `is_pooled`, the session commits synchronously, and has limits to its time.
    """
    arguments = target.connect_arguments()
    prepared = ""
    if is_pooled:
        arguments["statement_cache_size"] = 0
    else:
        settings = {**_time_limits(target), **planning}
        arguments["max_cached_statement_lifetime"] = 0
        arguments["server_settings"].update(settings)
        prepared = _SYNCHRONOUS
        if target.pooling == "session":
            # A proxy may leave out what goes with the request to connect, and say nothing.
            prepared = "; ".join([*(f"SET {name} = {value}" for name, value in settings.items()), _SYNCHRONOUS])
    deadline = time.monotonic() + target.connect_timeout
    cuts = 0
    while True:
        try:
            connection = await driver_connect(**arguments)
            session = PostgresSession(connection, target, is_pooled=is_pooled, planning=planning)
            if prepared:
                await session.prepare(prepared, seconds=max(0.0, deadline - time.monotonic()))
            return session
        except (*DRIVER_ERRORS, ValueError) as error:
            is_late = time.monotonic() + _STARTING_SECONDS > deadline
            # A server that has just begun to recover hangs up on who is still introducing himself.
            is_cut = isinstance(error, ConnectionError) and "connection_lost" in str(error)
            cuts += is_cut
            if is_late or not (sqlstate(error) in _COMES_BACK or (is_cut and cuts <= _MOST_CUTS)):
                raise _unreachable(target, error) from error
        await asyncio.sleep(_STARTING_SECONDS)


def _time_limits(target: PostgresTarget) -> dict[str, str]:
    """A session's time limits. They go with the request to connect, so they cost no round trip."""
    milliseconds = str(max(1, int(target.command_timeout * _SERVER_SHARE * 1000)))
    return {
        "statement_timeout": milliseconds,
        # A client that vanished inside a transaction must not keep its locks.
        "idle_in_transaction_session_timeout": milliseconds,
    }


def _unreachable(target: PostgresTarget, error: Exception) -> Exception:
    if isinstance(error, TimeoutError):
        return BackendUnavailable(f"{target}: no connection within {target.connect_timeout:g} s (connect_timeout)")
    is_verified = target.sslmode.startswith("verify") or target.sslrootcert is not None
    if is_verified and "SSL" in f"{type(error).__name__} {error}":
        return BackendUnavailable(
            f"{target}: no TLS connection that sslmode={target.sslmode} accepts could be made ({error}). It is the "
            "default for every host but this machine: name the authority with sslrootcert=…, or, in a network that "
            "you trust, say sslmode=require or sslmode=disable in the URL"
        )
    if sqlstate(error) == "08P01" and "startup parameter" in str(error):
        names = ", ".join((*_time_limits(target), *PLANNING))
        return BackendUnavailable(
            f"{target}: a proxy that pools connections refuses what each session is to be set to ({error}): leave "
            f"pooling=session out of the URL, or have a proxy in session mode pass over it (with pgbouncer: "
            f"ignore_startup_parameters = {names})"
        )
    found = translated(error, writing=False)
    return type(found)(f"{target}: {found}") if type(found) is BackendUnavailable else found


def _without_arguments(callback: Callable[[], None]) -> Callable[..., None]:
    def called(*_: object) -> None:
        callback()

    return called
