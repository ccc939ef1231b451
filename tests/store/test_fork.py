"""A store that a child process has of its parent: it is refused, in words that say so, and the parent goes on."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends.conformance.events import happened
from eventstore import EventStore, StoreClosed

FORKED = """
import asyncio, os, sys
from backends.conformance.events import happened
from eventstore import EventStore, StoreClosed

async def refused(store):
    async with asyncio.timeout(10):
        try:
            await store.append("a", happened(2))
        except StoreClosed as error:
            assert "fork" in str(error), error
            return 7
    return 1

with asyncio.Runner() as runner:
    store = runner.run(EventStore.open(sys.argv[1]).__aenter__())
    runner.run(store.append("a", happened(1)))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            asyncio.set_event_loop(None)
            code = asyncio.run(refused(store))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7, status
    assert runner.run(store.append("a", happened(3))).versions == (2,)
    runner.run(store.close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_told_and_its_parent_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, f"sqlite:///{tmp_path}/journal.db"]
    checkout = Path(__file__).parents[2]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=checkout)
    assert (done.returncode, done.stderr) == (0, "")


async def test_an_append_in_another_event_loop_is_refused(tmp_path: Path) -> None:
    async with EventStore.open(f"sqlite:///{tmp_path}/journal.db") as store:

        async def refused() -> None:
            async with asyncio.timeout(10):
                with pytest.raises(StoreClosed, match="another event loop"):
                    await store.append("a", happened(1))

        await asyncio.to_thread(asyncio.run, refused())
        assert (await store.append("a", happened(1))).versions == (1,)
