"""F03: an append is acknowledged when the disk has it, as far as the operating system's word goes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.conformance.events import happened
from eventstore import EventStore
from eventstore.schema import upgrade
from eventstore.url import parse_store_url
from tests.backends.postgres_help import execute
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis
from tests.servers.server import Server

from .tracing import replies_without_a_sync, tracing

CALLS = ["-s", "100000", "-e", "trace=read,recvfrom,write,writev,sendto,fdatasync,fsync"]
APPENDS = 20


async def traced_appends(server: Server, url: str, strace: str, trace: Path) -> list[bool]:
    """For each of some appends, whether it was acknowledged before anything was synced."""
    async with EventStore.open(url) as store:
        await store.append("a", happened(0))
        with tracing(strace, server.family(), trace, CALLS):
            for _ in range(APPENDS):
                await store.append("a", happened(77))
                await asyncio.sleep(0.02)
    return replies_without_a_sync(trace.read_text(), "77}")


async def with_journal(url: str) -> str:
    await asyncio.to_thread(upgrade, parse_store_url(url))
    return url


async def test_postgres_syncs_before_each_acknowledgement(own_postgres: Postgres, strace: str, tmp_path: Path) -> None:
    url = await with_journal(own_postgres.url())
    assert await traced_appends(own_postgres, url, strace, tmp_path / "trace") == [False] * APPENDS


async def test_a_postgres_that_is_told_not_to_wait_for_its_disk_is_made_to_wait(
    own_postgres: Postgres, strace: str, tmp_path: Path
) -> None:
    url = await with_journal(own_postgres.url())
    await execute(url, "ALTER DATABASE postgres SET synchronous_commit = off")
    assert await traced_appends(own_postgres, url, strace, tmp_path / "trace") == [False] * APPENDS


async def test_redis_syncs_before_each_acknowledgement(own_redis: Redis, strace: str, tmp_path: Path) -> None:
    url = await with_journal(own_redis.url())
    assert await traced_appends(own_redis, url, strace, tmp_path / "trace") == [False] * APPENDS


async def test_servers_that_do_not_sync_are_found_guilty(strace: str, tmp_path: Path) -> None:
    with Postgres(durable=False) as postgres:
        url = await with_journal(postgres.url())
        assert await traced_appends(postgres, url, strace, tmp_path / "postgres") == [True] * APPENDS
    with Redis(durable=True, settings={"appendfsync": "everysec"}) as redis:
        url = await with_journal(redis.url() + "?durability=process-crash")
        found = await traced_appends(redis, url, strace, tmp_path / "redis")
        assert len(found) == APPENDS
        # Once a second it syncs, beside what it does.
        assert sum(found) > APPENDS // 2


@pytest.mark.parametrize(
    ("trace", "found"),
    [
        ('1 recvfrom(9, "77}") = 3\n1 fdatasync(4) = 0\n1 sendto(9, "") = 1', [False]),
        ('1 recvfrom(9, "77}") = 3\n1 fdatasync(4) = -1 EIO\n1 sendto(9, "") = 1', [True]),
        ('1 fdatasync(4) = 0\n1 recvfrom(9, "77}") = 3\n1 write(5, "") = 1\n1 sendto(9, "") = 1', [True]),
        ('1 recvfrom(9, "77}") = 3\n2 fdatasync(4 <unfinished ...>\n1 sendto(9, "") = 1\n', [True]),
        ('1 read(9, <unfinished ...>\n1 <... read resumed>"77}") = 3\n2 fsync(4 <unfinished ...>\n'
         '2 <... fsync resumed>) = 0\n1 write(9, "") = 1', [False]),
    ],
)  # fmt: skip
def test_the_trace_is_read_rightly(trace: str, found: list[bool]) -> None:
    assert replies_without_a_sync(trace, "77}") == found
