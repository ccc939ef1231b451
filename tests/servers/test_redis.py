"""The tests' own Redis does what the tests rely on."""

from __future__ import annotations

from contextlib import closing
from urllib.parse import parse_qs, urlsplit

import pytest
import redis

from .keyspaces import Keyspaces
from .redis import Redis


def test_a_prefix_is_fresh_and_its_keys_are_removed(keyspaces: Keyspaces) -> None:
    with keyspaces.empty() as url, keyspaces.empty() as other:
        prefix = parse_qs(urlsplit(url).query)["prefix"][0]
        assert prefix not in other
        with closing(connect(url)) as client:
            client.mset({f"{prefix}a": 1, f"{{{prefix}}}:b": 2, "somebody-else's": 3})
    with closing(connect(url)) as client:
        assert client.keys(f"*{prefix}*") == []
        assert client.delete("somebody-else's") == 1


def test_a_server_of_ones_own_is_durable_and_survives_a_crash(own_redis: Redis) -> None:
    with closing(connect(own_redis.url())) as client:
        assert client.config_get("append*")["appendfsync"] == "always"
        client.set("kept", 1)
        own_redis.crash()
        with pytest.raises((redis.ConnectionError, OSError)):
            client.get("kept")
        own_redis.start()
        assert client.get("kept") == b"1"


def test_a_paused_server_does_not_answer_and_goes_on_afterwards(own_redis: Redis) -> None:
    with closing(connect(own_redis.url())) as client, closing(connect(own_redis.url(), 0.5)) as hasty:
        client.ping()
        own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            hasty.ping()
        own_redis.resume()
        assert client.ping()


def connect(url: str, seconds: float = 20) -> redis.Redis:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    bare = urlsplit(url)._replace(query="").geturl()
    return redis.Redis.from_url(bare, socket_timeout=seconds, retry=Retry(NoBackoff(), 0))
