"""Keyspaces: a fresh key prefix for each test, on one Redis server that the tests of a process share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import cast
from urllib.parse import urlsplit, urlunsplit

import redis

from eventstore import schema
from eventstore.url import parse_store_url

_BATCH = 1000


class Keyspaces:
    """`url` is a store URL of the server, without a prefix."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = itertools.count(1)

    @contextmanager
    def empty(self) -> Generator[str]:
        """A URL whose prefix no key has. The keys it has afterwards are removed."""
        prefix = f"eventstore-test-{os.getpid()}-{next(self._numbers)}-"
        parts = urlsplit(self._url)
        try:
            yield urlunsplit(parts._replace(query="&".join(part for part in (parts.query, f"prefix={prefix}") if part)))
        finally:
            self._remove(prefix)

    @contextmanager
    def migrated(self) -> Generator[str]:
        """The URL of an empty journal."""
        with self.empty() as url:
            schema.upgrade(parse_store_url(url))
            yield url

    def _remove(self, prefix: str) -> None:
        dsn = urlunsplit(urlsplit(self._url)._replace(query=""))
        with closing(redis.Redis.from_url(dsn, socket_timeout=60)) as client:
            # The prefix may stand inside of a hash tag.
            keys = client.scan_iter(match=f"*{prefix}*", count=_BATCH)
            while some := list(itertools.islice(cast("Iterator[bytes]", keys), _BATCH)):
                client.unlink(*some)
