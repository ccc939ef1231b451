"""A copy that is killed goes on where it was, and is the same in the end."""

from __future__ import annotations

import asyncio
import json
import signal
import time

import pytest

from eventstore import EventStore
from tests.copying.conftest import Journals, fill, run, start

EVENTS = 12_000
SECONDS = 60


@pytest.mark.parametrize(("old", "new"), [("sqlite", "postgres"), ("postgres", "redis"), ("redis", "sqlite")])
async def test_a_copy_that_is_killed_goes_on_where_it_was(old: str, new: str, journals: Journals) -> None:
    source_url = journals(old)
    async with EventStore.open(source_url) as source:
        await fill(source, EVENTS)
        await source.truncate("s-1", 3, reason="test")
        end = (await source.statistics()).last_position
    # Where the machine lets it go on for too long, another one is killed.
    for _ in range(10):
        target_url = journals(new)
        if await is_killed_in_its_midst(source_url, target_url, end):
            break
    else:
        pytest.fail("it was never killed in its midst")
    async with EventStore.open(target_url) as target:
        done = await asyncio.to_thread(run, "copy", source_url, target_url, "--verify", "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        report = json.loads(done.stdout)
        assert report["difference"] is None
        assert 0 < report["events"] < EVENTS - 3
        assert report["verified"]["events"] == EVENTS - 3
        assert report["verified"]["commands"] == EVENTS - 3
        assert report["position"] == end == (await target.statistics()).last_position


async def is_killed_in_its_midst(source_url: str, target_url: str, end: int) -> bool:
    """Whether three that copy, one after the other, were killed when they had come further and were not at the end."""
    position = 0
    async with EventStore.open(target_url) as target:
        for _ in range(3):
            process = start("copy", source_url, target_url)
            deadline = time.monotonic() + SECONDS
            while ((await target.archive().copied()) or 0) <= position and process.poll() is None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            output = process.communicate()
            assert process.returncode in {0, -signal.SIGKILL}, output
            if process.returncode == 0:
                return False
            # It may have gone on until it was killed.
            position = (await target.archive().copied()) or 0
    return 0 < position < end


async def test_following_goes_on_until_it_is_interrupted_and_can_be_taken_up(journals: Journals) -> None:
    from backends.conformance.events import happened

    source_url, target_url = journals("sqlite"), journals("sqlite")
    async with EventStore.open(source_url) as source, EventStore.open(target_url) as target:
        await source.append("a", happened(1))
        process = start("copy", source_url, target_url, "--follow")
        await _until_at(target, 1)
        await source.append("b", happened(2, 3))
        await _until_at(target, 3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=SECONDS)
        assert (process.returncode, output, errors) == (130, b"", b"")
        await source.append("a", happened(4))
        done = await asyncio.to_thread(run, "copy", source_url, target_url, "--cutover", "--verify")
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"1 event now" in done.stdout
        assert (await target.archive().copied(), await target.version("a")) == (4, 2)


async def _until_at(store: EventStore, position: int) -> None:
    deadline = time.monotonic() + SECONDS
    while ((await store.archive().copied()) or 0) < position:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
