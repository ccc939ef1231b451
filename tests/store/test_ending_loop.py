"""An event loop that ends while something is under way in a store that nobody closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APPENDING = """
import asyncio, os, signal, sys
from backends.conformance.events import happened
from eventstore import EventStore

async def begun(turns):
    store = await EventStore.open(sys.argv[1]).__aenter__()
    appending.append(asyncio.create_task(store.append("a", happened(1))))
    for _ in range(turns):
        await asyncio.sleep(0)

for turns in range(4):
    appending = []
    signal.alarm(30)
    asyncio.run(begun(turns))
    assert appending[0].done()
os._exit(0)
"""


@pytest.mark.parametrize("backend", ["sqlite", "postgres", "redis", "memory"])
def test_an_event_loop_ends_beside_an_append_however_far_that_has_come(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    urls = {"sqlite": f"sqlite:///{tmp_path}/journal.db", "memory": "memory://"}
    url = urls.get(backend) or request.getfixturevalue(f"{backend}_url")
    command = [sys.executable, "-c", APPENDING, url]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=150, cwd=Path(__file__).parents[2]
    )
    # The driver may say that it has not asked the server yet to give up the append.
    assert done.returncode == 0, done.stderr
