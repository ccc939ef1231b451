"""Transfer between vaults and kill the process that does it, again and again; the next one sends again what was not
answered.

    python -m tests.faults.transfer_cycles URL RECORD CYCLES BUILD

Every cycle is a fork, as in `kill_cycles.py`. In the end what is left is sent by a process that is not killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path

from actors import ActorSystem
from eventstore import EventStore
from tests.faults.kill_cycles import MOMENTS, run_and_kill
from tests.faults.transferring import BUILDS, Answers, transfer_all
from tests.faults.vault import Write

SENT_TWICE = 5


@dataclass
class Counts:
    """Whether the fault has struck, and where."""

    killed: int = 0
    killed_under_way: int = 0
    sent_again: int = 0


def run_cycles(url: str, record_file: Path, cycles: int, build: str) -> Counts:
    # Imports the backend, and opens nothing.
    EventStore.open(url)
    assert threading.active_count() == 1, "a fork takes locks along that other threads hold"
    counts = Counts()
    said = Answers()
    with record_file.open("w") as record:
        for cycle in range(cycles):
            again = [*said.unanswered, *random.sample(list(said.acks), min(SENT_TWICE, len(said.acks)))]

            async def work(url: str, prefix: str, write: Write, again: list[str] = again) -> None:
                async with BUILDS[build](url) as store, ActorSystem(store) as system:
                    await transfer_all(system, chain(again, (f"{prefix}/{n}" for n in count())), write)

            lines, status = run_and_kill(url, str(cycle), work, after=MOMENTS[cycle % len(MOMENTS)])
            said.read(lines)
            record.write(lines)
            counts.killed += status == -signal.SIGKILL
            counts.killed_under_way += bool(said.unanswered)
            counts.sent_again += len(said.unanswered)
        asyncio.run(send_the_rest(url, said.unanswered, lambda line: record.write(f"{line}\n")))
    return counts


async def send_the_rest(url: str, ids: list[str], write: Write) -> None:
    async with ActorSystem(url) as system:
        await transfer_all(system, ids, write)


if __name__ == "__main__":
    url, record_file, cycles, build = sys.argv[1:]
    logging.disable()
    print(json.dumps(asdict(run_cycles(url, Path(record_file), int(cycles), build))))
