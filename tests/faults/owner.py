"""A process that wants vaults for itself: it deposits into those that it owns, and keeps asking for the others.

    python -m tests.faults.owner URL RECORD NAME LEASE HOLD BUILD KEY…

It says when it is ready, begins when it gets a line, and ends in good order when it gets another. Of each three
vaults the first is busy. Into the second it deposits only HOLD seconds after it got hold of it: until then nothing but
the epoch keeps an earlier owner from writing there. With the third it seldom does anything, so that an earlier owner
comes back to it only when its own lease runs again. SIGUSR1 makes a handler of its first vault sleep for three leases;
SIGUSR2 does so without letting any other thread run.

Every line of its record begins with the time by the monotonic clock, which is the same for all processes. Besides those
of `vault.py`, there are

    read STREAM BEGAN VERSION    a read that was begun at a time, and answered
    told STREAM ERROR            one that was refused
    took STREAM BEGAN VERSION    it was answered, and the one before was not
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import count, cycle
from typing import Any

from actors import ActorRef, ActorSystem, AskTimeout, OwnedElsewhere, command_handler
from actors.lease_keeper import LeaseKeeper
from actors.ownership import Ownership
from eventstore import BackendUnavailable, ConcurrencyError, EventStore, FencedError, OutcomeUnknown
from eventstore.backend import AppendOutcome, Batch
from tests.faults.broken import Wrapped, opened_with
from tests.faults.vault import Deposit, GetTotal, Receipt, Vault, Write, parts_of, writer_to

BLOCKED_LEASES = 3.0
HESITATION_SECONDS = 0.015
_PAUSE_SECONDS = 0.02
_READS_TO_A_DEPOSIT = 2


class BlockingDeposit(Deposit):
    """One whose handler keeps the event loop busy first, or, with `alone`, every thread."""

    seconds: float
    alone: bool


class OwnedVault(Vault, kind="vault"):
    @command_handler
    def block(self, command: BlockingDeposit) -> Receipt:
        if command.alone:
            # Through PyDLL the interpreter's lock is kept.
            ctypes.PyDLL(None).usleep(int(command.seconds * 1_000_000))
        else:
            time.sleep(command.seconds)
        self.persist(*parts_of(command))
        return Receipt(self.version, self.state.total)


# Builds.


class Hesitating(Wrapped):
    """Waits before each append, so that whoever is stopped at any moment is stopped with appends on their way."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        await asyncio.sleep(HESITATION_SECONDS)
        return await self._backend.append(batches)


class Unfenced(Hesitating):
    """Does not tell the store which epoch it holds."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        return await super().store([[write._replace(epoch=None) for write in batch] for batch in batches])


def _never_lapse() -> None:
    """Once owned, always owned: nothing looks at the clock."""
    Ownership.holds = lambda self, lease: True  # type: ignore[method-assign]


def _renew_in_the_loop() -> None:
    """The lease is renewed in the event loop's own turns, as a task of it would."""
    renew = LeaseKeeper._renew

    async def _renew(keeper: LeaseKeeper) -> float:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), keeper._loop))
        return await renew(keeper)

    LeaseKeeper._renew = _renew  # type: ignore[method-assign]


def build(name: str, url: str) -> EventStore:
    match name:
        case "honest":
            pass
        case "unfenced":
            return opened_with(Unfenced, url)
        case "never lapsing":
            _never_lapse()
        case "renewing in the loop":
            _renew_in_the_loop()
        case _:
            raise ValueError(f"there is no build {name!r}")
    return opened_with(Hesitating, url)


