"""What the tests of Redis share: a journal on a server of their own, and a client to look behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from backends.redis import RedisBackend
from eventstore import EventStore, schema
from eventstore.url import parse_store_url
from tests.servers.redis import Redis

KEY = "{journal}"


def journal_url(server: Redis, *, port: int | None = None, user: str = "", **parameters: object) -> str:
    """The URL of the journal on a server, or by way of a proxy's port."""
    query = f"?{urlencode(parameters)}" if parameters else ""
    return f"redis://{user}{server.host}:{port or server.port}/0{query}"


def migrated(server: Redis, **parameters: object) -> str:
    """The URL of a new journal on a server."""
    url = journal_url(server, **parameters)
    schema.upgrade(parse_store_url(url))
    return url


def backend_of(store: EventStore) -> RedisBackend:
    backend = store._backend
    assert isinstance(backend, RedisBackend)
    return backend


@contextmanager
def admin(server: Redis) -> Iterator[redis.Redis]:
    """Another client of the server, which sends nothing twice."""
    client = redis.Redis(host=server.host, port=server.port, socket_timeout=30, retry=Retry(NoBackoff(), 0))
    try:
        yield client
    finally:
        client.close()


def scripts_run(client: redis.Redis) -> int:
    """How many scripts the server has run, by their hash or their text, and not refused."""
    stats = client.info("commandstats")
    found = [stats[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats]
    return sum(int(each["calls"]) - int(each["failed_calls"]) for each in found)


def commands_run(client: redis.Redis) -> dict[str, int]:
    """How often the server has run each command since its statistics were reset, scripts' commands among them."""
    stats = client.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()}
    return {name: count for name, count in calls.items() if name not in {"config|resetstat", "info"}}
