"""Load a store and kill the process that does it, again and again.

    python -m tests.faults.kill_cycles URL RECORD CYCLES WORKER

Everything is imported once. Every cycle is a fork of this process, which has no thread and has opened no store: the
child opens it, works, and is killed by SIGKILL 2 to 30 ms after its first ack, after its first intent, which is in
the midst of recovery, or after the fork, which may be while the store opens. What the children wrote is in the file
RECORD; the counts are printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from actors import ActorSystem
from eventstore import EventStore

from .broken import Buffering, deposit_by_tell, deposit_twice, opened_with
from .vault import DepositInto, Record, Write, deposit, keep_depositing, writer_to

KEYS = ("a", "b", "c", "d", "e")
MOMENTS = (b"", b"ack", b"intent", b"ack")
PATIENCE_SECONDS = 60.0

Work = Callable[[str, str, Write], Coroutine[Any, Any, None]]


@dataclass
class Counts:
    """Whether the fault has struck, and where."""

    cycles: int = 0
    killed: int = 0
    killed_before_the_first_intent: int = 0
    killed_with_asks_in_flight: int = 0
    killed_after_acks: int = 0


async def work(url: str, prefix: str, write: Write, *, deposit: DepositInto = deposit) -> None:
    async with ActorSystem(url) as system:
        await keep_depositing(system, KEYS, prefix, write, deposit)


async def work_on_a_buffer(url: str, prefix: str, write: Write) -> None:
    async with opened_with(Buffering, url) as store, ActorSystem(store) as system:
        await keep_depositing(system, KEYS, prefix, write)


WORKERS: dict[str, Work] = {
    "honest": work,
    "buffering": work_on_a_buffer,
    "acknowledging early": partial(work, deposit=deposit_by_tell),
    "doubling": partial(work, deposit=deposit_twice),
}


def run_cycles(url: str, record_file: Path, cycles: int, worker: Work) -> Counts:
    # Imports the backend, and opens nothing.
    EventStore.open(url)
    assert threading.active_count() == 1, "a fork takes locks along that other threads hold"
    counts = Counts(cycles)
    with record_file.open("w") as record:
        for cycle in range(cycles):
            lines, status = run_and_kill(url, str(cycle), worker, after=MOMENTS[cycle % len(MOMENTS)])
            record.write(lines)
            count(counts, lines, status)
    return counts


def run_and_kill(url: str, prefix: str, worker: Work, *, after: bytes) -> tuple[str, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        run_child(worker(url, prefix, writer_to(writing)))
    os.close(writing)
    received = read_until(reading, time.monotonic() + PATIENCE_SECONDS, is_enough=lambda lines: after in lines)
    received += read_until(reading, time.monotonic() + random.uniform(0.002, 0.030))
    os.kill(child, signal.SIGKILL)
    received += read_until(reading, time.monotonic() + PATIENCE_SECONDS)
    os.close(reading)
    return received.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_child(work: Coroutine[Any, Any, None]) -> NoReturn:
    try:
        asyncio.run(work)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def read_until(descriptor: int, deadline: float, *, is_enough: Callable[[bytes], bool] = lambda _: False) -> bytes:
    """What comes until the deadline, or the end."""
    received = b""
    while (seconds := deadline - time.monotonic()) > 0 and not is_enough(received):
        if select.select([descriptor], [], [], seconds)[0]:
            data = os.read(descriptor, 65536)
            if not data:
                break
            received += data
    return received


def count(counts: Counts, lines: str, status: int) -> None:
    record = Record()
    record.read(lines)
    counts.killed += status == -signal.SIGKILL
    counts.killed_before_the_first_intent += not record.intents
    counts.killed_with_asks_in_flight += len(record.intents) > len(record.acks)
    counts.killed_after_acks += bool(record.acks)


if __name__ == "__main__":
    url, record_file, cycles, worker = sys.argv[1:]
    print(json.dumps(asdict(run_cycles(url, Path(record_file), int(cycles), WORKERS[worker]))))