class Keeper:
    """What one process does with one vault, with pauses in between."""

    def __init__(
        self, vault: ActorRef[OwnedVault], name: str, write: Write, *, hold: float = 0.0, pause: float = _PAUSE_SECONDS
    ) -> None:
        self.vault = vault
        self._pause_seconds = pause
        self._name = f"{name}/{vault.stream_id.removeprefix('vault-')}"
        self._hold = hold
        self._write = write
        self._numbers = count()
        self._owned_since: float | None = None

    async def read(self) -> None:
        """Ask what is in it, which takes it over when nobody has it."""
        began = time.monotonic()
        stream_id = self.vault.stream_id
        try:
            receipt = await self.vault.ask(GetTotal())
        except (OwnedElsewhere, FencedError, BackendUnavailable, ConcurrencyError, AskTimeout) as error:
            self._owned_since = None
            self._write(f"told {stream_id} {type(error).__name__}")
        else:
            self._write(f"read {stream_id} {began:.6f} {receipt.version}")
            if self._owned_since is None:
                self._owned_since = time.monotonic()
                self._write(f"took {stream_id} {began:.6f} {receipt.version}")
        await self._pause()

    async def deposit(self) -> None:
        if self._owned_since is None or time.monotonic() < self._owned_since + self._hold:
            await asyncio.sleep(_PAUSE_SECONDS)
            return
        number = next(self._numbers)
        await self.ask(Deposit(id=f"{self._name}/{number}", parts=3 if number % 5 == 0 else 1, amount=number % 9 + 1))
        # Without a pause every read would wait for an append, and none be answered from memory.
        for _ in range(_READS_TO_A_DEPOSIT):
            await self._pause()

    async def block(self, seconds: float, *, alone: bool) -> None:
        await self.ask(BlockingDeposit(id=f"{self._name}/block{next(self._numbers)}", seconds=seconds, alone=alone))

    async def _pause(self) -> None:
        # In short ones: one that was over while the process was stopped is over at once when it goes on.
        for _ in range(max(1, round(self._pause_seconds / _PAUSE_SECONDS))):
            await asyncio.sleep(_PAUSE_SECONDS)

    async def ask(self, command: Deposit) -> None:
        self._write(f"intent {command.id} {self.vault.stream_id} {command.parts} {command.amount}")
        try:
            receipt = await self.vault.ask(command)
        except (OutcomeUnknown, AskTimeout):
            self._write(f"unknown {command.id}")
        except (OwnedElsewhere, FencedError, BackendUnavailable, ConcurrencyError) as error:
            self._owned_since = None
            self._write(f"refused {command.id} {type(error).__name__}")
        else:
            self._write(f"ack {command.id} {receipt.version} {receipt.total}")


async def main(record: str, name: str, lease: float, hold: float, store: EventStore, keys: list[str]) -> None:
    write_line = writer_to(os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))

    def write(line: str) -> None:
        write_line(f"{time.monotonic():.6f} {line}")

    loop = asyncio.get_running_loop()
    is_over = asyncio.Event()
    async with (
        store,
        ActorSystem(store, ownership="exclusive", lease_seconds=lease, name=name, ask_timeout=10.0) as system,
    ):
        print("ready", flush=True)
        sys.stdin.readline()
        loop.add_reader(sys.stdin, is_over.set)
        kinds = cycle(({}, {"hold": hold}, {"pause": lease / 3}))
        keepers = [Keeper(system.ref(OwnedVault, key), name, write, **next(kinds)) for key in keys]

        async def repeat(work: Any) -> None:
            while not is_over.is_set():
                await work()

        async with asyncio.TaskGroup() as tasks:
            for keeper in keepers:
                tasks.create_task(repeat(keeper.read))
                tasks.create_task(repeat(keeper.deposit))

            def block(alone: bool) -> None:
                tasks.create_task(keepers[0].block(BLOCKED_LEASES * lease, alone=alone))

            loop.add_signal_handler(signal.SIGUSR1, block, False)
            loop.add_signal_handler(signal.SIGUSR2, block, True)
            await is_over.wait()
        loop.remove_reader(sys.stdin)


if __name__ == "__main__":
    url, record, name, lease, hold, build_name, *keys = sys.argv[1:]
    # Faults are expected, and the record has what came of them.
    logging.disable()
    asyncio.run(main(record, name, float(lease), float(hold), build(build_name, url), keys))
