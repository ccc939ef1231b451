"""Deposits on a disk that fails. Programs of their own, because such a fault is one of the whole process.

    python -m tests.faults.disk asking FILE         eight deposits, one after the other, by an actor
    python -m tests.faults.disk appending FILE      the same by a store alone, so that no other connection is open
    python -m tests.faults.disk transacting FILE    eight transactions with a row of the user's and an event each
    python -m tests.faults.disk refused FILE        the same, until one is refused: then the process kills itself
    python -m tests.faults.disk reading FILE        what an actor says that nobody has woken before
    python -m tests.faults.disk filling FILE        on a small file system: until it is full, and with room again
    python -m tests.faults.disk limited FILE        while no file may grow
    python -m tests.faults.disk limited_long FILE   … for longer than an unknown outcome is looked into

The record goes to standard output. What else there is to know goes to standard error, as JSON.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from sqlalchemy import text

from actors import ActorSystem
from backends.conformance import events as conformance
from eventstore import Appended, BackendUnavailable, EventStore

from .journals import sqlite_url
from .vault import Deposit, GetTotal, Record, Vault, deposit, parts_of, writer_to
from .verdict import verdict

write = writer_to(1)


async def asking(path: Path) -> None:
    async with ActorSystem(f"sqlite:///{path}") as system:
        for number in range(8):
            await deposit(system.ref(Vault, "1"), Deposit(id=f"d{number}"), write)


async def appending(path: Path) -> None:
    async with EventStore.open(f"sqlite:///{path}") as store:
        for number in range(8):
            write(f"intent d{number} vault-1 1 1")
            appended = await store.append("vault-1", parts_of(Deposit(id=f"d{number}")))
            write(f"ack d{number} {appended.versions[0]} {appended.versions[0]}")


async def refused(path: Path) -> None:
    await transacting(path, dies=True)


async def transacting(path: Path, *, dies: bool = False) -> None:
    async with EventStore.open(f"sqlite:///{path}") as store:
        # A connection that reads keeps the log from being removed when the writer's is closed.
        await store.version("vault-1")
        for number in range(8):
            write(f"intent t{number} vault-1 1 1")
            begun = await store.begin_sql(seconds=30)
            try:
                await begun.connection.execute(text("INSERT INTO ledger VALUES (:n)"), {"n": number})
                appended = await begun.commit([conformance.write("vault-1", b'{"number":%d}' % number)])
                assert isinstance(appended, Appended)
                write(f"ack t{number} {appended.versions[0]} {appended.versions[0]}")
            except BackendUnavailable as error:
                write(f"refused t{number} {type(error).__name__}")
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                await begun.rollback()
        rows, events = await stored(store)
    tell(rows=rows, events=events)


async def stored(store: EventStore) -> tuple[list[int], list[int]]:
    begun = await store.begin_sql(seconds=30)
    try:
        rows = (await begun.connection.execute(text("SELECT n FROM ledger ORDER BY n"))).scalars().all()
    finally:
        await begun.rollback()
    return list(rows), await conformance.numbers(store.read("vault-1"))


async def reading(path: Path) -> None:
    async with ActorSystem(f"sqlite:///{path}") as system:
        receipt = await system.ref(Vault, "1").ask(GetTotal())
        write(f"ack read {receipt.version} {receipt.total}")


async def filling(path: Path) -> None:
    lines: list[str] = []
    ballast = path.with_name("ballast")
    ballast.write_bytes(b"x" * 500_000)
    async with ActorSystem(f"sqlite:///{path}") as system:
        vaults = [system.ref(Vault, str(number)) for number in range(10)]

        async def deposit_into_all(name: str) -> int:
            before = len(lines)
            deposits = (Deposit(id=f"{name}-{number}", parts=3) for number in range(len(vaults)))
            await asyncio.gather(*map(deposit, vaults, deposits, [lines.append] * len(vaults)))
            return sum(line.startswith("refused") for line in lines[before:])

        rounds = 0
        while not await deposit_into_all(f"before-{rounds}"):
            rounds += 1
        refused_again = await deposit_into_all("full")
        read_while_full = [(await vault.ask(GetTotal())).version for vault in vaults]
        ballast.unlink()
        refused_with_room = await deposit_into_all("after")
    record = Record()
    record.read("\n".join(lines))
    tell(
        rounds=rounds,
        refused_again=refused_again,
        read_while_full=read_while_full,
        refused_with_room=refused_with_room,
        errors=sorted(set(record.refused.values())),
        unknown=len(record.unknown),
        acknowledged=len(record.acks),
        violations=await asyncio.to_thread(verdict, sqlite_url(path), record),
    )


async def limited(path: Path, *, seconds: float = 0.7) -> None:
    async with ActorSystem(f"sqlite:///{path}", ask_timeout=60) as system:
        vault = system.ref(Vault, "1")
        for number in range(3):
            await deposit(vault, Deposit(id=f"before-{number}"), write)
        # Less than one page of the log takes, even of a new one.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        fault = ""
        try:
            with path.with_name("probe").open("wb", buffering=0) as probe:
                for _ in range(2):
                    probe.write(bytes(4096))
        except OSError as error:
            fault = errno.errorcode[error.errno or 0]
        under_way = asyncio.create_task(deposit(vault, Deposit(id="limited"), write))
        await asyncio.wait([under_way], timeout=seconds)
        was_waiting = not under_way.done()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await under_way
        await deposit(vault, Deposit(id="after"), write)
    tell(fault=fault, was_waiting=was_waiting)


async def limited_long(path: Path) -> None:
    await limited(path, seconds=45)


def tell(**facts: object) -> None:
    print(json.dumps(facts), file=sys.stderr)


if __name__ == "__main__":
    # The errors are expected, and standard error is for the facts.
    logging.disable()
    asyncio.run(globals()[sys.argv[1]](Path(sys.argv[2])))
