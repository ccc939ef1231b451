"""F05, F06, F07, F16, F17: a server whose disk is full, fails or is slow, as far as a test can make it so."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from actors import ActorSystem
from eventstore import DurabilityError, EventStore
from eventstore.schema import upgrade
from eventstore.url import parse_store_url
from tests.backends.redis_help import admin
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis
from tests.servers.server import Server

from .small_disk import SmallDisk
from .tracing import INJECTED, injecting
from .vault import Deposit, GetTotal, Record, Vault, deposit
from .verdict import verdict
from .writing import Writing

PATIENCE_SECONDS = 60.0

_AServer = TypeVar("_AServer", bound=Server)


def with_journal(url: str) -> str:
    upgrade(parse_store_url(url))
    return url


def wait_until_said(server: Server, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while text not in server.log.read_text():
        assert time.monotonic() < deadline, f"the server never said {text!r}"
        time.sleep(0.01)


# Full


async def fill_and_make_room(url: str, disk: SmallDisk) -> Record:
    """Deposits before, on and after a full disk. Returns their record, which the caller judges."""
    lines: list[str] = []
    async with ActorSystem(url) as system:
        vaults = [system.ref(Vault, str(number)) for number in range(10)]

        async def deposit_into_all(name: str) -> set[str]:
            """The errors there were."""
            before = len(lines)
            deposits = (Deposit(id=f"{name}-{number}", parts=3) for number in range(len(vaults)))
            await asyncio.gather(*map(deposit, vaults, deposits, [lines.append] * len(vaults)))
            return {line.split(" ")[-1] for line in lines[before:] if line.startswith("refused")}

        assert await deposit_into_all("before") == set()
        disk.fill(leave=100_000)
        errors: set[str] = set()
        rounds = 0
        while not errors:
            errors = await deposit_into_all(f"filling-{rounds}")
            rounds += 1
            assert rounds < 5000, "the disk does not get full"
            if rounds % 20 == 0:
                await asyncio.sleep(0.1)  # Some servers write a little later.
        assert rounds > 1
        assert errors == await deposit_into_all("full") == {"StorageFull"}
        versions = [(await vault.ask(GetTotal())).version for vault in vaults]
        assert min(versions) >= 3 * rounds - 3
        disk.make_room()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await deposit_into_all(f"again-{time.monotonic()}"):
                await asyncio.sleep(0.1)
        assert await deposit_into_all("after") == set()
    record = Record()
    record.read("\n".join(lines))
    assert record.unknown == set()
    return record


@pytest.fixture
def postgres_on_a_small_disk() -> Iterator[tuple[Postgres, SmallDisk]]:
    """A server with a tablespace of its own on a small disk, and in it the database `vaults`."""
    with started_on_a_disk(Postgres(durable=True), "32m") as (server, disk):
        space = disk.seen / "space"
        space.mkdir()
        server.psql("postgres", f"CREATE TABLESPACE small LOCATION '{disk.folder}/space';")
        server.psql("postgres", "CREATE DATABASE vaults TABLESPACE small;")
        yield server, disk


@contextmanager
def started_on_a_disk(server: _AServer, size: str, *, prepare: bool = False) -> Iterator[tuple[_AServer, SmallDisk]]:
    with ExitStack() as stack:
        stack.callback(server.close)
        disk = stack.enter_context(SmallDisk(server.home / "small", size))
        disk.give_to(server)
        if prepare:
            move_log_to(disk, server)
        server.start()
        yield server, disk
        server.close()


async def test_a_full_disk_of_postgres_is_a_typed_error_and_with_room_it_serves_again(
    postgres_on_a_small_disk: tuple[Postgres, SmallDisk],
) -> None:
    server, disk = postgres_on_a_small_disk
    url = await asyncio.to_thread(with_journal, server.url("vaults"))
    record = await fill_and_make_room(url, disk)

    assert "No space left on device" in server.log.read_text()
    assert await asyncio.to_thread(verdict, url, record) == []


async def test_a_full_disk_of_redis_is_a_typed_error_and_with_room_it_serves_again() -> None:
    redis = Redis(durable=True, settings={"appendfsync": "everysec"})
    redis.settings["dir"] = str(redis.home / "small")
    with started_on_a_disk(redis, "4m") as (server, disk):
        url = await asyncio.to_thread(with_journal, redis.url() + "?durability=process-crash")
        record = await fill_and_make_room(url, disk)

        assert "Short write while writing to the AOF file" in server.log.read_text()
        assert await asyncio.to_thread(verdict, url, record) == []
        # What it held back while the disk was full is written by then.
        with admin(server) as client:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while client.info("persistence")["aof_buffer_length"]:
                    await asyncio.sleep(0.01)
        server.crash()
        server.start()
        assert await asyncio.to_thread(verdict, url, record) == []


def test_a_redis_that_syncs_always_ends_on_a_full_disk_and_has_everything_when_it_is_started_again(
    tmp_path: Path,
) -> None:
    redis = Redis(durable=True)
    redis.settings["dir"] = str(redis.home / "small")
    with started_on_a_disk(redis, "4m") as (server, disk):
        url = with_journal(redis.url() + "?command_timeout=5")
        with Writing(url, tmp_path / "record") as writing:
            writing.wait_for(acks=20)
            disk.fill(leave=100_000)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while server.is_running:
                assert time.monotonic() < deadline, "it goes on with a full disk"
                time.sleep(0.01)
            said = server.log.read_text()
            disk.make_room()
            server.start()
            writing.wait_for(acks=50)
            writing.end()
        assert "Can't recover from AOF write error" in said
        record = writing.record()
        assert record.unknown == set()
        assert verdict(url, record) == []


def move_log_to(disk: SmallDisk, server: Server) -> None:
    script = 'cd "$0" && cp -a data/pg_wal/. small/ && rm -r data/pg_wal && ln -s ../small data/pg_wal'
    subprocess.run([*disk.entering, "sh", "-c", script, str(server.home)], check=True, timeout=60)


def test_a_postgres_without_room_for_its_log_panics_and_has_everything_when_there_is_room(tmp_path: Path) -> None:
    postgres = Postgres(durable=True)
    with started_on_a_disk(postgres, "96m", prepare=True) as (server, disk):
        url = with_journal(postgres.url() + "?command_timeout=5")
        with Writing(url, tmp_path / "record") as writing:
            writing.wait_for(acks=20)
            # A segment of the log has 16 MB. There is room for no whole one more.
            disk.fill(leave=14_000_000)
            deadline = time.monotonic() + PATIENCE_SECONDS
            while "PANIC" not in server.log.read_text():
                assert time.monotonic() < deadline, "its log finds room"
                try:
                    postgres.psql("postgres", "SELECT pg_switch_wal();")
                except RuntimeError:
                    pass  # This session was the one that found no room.
                time.sleep(0.05)
            said = server.log.read_text()
            # It recovers by itself, or, where it finds no room for that either, ends.
            deadline = time.monotonic() + 3
            while server.is_running and time.monotonic() < deadline:
                time.sleep(0.01)
            disk.make_room()
            before, deadline = writing.acknowledged(), time.monotonic() + PATIENCE_SECONDS
            while writing.acknowledged() == before:
                assert time.monotonic() < deadline, "it does not serve again"
                if not server.is_running:
                    server.start()
                time.sleep(0.01)
            writing.wait_for(acks=50)
            writing.end()
        assert re.search(r"PANIC: .*No space left on device", said)
        record = writing.record()
        assert record.unknown == set()
        assert verdict(url, record) == []


# Failing


def test_a_postgres_whose_log_cannot_be_synced_panics_and_every_append_is_stored_once(
    own_postgres: Postgres, strace: str, tmp_path: Path
) -> None:
    url = with_journal(own_postgres.url() + "?command_timeout=5")
    with Writing(url, tmp_path / "record") as writing:
        writing.wait_for(acks=20)
        pid = own_postgres.psql(
            "postgres",
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'eventstore' AND query LIKE '%INSERT INTO%' "
            "LIMIT 1;",
            "-At",
        )
        with injecting(strace, int(pid), "error=EIO:when=3", tmp_path / "trace"):
            wait_until_said(own_postgres, "all server processes terminated; reinitializing")
        writing.wait_for(acks=50)
        writing.end()
    assert INJECTED in (tmp_path / "trace").read_text()
    assert re.search(r"PANIC: .*could not fdatasync|PANIC: .*could not fsync", own_postgres.log.read_text())
    record = writing.record()
    assert record.unknown == set()
    assert verdict(url, record) == []


def test_a_redis_whose_log_cannot_be_synced_ends_and_every_append_is_stored_once(
    own_redis: Redis, strace: str, tmp_path: Path
) -> None:
    url = with_journal(own_redis.url() + "?command_timeout=5")
    with Writing(url, tmp_path / "record") as writing:
        writing.wait_for(acks=20)
        with injecting(strace, own_redis.pid, "error=EIO:when=3", tmp_path / "trace"):
            deadline = time.monotonic() + PATIENCE_SECONDS
            while own_redis.is_running:
                assert time.monotonic() < deadline, "it goes on without a sync"
                time.sleep(0.01)
        own_redis.start()
        writing.wait_for(acks=50)
        writing.end()
    assert INJECTED in (tmp_path / "trace").read_text()
    assert "Can't persist AOF for fsync error" in own_redis.log.read_text()
    record = writing.record()
    assert record.unknown == set()
    assert verdict(url, record) == []


# Slow


def test_a_redis_that_syncs_every_second_on_a_slow_disk_loses_what_it_has_acknowledged_and_is_refused(
    strace: str, tmp_path: Path
) -> None:
    # What is not promised: this is why `durability=power-loss`, the default, does not take such a server.
    with Redis(durable=True, settings={"appendfsync": "everysec"}) as server:
        url = with_journal(server.url() + "?durability=process-crash")
        with pytest.raises(DurabilityError, match="appendfsync always"):
            asyncio.run(opened(server.url()))
        with (
            injecting(strace, server.pid, "delay_enter=3000000", tmp_path / "trace"),
            Writing(url, tmp_path / "record"),
            admin(server) as client,
        ):
            deadline = time.monotonic() + PATIENCE_SECONDS
            # What is acknowledged, and has not even been handed to the operating system.
            while client.info("persistence")["aof_buffer_length"] < 10_000:
                assert time.monotonic() < deadline, "it holds nothing back"
                time.sleep(0.01)
            server.crash()
        server.start()
        record = Record()
        record.read((tmp_path / "record").read_text())
        assert "lost" in {violation.rule for violation in verdict(url, record)}


async def opened(url: str) -> None:
    async with EventStore.open(url):
        pass
