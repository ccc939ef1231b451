"""RedisConnection: one connection to the server, each command with a deadline; errors become ours.

Nothing is ever sent twice by this module. redis-py's client repeats a command whose reply was lost, which stores
events twice, so only its connection is used, with retries off.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import hiredis
from redis import exceptions as driver
from redis.asyncio import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from backends.redis_replies import OnReply, RedisReplies
from backends.redis_url import RedisTarget
from eventstore.errors import (
    BackendUnavailable,
    EventStoreError,
    InvalidStoreUrl,
    JournalCorrupt,
    JournalLost,
    LeaseLost,
    OutcomeUnknown,
    SchemaError,
    StorageFull,
    StoreBusy,
    StoreFenced,
)

REVISION = "0001"
"""The schema revision of what the scripts write."""

Argument = bytes | int

# In C; its annotations take a tuple of one.
_pack: Callable[[tuple[Argument, ...]], bytes] = cast("Any", hiredis).pack_command


# What a user may not do in a script is told in other words than outside of one: by Valkey, and by Redis 7.
_NOT_PERMITTED = ("ACL failure in script", "The user executing the script can't")


# The parameters that name one.
_FILES = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})


class Script(NamedTuple):
    """A Lua script. The server knows it by its hash, and is sent the text when it does not."""

    sha: bytes
    source: bytes


class ReplyLost(Exception):
    """A command was sent, and no whole reply came. Whether the server ran it is not known."""


class RedisConnection:
    """Connects when first used, and again after a failure. `on_connect` may refuse the server it has found.

    Commands may follow each other without waiting for replies, which come in the same order. Whatever interrupts one,
    a cancellation too, closes the connection: a reply that is still to come could be taken for the next command's. For
    the others under way that is a lost reply.
    """

    def __init__(
        self, target: RedisTarget, *, on_connect: Callable[[RedisConnection], Awaitable[None]] | None = None
    ) -> None:
        self._target = target
        self._on_connect = on_connect
        self._replies: RedisReplies | None = None
        self._pid = os.getpid()

    async def connect(self) -> None:
        """Raises `BackendUnavailable`, or what `on_connect` raises."""
        connection = _driver_connection(self._target)
        try:
            async with asyncio.timeout(self._target.connect_timeout):
                await connection.connect()
        except (driver.RedisError, OSError, ValueError) as error:
            await connection.disconnect(nowait=True)
            raise unreachable(self._target, error) from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._replies = RedisReplies(connection._parser.parse_error)
        self._replies.take_over(connection._writer)
        # From here on the driver has no connection: who lets go of it closes nothing.
        connection._writer = connection._reader = None
        self._pid = os.getpid()
        try:
            if self._on_connect is not None:
                await self._on_connect(self)
        except (ReplyLost, driver.RedisError) as error:
            self._drop()
            raise translated(error, writing=False) from error
        except BaseException:
            self._drop()
            raise

    async def close(self) -> None:
        self._drop()

    async def run(self, script: Script, key: bytes, arguments: Sequence[Argument]) -> Any:
        """Run a script. One that the server does not know was not run, so it may be sent again, as text."""
        try:
            return await self.call(b"EVALSHA", script.sha, 1, key, *arguments)
        except driver.NoScriptError:
            return await self.call(b"EVAL", script.source, 1, key, *arguments)

    def start(self, script: Script, key: bytes, arguments: Sequence[Argument], on_reply: OnReply) -> bool:
        """Have a script that the server knows run, and its reply handed over while the socket is read, or the error
        that `run` would raise. False: nothing was sent, because that takes a connection first."""
        replies = self._replies
        if replies is None or replies.is_stale:
            return False
        self._send(replies, (b"EVALSHA", script.sha, 1, key, *arguments), on_reply)
        return True

    async def call(self, *command: Argument) -> Any:
        """Send a command and wait for its reply.

        Raises `BackendUnavailable` if nothing was sent, `ReplyLost` if no reply came, and redis-py's errors for
        what the server replied: `translated` makes ours of them.
        """
        replies = await self._connected()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._send(replies, command, partial(_settle, future))
        try:
            return await future
        except asyncio.CancelledError:
            self._drop()
            raise
        finally:
            # An error that is raised keeps this frame, and the future keeps the error.
            del future

    async def ensure_connected(self) -> None:
        """Connect, unless connected. One that the server has closed meanwhile is found before anything is sent."""
        await self._connected()

    async def send(self, *command: Argument) -> None:
        """Send a command whose reply comes by `receive`. News that wait there to be read are no sign of staleness."""
        if self._replies is None:
            await self.connect()
        if self._replies is not None:
            self._replies.send(_pack(command))

    async def receive(self) -> Any:
        """The next message from the server, however long it takes. Raises what the connection has ended with."""
        if self._replies is None:
            raise ReplyLost("the connection is closed")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies.next(partial(_settle, future))
        try:
            return await future
        finally:
            del future

    async def _connected(self) -> RedisReplies:
        replies = self._replies
        if replies is not None and not replies.is_stale:
            return replies
        self._drop()
        await self.connect()
        if self._replies is None:
            raise unreachable(self._target, driver.ConnectionError("Connection closed by server."))
        return self._replies

    def _send(self, replies: RedisReplies, command: tuple[Argument, ...], on_reply: OnReply) -> None:
        """Send a command. Its reply is handed over, or an error, within the time that is allowed."""

        def receive(reply: Any, error: BaseException | None) -> None:
            deadline.cancel()
            if error is None and isinstance(reply, Exception):
                error = reply
            if error is None or isinstance(error, driver.ResponseError):
                on_reply(reply, error)
                return
            if self._replies is replies:
                self._drop()
            if not _is_refusal(error):
                lost = ReplyLost(_reason(error))
                lost.__cause__ = error
                error = lost
            on_reply(None, error)

        packed = _pack(command)
        deadline = asyncio.get_running_loop().call_later(self._target.command_timeout, replies.end, TimeoutError())
        replies.next(receive)
        replies.send(packed)

    def _drop(self) -> None:
        """Close the connection. Whoever waits for a reply is told that none comes."""
        replies, self._replies = self._replies, None
        # In the child of a fork it is the parent's.
        if replies is not None and os.getpid() == self._pid:
            replies.close()


def _settle(future: asyncio.Future[Any], reply: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None and isinstance(reply, Exception):
        error = reply
    if error is None:
        future.set_result(reply)
    else:
        future.set_exception(error)


def translated(error: BaseException, *, writing: bool) -> EventStoreError:
    """A driver's error as ours. While `writing`, a lost reply leaves the outcome unknown."""
    if isinstance(error, EventStoreError):
        return error
    if isinstance(error, ReplyLost):
        if writing:
            return OutcomeUnknown(f"Redis did not answer ({error}): what was sent may be stored or not")
        return BackendUnavailable(f"Redis did not answer a read ({error}): try again")
    code, text = _code(error), str(error)
    match code:
        case "REPLACED":
            return JournalLost(
                "the server no longer holds the journal that was opened: it was emptied, restored from another copy, "
                "or is another server; nothing was read or stored. Find out what happened before a new store is opened"
            )
        case "REWOUND":
            return JournalLost(
                "the server has lost events that it had acknowledged: it was restored from an older copy, or a "
                f"replica that lagged has taken over ({text}); nothing was read or stored. Restore the newer data, or "
                "open a new store to go on without those events"
            )
        case "LEASELOST":
            return LeaseLost("this process holds no lease that runs: nothing was claimed")
        case "FENCED":
            return StoreFenced("", text.removeprefix("FENCED "))
        case "DAMAGED":
            return JournalCorrupt(f"the journal contradicts itself: {text.removeprefix('DAMAGED ')}")
        case "REVISED":
            found = text.removeprefix("REVISED ")
            return SchemaError(
                f"the journal has been migrated to schema revision {found} while this store was open, which needs "
                f"{REVISION}: nothing was read or stored; restart with the version of this package that migrated it",
                found=found,
                expected=REVISION,
            )
        case "MISCONF" | "OOM":
            return StorageFull(f"the server has no room to store anything: free memory or disk; Redis: {text}")
        case "BUSY":
            return StoreBusy(f"another client's script blocks the server: try again; Redis: {text}")
        case "READONLY":
            return BackendUnavailable(f"the server is a read-only replica: name the primary in the URL; Redis: {text}")
        case "MOVED" | "ASK":
            return BackendUnavailable(
                f"another node of the cluster serves this journal ({text}): name that node in the URL"
            )
        case "NOPERM":
            return BackendUnavailable(
                f"the user lacks a right that the journal needs: docs/redis.md lists them; Redis: {text}"
            )
        case "NOAUTH" | "WRONGPASS":
            return BackendUnavailable(f"the server refuses the user or the password of the URL; Redis: {text}")
        case _ if isinstance(error, driver.AuthenticationError):
            # A server that knows no password at all tells it without a code.
            return BackendUnavailable(f"the server refuses the user or the password of the URL; Redis: {text}")
        case _ if "DB index" in text:
            return BackendUnavailable(
                f"the server has no database of the number in the URL, and as a rule it has 0 to 15; Redis: {text}"
            )
        case _:
            return BackendUnavailable(f"Redis: {text}")


