"""BareRedis: the same lists and hashes without the library: one redis-py client, one script for each group."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import redis
from uuid_utils import uuid7

# What the journal keeps: a list for each stream, one log of places, the ids of events, the versions of streams, and
# where the log ends. Nothing is checked: that is what the library pays for its promises.
# ARGV: for each event: stream, version, event id, record.
_APPEND = """
local base = KEYS[1]
local position = tonumber(redis.call('GET', base .. 'position') or '0')
local log, ids, heads = {}, {}, {}
for i = 1, #ARGV, 4 do
    position = position + 1
    redis.call('RPUSH', base .. 'events:' .. ARGV[i], ARGV[i + 3])
    log[#log + 1] = struct.pack('>I6I6I4', ARGV[i], ARGV[i + 1], #ARGV[i + 3])
    ids[#ids + 1] = ARGV[i + 2]
    ids[#ids + 1] = position
    heads[#heads + 1] = ARGV[i]
    heads[#heads + 1] = ARGV[i + 1]
end
redis.call('APPEND', base .. 'log', table.concat(log))
redis.call('HSET', base .. 'ids', unpack(ids))
redis.call('HSET', base .. 'heads', unpack(heads))
redis.call('SET', base .. 'position', position)
return position
"""
_HEADER = struct.Struct(">QQ16sQQIHI")
_TYPE = b"benchmark.deposited"
# Of about the size that the journal's have. What making one costs is the library's.
_CHECKSUM = 0x9E3779B9

_Row = tuple[int, int, bytes, bytes]


class BareRedis:
    """Appends records of so many streams, one record of each at a time."""

    def __init__(self, client: Any, prefix: str, streams: int) -> None:
        self._client = client
        self._base = f"{prefix}bare:"
        # The only stream of the journal beside it that is read without the library has the first number.
        self._journal = f"{{{prefix}}}:events:1"
        self._append = client.script_load(_APPEND)
        self._rows = _rows(streams)

    async def commits(self, seconds: float, *, rows: int) -> list[float]:
        """Append `rows` records at a time, for so long. Returns how long each group took."""
        taken: list[float] = []
        total = 0.0
        while total < seconds:
            # Making records is not the database's work: it is done between the measurements.
            for group in [list(itertools.chain(*itertools.islice(self._rows, rows))) for _ in range(50)]:
                start = time.perf_counter()
                self._client.evalsha(self._append, 1, self._base, *group)
                taken.append(time.perf_counter() - start)
                total += taken[-1]
        return taken

    async def pairs(self, seconds: float, *, connections: int) -> float:
        """Append two records at a time, for so long. Returns scripts per second."""
        assert connections == 1, "the client blocks"
        taken = await self.commits(seconds, rows=2)
        return len(taken) / sum(taken)

    def fill(self, payload: bytes, count: int) -> None:
        """A list of so many payloads, to be read."""
        for _ in range(0, count, 1000):
            self._client.rpush(f"{self._base}payloads", *[payload] * 1000)

    def read(self, page: int) -> Generator[Sequence[bytes], None, None]:
        """The payloads, page by page."""
        return self._pages(f"{self._base}payloads", page)

    def read_journal(self, page: int) -> Generator[Sequence[bytes], None, None]:
        """The records of the journal's first stream, page by page."""
        return self._pages(self._journal, page)

    def _pages(self, key: str, page: int) -> Generator[Sequence[bytes], None, None]:
        for start in itertools.count(0, page):
            found = cast("list[bytes]", self._client.lrange(key, start, start + page - 1))
            if not found:
                return
            yield found


@asynccontextmanager
async def bare_redis(dsn: str, prefix: str, *, streams: int = 1) -> AsyncGenerator[BareRedis, None]:
    """On the same server as the journal. The client blocks, which takes less time than one of the event loop's."""
    client = redis.Redis.from_url(dsn, socket_timeout=60)
    try:
        yield BareRedis(client, prefix, streams)
    finally:
        client.close()


def _rows(streams: int) -> Iterator[_Row]:
    for version in itertools.count(1):
        for stream in range(1, streams + 1):
            event_id = uuid7().bytes
            header = _HEADER.pack(version, time.time_ns() // 1000, event_id, 0, _CHECKSUM, 1, len(_TYPE), 0)
            yield stream, version, event_id, header + _TYPE + b'{"amount":1}'
