"""Asking again: deposits that are sent under an id until they are answered, and what was said meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple, NoReturn

from actors import ActorRef, ActorSystem, AskTimeout, MailboxFull
from eventstore import BackendUnavailable, ConcurrencyError, OutcomeUnknown
from tests.faults.vault import Deposit, Receipt, Record, Vault, Write, deposit

WITHOUT_ID = "no-id"


class Try(NamedTuple):
    """One ask that was not answered with a receipt: for what, when it began, how long it took, and the error's name."""

    id: str
    began: float
    seconds: float
    error: str


@dataclass
class Asking:
    """How to ask, and what came of it: `ids` of what was asked for, every try that failed, when there was a receipt."""

    timeout: float | None = None
    pause: float = 0.005
    ids: set[str] = field(default_factory=set[str])
    tries: list[Try] = field(default_factory=list[Try])
    answered: dict[str, float] = field(default_factory=dict[str, float])
    lines: list[str] = field(default_factory=list[str])

    async def deposit(self, vault: ActorRef[Vault], command: Deposit, write: Write | None = None) -> Receipt:
        """Ask until there is an answer."""
        write = write or self.lines.append
        self.ids.add(command.id)
        write(f"intent {command.id} {vault.stream_id} {command.parts} {command.amount}")
        while True:
            began = time.monotonic()
            try:
                receipt = await vault.ask(command, command_id=command.id, timeout=self.timeout)
            except (OutcomeUnknown, AskTimeout, BackendUnavailable, ConcurrencyError, MailboxFull) as error:
                if isinstance(error, OutcomeUnknown) and error.command_id != command.id:
                    raise AssertionError(f"it names {error.command_id!r} instead of {command.id!r}") from error
                self.tries.append(Try(command.id, began, time.monotonic() - began, type(error).__name__))
                # Whoever is refused at once would else ask as fast as the processor goes.
                await asyncio.sleep(self.pause * random.uniform(0.5, 1.5))
            else:
                write(f"ack {command.id} {receipt.version} {receipt.total}")
                self.answered[command.id] = time.monotonic()
                return receipt

    async def keep_depositing(self, system: ActorSystem, keys: Sequence[str]) -> NoReturn:
        """Deposit into vaults for ever: at each of them two who ask again with an id, and one who has none."""

        async def teller(vault: ActorRef[Vault], name: str) -> None:
            for number in count():
                command = Deposit(id=f"{name}/{number}", parts=random.choice((1, 1, 1, 3)), amount=random.randint(1, 9))
                if WITHOUT_ID in name:
                    await deposit(vault, command, self.lines.append)
                else:
                    await self.deposit(vault, command)

        async with asyncio.TaskGroup() as tellers:
            for key in keys:
                for name in ("one", "two", WITHOUT_ID):
                    tellers.create_task(teller(system.ref(Vault, key), f"{key}/{name}"))
        raise AssertionError("the tellers have stopped")

    @property
    def acknowledged(self) -> int:
        return len(self.answered)

    @property
    def errors(self) -> Counter[str]:
        return Counter(each.error for each in self.tries)

    def record(self) -> Record:
        record = Record()
        record.read("\n".join(self.lines))
        return record
