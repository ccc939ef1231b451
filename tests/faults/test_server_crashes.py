"""F08, F09: a server that is killed under load costs nothing that was acknowledged, and whoever works on goes on.

The process that deposits is not told: its store stays open all the time.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from eventstore.schema import upgrade
from eventstore.url import parse_store_url
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis
from tests.servers.server import Server

from .verdict import verdict
from .writing import PATIENCE_SECONDS, Writing

COMMAND_TIMEOUT = 5


def journal_on(server: Server, url: str) -> str:
    upgrade(parse_store_url(url))
    return f"{url}?command_timeout={COMMAND_TIMEOUT}"


class Crashes:
    """A server, one way to kill it, and a proof that it was killed."""

    def __init__(self, server: Server, url: str, kill: Callable[[], None], killed: Callable[[], int]) -> None:
        self.server = server
        self.url = journal_on(server, url)
        self.kill = kill
        self.killed = killed


@pytest.fixture(params=["postgres session", "postgres postmaster", "redis"])
def crashes(request: pytest.FixtureRequest) -> Iterator[Crashes]:
    if request.param == "redis":
        with Redis(durable=True) as redis:
            yield of_redis(redis)
    else:
        with Postgres(durable=True) as postgres:
            yield (of_a_session if request.param == "postgres session" else of_the_postmaster)(postgres)


def of_a_session(server: Postgres) -> Crashes:
    appending = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'eventstore' AND query LIKE '%INSERT INTO%' "
        "ORDER BY state = 'active' DESC LIMIT 1"
    )

    def kill() -> None:
        while not (pid := session()):
            time.sleep(0.02)
        # All other sessions are ended with it, and the server recovers by itself.
        os.kill(pid, signal.SIGKILL)

    def session() -> int:
        try:
            return int(server.psql("postgres", f"{appending};", "-At") or 0)
        except RuntimeError:
            # It still recovers, and a store that is broken on purpose has gone on without it.
            return 0

    def killed() -> int:
        said = server.log.read_text()
        assert said.count("all server processes terminated; reinitializing") == said.count("was terminated by signal 9")
        return said.count("was terminated by signal 9")

    return Crashes(server, server.url(), kill, killed)


def of_the_postmaster(server: Postgres) -> Crashes:
    pids: list[int] = [server.pid]

    def kill() -> None:
        # Its sessions see that it is gone when they next wait for something, and may commit until then.
        os.kill(server.pid, signal.SIGKILL)
        while server.is_running:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.05))
        server.start()
        pids.append(server.pid)

    def killed() -> int:
        assert server.log.read_text().count("automatic recovery in progress") == len(pids) - 1
        return changes(pids)

    return Crashes(server, server.url(), kill, killed)


def of_redis(server: Redis) -> Crashes:
    pids: list[int] = [server.pid]

    def kill() -> None:
        server.crash()
        time.sleep(random.uniform(0, 0.05))
        server.start()
        pids.append(server.pid)

    return Crashes(server, server.url(), kill, lambda: changes(pids))


def changes(pids: list[int]) -> int:
    """How often there was another one. A number that is free again may come back."""
    return sum(before != after for before, after in pairwise(pids))


def crash_under_load(crashes: Crashes, record_file: Path, count: int, *, store: str = "honest") -> Writing:
    with Writing(crashes.url, record_file, store=store) as writing:
        for _ in range(count):
            writing.wait_for(acks=random.randint(10, 100))
            crashes.kill()
        writing.wait_for(acks=100)
        slowest = writing.end()
    assert crashes.killed() == count
    # An append whose reply was lost, and the one after it, wait for the server and are answered then.
    assert slowest < PATIENCE_SECONDS
    return writing


def assert_survives(crashes: Crashes, record_file: Path, count: int) -> None:
    record = crash_under_load(crashes, record_file, count).record()

    assert verdict(crashes.url, record) == []
    assert record.unknown == set()
    # Nothing is said but that the server was not there.
    assert set(record.refused.values()) <= {"BackendUnavailable", "CircuitOpen"}


def test_a_server_that_is_killed_under_load_loses_nothing_and_doubles_nothing(crashes: Crashes, tmp_path: Path) -> None:
    assert_survives(crashes, tmp_path / "record", 4)


@pytest.mark.soak
def test_a_server_that_is_killed_200_times_loses_nothing_and_doubles_nothing(crashes: Crashes, tmp_path: Path) -> None:
    assert_survives(crashes, tmp_path / "record", 200)


def test_a_store_that_acknowledges_before_the_commit_is_found_guilty(crashes: Crashes, tmp_path: Path) -> None:
    record = crash_under_load(crashes, tmp_path / "record", 2, store="buffering").record()

    assert "lost" in {violation.rule for violation in verdict(crashes.url, record)}
