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
    source_url, target_url = journals(old), journals(new)
    async with EventStore.open(source_url) as source:
        await fill(source, EVENTS)
        await source.truncate("s-1", 3, reason="test")
        end = (await source.statistics()).last_position
    async with EventStore.open(target_url) as target:
        position = 0
        for _ in range(3):
            process = start("copy", source_url, target_url)
            deadline = time.monotonic() + SECONDS
            while ((found := await target.archive().copied()) or 0) <= position:
                assert time.monotonic() < deadline
                assert process.poll() is None, process.communicate()
                await asyncio.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            position = found or 0
        # It was killed in its midst, and not behind its end.
        assert 0 < position < end
        done = await asyncio.to_thread(run, "copy", source_url, target_url, "--verify", "--json")
        assert (done.returncode, done.stderr) == (0, b"")
        report = json.loads(done.stdout)
        assert report["difference"] is None
        assert 0 < report["events"] < EVENTS - 3
        assert report["verified"]["events"] == EVENTS - 3
        assert report["verified"]["commands"] == EVENTS - 3
        assert report["position"] == end == (await target.statistics()).last_position


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