def unreachable(target: RedisTarget, error: BaseException) -> EventStoreError:
    """Why no connection could be made. Nothing was sent then."""
    if isinstance(error, driver.AuthenticationError | driver.ResponseError):
        return translated(error, writing=False)
    where = target.socket or f"{target.host}:{target.port}"
    hint = ""
    if target.tls is not None and "CERTIFICATE_VERIFY_FAILED" in str(error):
        hint = "; an authority that is none of the system's is named by ssl_ca_certs=… in the URL"
    return BackendUnavailable(f"Redis at {where} cannot be reached: {_reason(error)}{hint}")


def driver_arguments(target: RedisTarget) -> dict[str, Any]:
    """What any of redis-py's connections is made with, but for its retries and deadlines.

    Raises `InvalidStoreUrl` where a certificate cannot be read: the driver would take that for a server that is away.
    """
    arguments: dict[str, Any] = {
        "db": target.database,
        "username": target.username,
        "password": target.password,
        "protocol": 2,
        "socket_connect_timeout": target.connect_timeout,
        # To tell the server the client's name and version would take one more right.
        "driver_info": None,
    }
    if target.socket:
        return arguments | {"path": target.socket}
    for name in _FILES & (target.tls or {}).keys():
        try:
            Path(str((target.tls or {})[name])).read_bytes()
        except OSError as error:
            raise InvalidStoreUrl(f"{target.url}: {name} names a file that cannot be used: {error.strerror}") from error
    return arguments | {"host": target.host, "port": target.port} | (target.tls or {})


