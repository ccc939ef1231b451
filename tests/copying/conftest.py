"""What the tests of copies share: journals on every backend, and ways to fill, run and kill."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from backends.conformance.events import write
from eventstore import Appended, EventStore
from eventstore.backend import CommandOutcome, StreamWrite
from eventstore.codec import new_event_id
from tests.servers.databases import Databases
from tests.servers.keyspaces import Keyspaces

ROOT = Path(__file__).parents[2]

Journals = Callable[[str], str]


@pytest.fixture
def journals(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Journals]:
    """The URL of a new, empty journal on a backend: "sqlite", "postgres", "redis" or "memory"."""
    with ThreadPoolExecutor(1) as threads, ExitStack() as stack:

        def journal(kind: str) -> str:
            match kind:
                case "sqlite":
                    return f"sqlite:///{tmp_path}/{uuid4().hex}.db"
                case "postgres":
                    databases: Databases = request.getfixturevalue("databases")
                    # In a thread: the database is made in an event loop of its own.
                    return threads.submit(stack.enter_context, databases.migrated()).result()
                case "redis":
                    keyspaces: Keyspaces = request.getfixturevalue("keyspaces")
                    return stack.enter_context(keyspaces.migrated())
                case _:
                    return f"memory://{uuid4()}"

        yield journal


async def fill(store: EventStore, count: int, *, streams: int = 50, size: int = 20) -> None:
    """Events in groups of batches, each batch with the outcome of a command, in more streams than one page has."""
    backend = store._backend
    versions = [0] * streams
    batches: list[list[StreamWrite]] = []
    for number in range(count):
        stream = number * 7 % streams
        command = CommandOutcome(f"command-{number}", b"f" * 16, new_event_id(), number % 9 == 0, b'"done"', number)
        payload = b'{"number":%d,"text":"%s"}' % (number, b"x" * size)
        batches.append([write(f"s-{stream}", payload, expected=versions[stream], commands=[command])])
        versions[stream] += 1
        if len(batches) == 500 or number == count - 1:
            assert all(isinstance(outcome, Appended) for outcome in await backend.append(batches))
            batches = []


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "eventstore.cli", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def run(*arguments: str, given: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run the program to its end."""
    return subprocess.run(
        command(*arguments), env=environment(), input=given, capture_output=True, timeout=120, check=False
    )


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
