"""F44: a subscriber far slower than the writers sees everything, once and in order, and holds a few pages of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from eventstore import EventStore
from tests.faults.journals import stored_events
from tests.faults.slow_reader import BEFORE_THE_LINE, PAGE
from tests.faults.vault import Deposited

ROOT = Path(__file__).parents[2]
STREAMS = 10
BATCH = 100
PAYLOAD_BYTES = 8192
# It may hold two pages, in all the forms that they take on their way out of the database; and some more.
ALLOWED_BYTES = 12 * PAGE * PAYLOAD_BYTES + 8 * 1024 * 1024


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/vaults.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


class Seen(NamedTuple):
    """What the subscriber has seen in the end and when the writer was done, and by how much its memory had grown."""

    lines: list[str]
    in_time: int
    grown_bytes: int


def read_slowly(url: str, record: Path, count: int, build: str = "honest") -> Seen:
    """Write so many events, while another process reads some of them, and the rest when all are written."""
    asyncio.run(write(url, 0))
    command = [sys.executable, "-W", "error", "-m", "tests.faults.slow_reader", url, str(record), str(count), build]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            asyncio.run(write(url, count))
            if build != "honest":
                assert reader.stdout.readline() == "had all\n"
            deadline = time.monotonic() + 60
            while (in_time := record.read_bytes().count(b"\n")) < BEFORE_THE_LINE:
                assert time.monotonic() < deadline, "it has not begun to read"
                time.sleep(0.005)
            output, _ = reader.communicate("go on\n", timeout=60 + count / 100)
        finally:
            reader.kill()
    assert reader.returncode == 0
    return Seen(record.read_text().splitlines(), in_time, int(output))


async def write(url: str, count: int) -> None:
    async with EventStore.open(url) as store:
        for start in range(0, count, BATCH * STREAMS):
            await asyncio.gather(
                *(
                    store.append(f"vault-{stream}", [_event(start + stream * BATCH + n) for n in range(BATCH)])
                    for stream in range(STREAMS)
                )
            )


def _event(number: int) -> Deposited:
    return Deposited(id=f"{number}-".ljust(PAYLOAD_BYTES, "x"), part=1, parts=1, amount=1)


def written(url: str) -> list[str]:
    return [f"{event.position} {event.stream_id} {event.version}" for event in stored_events(url)]


@pytest.mark.parametrize("count", [4_000, pytest.param(50_000, marks=pytest.mark.soak)], ids=["a moment", "for long"])
def test_a_slow_subscriber_sees_everything_and_holds_little(url: str, tmp_path: Path, count: int) -> None:
    seen = read_slowly(url, tmp_path / "record", count)

    assert seen.lines == written(url)
    assert len(seen.lines) == count
    # It was behind by more than it was allowed to hold.
    assert (count - seen.in_time) * PAYLOAD_BYTES > 1.5 * ALLOWED_BYTES
    assert seen.grown_bytes < ALLOWED_BYTES


def test_a_subscriber_that_reads_ahead_of_itself_is_found_guilty(tmp_path: Path) -> None:
    seen = read_slowly(f"sqlite:///{tmp_path}/vaults.db", tmp_path / "record", 4_000, "greedy")

    assert seen.grown_bytes > ALLOWED_BYTES


def test_a_subscriber_that_drops_what_it_has_no_time_for_is_found_guilty(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/vaults.db"
    seen = read_slowly(url, tmp_path / "record", 4_000, "forgetful")

    assert seen.lines != written(url)