def _driver_connection(target: RedisTarget) -> Any:
    kind: Any = UnixDomainSocketConnection if target.socket else Connection if target.tls is None else SSLConnection
    return kind(
        **driver_arguments(target),
        retry=Retry(NoBackoff(), 0),
        # The deadlines are this module's.
        socket_timeout=None,
    )


def _is_refusal(error: BaseException) -> bool:
    """Whether the server has answered, and not run the command, by an error that redis-py takes for a broken line."""
    refusals = (driver.BusyLoadingError, driver.AuthenticationError, driver.AuthorizationError)
    return isinstance(error, refusals) or "max number of clients" in str(error)


def _code(error: BaseException) -> str:
    """The word that a Redis error starts with. Older servers wrap the one of a script's command in a text of theirs."""
    known = cast("str | None", getattr(error, "status_code", None))
    if known is not None and known != "ERR":
        return known
    words = str(error).split()
    if words and words[0].isupper() and words[0] != "ERR":
        return words[0]
    if any(text in str(error) for text in _NOT_PERMITTED):
        return "NOPERM"
    wrapped = ("MISCONF", "OOM", "READONLY", "NOPERM", "MOVED")
    return next((code for code in wrapped if any(code in word for word in words)), "ERR")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError | driver.TimeoutError):
        return "no answer within the time allowed"
    return str(error) or type(error).__name__
