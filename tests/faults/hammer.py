"""One of several processes that use the same vaults at the same time, with command ids and without.

    python -m tests.faults.hammer URL RECORD NAME ROUNDS BUILD KEY…

At each vault it sends three sorts of commands at once: those that all processes send, under the same ids; its own, with
ids; and deposits without any. It says when it is ready, begins when it gets a line, and says in the end how often it
was overtaken by another process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from actors import ActorSystem
from eventstore import ConcurrencyError, EventStore
from eventstore.backend import Appended, AppendOutcome, Batch, Expected
from tests.faults.broken import Wrapped, opened_with
from tests.faults.resending import RememberingVault, ask, ask_without_id, command_of, kind_of, send_until_answered
from tests.faults.vault import Deposit, writer_to
from tests.faults.vault import deposit as deposit_without_id


class Counting(Wrapped):
    """Counts the appends that another process was faster than."""

    overtaken = 0

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        outcomes = await self._backend.append(batches)
        Counting.overtaken += sum(isinstance(outcome, ConcurrencyError) for outcome in outcomes)
        return outcomes


class Unchecked(Counting):
    """Stores what was decided on a state that others have moved on, and says that nobody had."""

    async def store(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        unchecked = [[write._replace(expected=Expected.ANY) for write in batch] for batch in batches]
        outcomes = await super().store(unchecked)
        return [
            outcome._replace(versions=tuple(write.expected + len(write.events) for write in batch))
            if isinstance(outcome, Appended)
            else outcome
            for batch, outcome in zip(batches, outcomes, strict=True)
        ]


async def main(record: str, name: str, rounds: int, store: EventStore, build: str, keys: list[str]) -> None:
    write = writer_to(os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    ask_once = ask_without_id if build == "forgetting ids" else ask
    async with store, ActorSystem(store) as system:
        print("ready", flush=True)
        sys.stdin.readline()

        async def send(key: str, prefix: str) -> None:
            for number in range(rounds):
                id_ = f"{prefix}/{key}/{number}/{kind_of(number)}"
                await send_until_answered(system.ref(RememberingVault, key), id_, write, ask_once)

        async def deposit(key: str) -> None:
            for number in range(rounds):
                id_ = f"{name}/{key}/{number}/no-id"
                command = command_of(id_)
                assert isinstance(command, Deposit)
                await deposit_without_id(system.ref(RememberingVault, key), command, write)

        async with asyncio.TaskGroup() as tasks:
            for key in keys:
                tasks.create_task(send(key, "all"))
                tasks.create_task(send(key, name))
                tasks.create_task(deposit(key))
    print(Counting.overtaken)


if __name__ == "__main__":
    url, record, name, rounds, build, *keys = sys.argv[1:]
    # Conflicts are expected, and the record has what came of them.
    logging.disable()
    opened = opened_with(Unchecked if build == "unchecked" else Counting, url)
    asyncio.run(main(record, name, int(rounds), opened, build, keys))
