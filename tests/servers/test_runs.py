"""Whatever becomes of a test run, its servers end with it; and a server that cannot be had fails it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .home import sweep

ROOT = Path(__file__).resolve().parents[2]

# Starts one of each, and says where they are.
RUN = """
import sys, time
from tests.servers.postgres import Postgres
from tests.servers.redis import Redis

servers = [Postgres(durable=False).start(), Redis(durable=False).start()]
pids = [pid for server in servers for pid in server.family()]
if sys.argv[1] == "paused":
    for server in servers:
        server.pause()
print(*[server.home for server in servers], *pids, flush=True)
time.sleep(60)
"""


class Run:
    """Another test run, with servers of its own."""

    def __init__(self, state: str) -> None:
        command = [sys.executable, "-c", RUN, state]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.homes = [Path(word) for word in words[:2]]
        self.pids = [int(word) for word in words[2:]]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture(params=["running", "paused"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    run = Run(request.param)
    yield run
    run.kill()
    sweep()


def test_nothing_is_left_of_a_run_that_was_killed(run: Run) -> None:
    assert len(run.pids) > 4
    assert all(map(is_alive, run.pids))
    sweep()
    assert all(map(is_alive, run.pids)), "a run that goes on keeps its servers"

    run.kill()
    sweep()
    wait_until(lambda: not any(map(is_alive, run.pids)))
    sweep()
    assert not any(home.exists() for home in run.homes)


def test_the_kernel_ends_the_servers_of_a_run_that_was_killed() -> None:
    run = Run("running")
    run.kill()
    wait_until(lambda: not any(map(is_alive, run.pids)))
    sweep()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"PG_BIN": "/nowhere"}, "PG_BIN names /nowhere, which does not exist"),
        ({"TEST_SERVERS": "magic"}, "TEST_SERVERS is bundled, system, auto, not 'magic'"),
    ],
)
def test_a_server_that_cannot_be_had_fails_the_run_and_says_why(setting: dict[str, str], said: str) -> None:
    chosen = {"PG_DSN", "PG_BIN", "TEST_SERVERS"}
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    test = "tests/servers/test_postgres.py::test_databases_are_fresh"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", test],
        cwd=ROOT,
        env={**environment, **setting},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert said in done.stdout
    assert "skipped" not in done.stdout
    assert done.returncode == 1


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    # One that nobody has waited for is gone too.
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
