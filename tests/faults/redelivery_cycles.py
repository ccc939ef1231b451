"""Load a store with commands that have ids, kill the process again and again, and let the next one send again whatever
was not answered.

    python -m tests.faults.redelivery_cycles URL RECORD CYCLES WORKER

Every cycle is a fork, as in `kill_cycles.py`. A child sends what its predecessors got no answer to, some commands that
were answered, and new ones, and is killed under way. The last child is not killed: it sends what is left, and ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from actors import ActorSystem
from eventstore import EventStore
from eventstore.backend import AppendOutcome, Batch
from tests.faults.broken import Wrapped, opened_with
from tests.faults.kill_cycles import KEYS, MOMENTS, PATIENCE_SECONDS, read_until, run_child
from tests.faults.resending import (
    Answers,
    Ask,
    RememberingVault,
    ask,
    ask_without_id,
    kind_of,
    send_until_answered,
)
from tests.faults.vault import Write, writer_to

TELLERS = 3
SENT_TWICE = 5


class RememberingApart(Wrapped):
    """Stores what commands came to in a commit of its own, after their events."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        outcomes = await self._backend.append([[write._replace(commands=()) for write in batch] for batch in batches])
        await asyncio.sleep(0.002)
        kept = [
            [write._replace(expected=-1, events=()) for write in batch if write.commands]
            for batch, outcome in zip(batches, outcomes, strict=True)
            if not isinstance(outcome, Exception)
        ]
        await self._backend.append([batch for batch in kept if batch])
        return outcomes


@dataclass
class Counts:
    """Whether the fault has struck, and where."""

    killed: int = 0
    sent_again: int = 0
    answered_before_they_were_sent_again: int = 0


class Child(NamedTuple):
    """What one process does: which commands it sends first, as (id, key), and whether it goes on with new ones."""

    url: str
    prefix: str
    again: Sequence[tuple[str, str]]
    has_new: bool


async def work(child: Child, write: Write, *, ask: Ask = ask, open_store: Callable[[str], EventStore]) -> None:
    async with open_store(child.url) as store, ActorSystem(store) as system:

        async def teller(key: str, name: str) -> None:
            for number in count():
                id_ = f"{name}/{number}/{kind_of(number)}"
                await send_until_answered(system.ref(RememberingVault, key), id_, write, ask)

        async with asyncio.TaskGroup() as tasks:
            for id_, key in child.again:
                tasks.create_task(send_until_answered(system.ref(RememberingVault, key), id_, write, ask))
            if child.has_new:
                for key in KEYS:
                    for number in range(TELLERS):
                        tasks.create_task(teller(key, f"{child.prefix}/{key}/{number}"))


WORKERS: dict[str, Callable[[Child, Write], Coroutine[Any, Any, None]]] = {
    "honest": lambda child, write: work(child, write, open_store=EventStore.open),
    "forgetting ids": lambda child, write: work(child, write, ask=ask_without_id, open_store=EventStore.open),
    "remembering apart": lambda child, write: work(
        child, write, open_store=lambda url: opened_with(RememberingApart, url)
    ),
}


def run_cycles(url: str, record_file: Path, cycles: int, worker: str) -> Counts:
    # Imports the backend, and opens nothing.
    EventStore.open(url)
    assert threading.active_count() == 1, "a fork takes locks along that other threads hold"
    counts = Counts()
    said = Answers()
    with record_file.open("w") as record:
        for cycle in range(cycles + 1):
            is_last = cycle == cycles
            answered = random.sample(list(said.answers), min(SENT_TWICE, len(said.answers)))
            again = [(id_, said.streams[id_].removeprefix("vault-")) for id_ in (*said.unanswered, *answered)]
            counts.sent_again += len(again) - len(answered)
            counts.answered_before_they_were_sent_again += len(answered)
            child = Child(url, str(cycle), again, has_new=not is_last)
            lines, status = run(child, worker, kill_after=None if is_last else MOMENTS[cycle % len(MOMENTS)])
            counts.killed += status == -signal.SIGKILL
            assert not is_last or status == 0, f"the last process ended with {status}"
            said.read(lines)
            record.write(lines)
    return counts


def run(child: Child, worker: str, *, kill_after: bytes | None) -> tuple[str, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        run_child(_ending(WORKERS[worker](child, writer_to(writing))))
    os.close(writing)
    received = b""
    if kill_after is not None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        received += read_until(reading, deadline, is_enough=lambda lines: kill_after in lines)
        received += read_until(reading, time.monotonic() + random.uniform(0.002, 0.030))
        os.kill(pid, signal.SIGKILL)
    received += read_until(reading, time.monotonic() + PATIENCE_SECONDS)
    os.close(reading)
    os.kill(pid, signal.SIGKILL)
    return received.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def _ending(work: Coroutine[Any, Any, None]) -> None:
    """`run_child` takes every end for a failure."""
    await work
    os._exit(0)


if __name__ == "__main__":
    url, record_file, cycles, worker = sys.argv[1:]
    print(json.dumps(asdict(run_cycles(url, Path(record_file), int(cycles), worker))))
