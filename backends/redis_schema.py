"""RedisSchema: making a journal on a Redis server, and finding out which revision one is, for `eventstore migrate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from redis import Connection, SSLConnection, UnixDomainSocketConnection
from redis import exceptions as driver
from redis.backoff import NoBackoff
from redis.retry import Retry

from backends.redis_connection import REVISION, ReplyLost, driver_arguments, translated, unreachable
from backends.redis_scripts import MIGRATE
from backends.redis_url import RedisTarget, parse_redis_url
from eventstore.errors import EventStoreError, SchemaError
from eventstore.url import StoreUrl

_T = TypeVar("_T")


class RedisSchema:
    """The journal under a URL's prefix. Every call makes a connection of its own, and waits for it."""

    revisions: Sequence[str] = (REVISION,)

    def __init__(self, url: StoreUrl) -> None:
        self._target = parse_redis_url(url)

    def check(self) -> str | None:
        """The revision of the journal, None where there is none. Changes nothing.

        Raises `SchemaError` where the prefix is something else's, and `BackendUnavailable`.
        """
        found = self._run(lambda call: call(b"HGET", self._target.key, b"revision"))
        return None if found is None else found.decode()

    def upgrade(self, revision: str) -> None:
        """Make the journal, in one step, where there is none. Two that do it at once make one journal."""
        arguments = (self._target.key, uuid4().hex, revision)
        found = self._run(lambda call: call(b"EVAL", MIGRATE.source, 1, *arguments))
        if found is not None and found.decode() not in self.revisions:
            raise SchemaError(
                f"{self._target.url}: the journal has schema revision {found.decode()}, which this version does not "
                "know: install the release that made it; nothing was changed",
                found=found.decode(),
                expected=REVISION,
            )

    def _run(self, work: Callable[[Callable[..., Any]], _T]) -> _T:
        try:
            connection = _connected(self._target)
        except (driver.RedisError, OSError, ValueError) as error:
            raise unreachable(self._target, error) from error

        def call(*command: Any) -> Any:
            connection.send_command(*command)
            return connection.read_response(disable_decoding=True)

        try:
            return work(call)
        except driver.ResponseError as error:
            raise self._refused(error) from error
        except (driver.RedisError, OSError) as error:
            # Run again it finds the journal, or makes it.
            raise translated(ReplyLost(str(error)), writing=False) from error
        finally:
            connection.disconnect()

    def _refused(self, error: driver.ResponseError) -> EventStoreError:
        if "FOREIGN" in str(error):
            return SchemaError(
                f"{self._target.url}: keys of the prefix {self._target.prefix!r} are something else's, or are what is "
                "left of a journal; choose another ?prefix=",
                found=None,
                expected=REVISION,
            )
        if "WRONGTYPE" in str(error):
            return SchemaError(
                f"{self._target.url}: the key {self._target.key.decode()!r} is something else's; choose another "
                "?prefix=",
                found=None,
                expected=REVISION,
            )
        return translated(error, writing=False)


def _connected(target: RedisTarget) -> Any:
    kind: Any = UnixDomainSocketConnection if target.socket else Connection if target.tls is None else SSLConnection
    connection = kind(**driver_arguments(target), retry=Retry(NoBackoff(), 0), socket_timeout=target.command_timeout)
    connection.connect()
    return connection
