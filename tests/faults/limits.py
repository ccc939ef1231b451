"""Deposits while the process may not have more files, memory or threads. Programs of their own, because such limits are
those of the whole process.

    python -m tests.faults.limits files URL RECORD      no file descriptor is free
    python -m tests.faults.limits threads URL RECORD    no thread can be started
    python -m tests.faults.limits memory URL RECORD     no memory is left for a large deposit, which ends the process
    python -m tests.faults.limits opening URL RECORD    a store is opened under each of these limits

What there is to know goes to standard output, as JSON: proof of the fault, and the errors that there were.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from uuid import uuid4

from actors import ActorSystem, AskTimeout
from eventstore import BackendUnavailable, EventStore, EventStoreError, OutcomeUnknown
from tests.faults.vault import Deposit, Vault, Write, writer_to

KEYS = [str(number) for number in range(12)]
MEBIBYTE = 1024 * 1024


@contextmanager
def no_free_files() -> Generator[Callable[[], str]]:
    """No more files than are open now. What it yields tells whether that is so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))

    def proof() -> str:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return ""

    try:
        yield proof
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_free_memory() -> Generator[Callable[[], str]]:
    """No more address space than there is, but for a little: not for a new thread's stack."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 6 * MEBIBYTE, limits[1]))
    # Stacks of threads that have ended are used again: not for one of this size.
    stack = threading.stack_size(256 * MEBIBYTE)

    def proof() -> str:
        try:
            threading.Thread(target=int).start()
        except RuntimeError as error:
            return str(error)
        return ""

    try:
        yield proof
    finally:
        threading.stack_size(stack)
        resource.setrlimit(resource.RLIMIT_AS, limits)


Limit = Callable[[], AbstractContextManager[Callable[[], str]]]


class Errors:
    """What was raised, by type; and what was not one of this package's errors, in full."""

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.foreign: list[str] = []

    async def of(self, work: Awaitable[object]) -> None:
        try:
            await work
        except (EventStoreError, MemoryError) as error:
            self.types[type(error).__name__] += 1
        except Exception as error:
            self.types[type(error).__name__] += 1
            self.foreign.append(repr(error))

    def told(self) -> dict[str, Any]:
        return {"errors": dict(self.types), "foreign": self.foreign}


async def deposit_into(system: ActorSystem, key: str, command: Deposit, write: Write) -> None:
    """One deposit with its lines, and the error if there was one."""
    vault = system.ref(Vault, key)
    write(f"intent {command.id} {vault.stream_id} {command.parts} {command.amount}")
    try:
        receipt = await vault.ask(command, command_id=command.id, timeout=20)
    except (OutcomeUnknown, AskTimeout, MemoryError):
        write(f"unknown {command.id}")
        raise
    except Exception as error:
        write(f"refused {command.id} {type(error).__name__}")
        raise
    write(f"ack {command.id} {receipt.version} {receipt.total}")


async def files(url: str, write: Write) -> dict[str, Any]:
    return await under(no_free_files, url, write)


async def threads(url: str, write: Write) -> dict[str, Any]:
    return await under(no_free_memory, url, write)


async def under(limit: Limit, url: str, write: Write) -> dict[str, Any]:
    errors = Errors()
    async with ActorSystem(url) as system:
        for key in KEYS[:6]:
            await deposit_into(system, key, Deposit(id=f"before-{key}"), write)
    async with ActorSystem(url) as system:
        # What appends need is open; what readers need is not.
        with limit() as proof:
            fault = proof()
            start = time.monotonic()
            for _ in range(3):
                await asyncio.gather(
                    *(errors.of(deposit_into(system, key, Deposit(id=f"under-{uuid4()}"), write)) for key in KEYS),
                    *(errors.of(system.store.version(f"vault-{key}")) for key in KEYS),
                )
            took = time.monotonic() - start
        served_after = await seconds_until_served(system, write)
    return {"fault": [fault], "took": took, "served_after": served_after, **errors.told()}


async def seconds_until_served(system: ActorSystem, write: Write) -> float:
    """How long it takes until every actor and every reader is served again."""
    start = time.monotonic()
    for key in KEYS:
        for attempt in range(100):
            try:
                await deposit_into(system, key, Deposit(id=f"after-{key}-{attempt}"), write)
                await system.store.version(f"vault-{key}")
                break
            except BackendUnavailable:
                await asyncio.sleep(0.1)
    return time.monotonic() - start


async def memory(url: str, write: Write) -> dict[str, Any]:
    async with EventStore.open(url, max_payload_bytes=64 * MEBIBYTE) as store, ActorSystem(store) as system:
        for key in KEYS[:6]:
            await deposit_into(system, key, Deposit(id=f"before-{key}"), write)
        large = Deposit(id="x" * (16 * MEBIBYTE))
        with no_free_memory():
            await asyncio.gather(
                *(deposit_into(system, key, Deposit(id=f"under-{key}"), write) for key in KEYS),
                system.ref(Vault, "large").ask(large),
            )
    return {}


async def opening(url: str, write: Write) -> dict[str, Any]:
    errors, faults = Errors(), list[str]()
    # Everything is imported before.
    async with EventStore.open(url):
        pass
    for limit in (no_free_files, no_free_memory):
        with limit() as proof:
            faults.append(proof())
            for opened in (EventStore.open(url), ActorSystem(url)):
                await errors.of(opened.__aenter__())
                await errors.of(opened.close())
        async with ActorSystem(url) as system:
            await deposit_into(system, "1", Deposit(id=f"after-{limit.__name__}"), write)
    # The loop's own threads stay.
    left = [thread.name for thread in threading.enumerate() if not thread.name.startswith(("MainThread", "asyncio_"))]
    return {"fault": faults, "left": left, **errors.told()}


if __name__ == "__main__":
    # The errors are expected, and standard output is for the facts.
    logging.disable()
    program, url, record = sys.argv[1:]
    facts = asyncio.run(globals()[program](url, writer_to(os.open(record, os.O_WRONLY | os.O_CREAT, 0o600))))
    print(json.dumps(facts))
