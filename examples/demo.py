"""What is acknowledged is there: a bank is killed in the middle of its work, again and again, and nothing is lost.

    make demo
    python examples/demo.py --store postgresql://me:pw@host/bank    # once `eventstore migrate URL` has been run

A child process moves money on many accounts at once and reports every deposit that the bank has acknowledged. This
process kills it with SIGKILL while it works, starts it again on the same store, and in the end compares what was
acknowledged with what the journal holds: every acknowledged deposit must be there, and none of them twice.

The store is a temporary SQLite file unless `--store` names another. What is in it from before is left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NoReturn

from bank import Account, Deposit, Deposited, Withdraw, Withdrawn
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actors import ActorRef, ActorSystem, CommandRejected
from eventstore import EventStore, EventStoreError, RecordedEvent
from eventstore.backend import EventFilter
from eventstore.url import parse_store_url

ROUNDS = 5
ACCOUNTS = 50
TELLERS_PER_ACCOUNT = 2
SHORTEST_ROUND_SECONDS, LONGEST_ROUND_SECONDS = 0.5, 1.5
PATIENCE_SECONDS = 20
SHOWN_EVENTS = 12
_STORE = "DEMO_STORE"
ACCOUNT_SHOWN = "7"


# The child: a bank at work. Its standard output is the pipe to the parent.


async def work(store: str, round_name: str) -> None:
    """Serve all accounts until killed."""
    async with ActorSystem(store) as bank, asyncio.TaskGroup() as tellers:
        for number in range(ACCOUNTS):
            for teller in range(TELLERS_PER_ACCOUNT):
                tellers.create_task(serve(bank.ref(Account, str(number)), f"{round_name}-{number}-{teller}"))


async def serve(account: ActorRef[Account], name: str) -> NoReturn:
    """Deposit and withdraw, one after the other, for ever."""
    for number in count():
        # The number on the deposit slip is what the check goes by. It is an ordinary field of the event.
        reference = f"{name}-{number}"
        await account.ask(Deposit(amount=random.randint(1, 100_00), reference=reference))
        # Only now, with the answer in hand, is it reported. A line written by one call arrives whole or not at all.
        os.write(sys.stdout.fileno(), f"{reference}\n".encode())
        try:
            await account.ask(Withdraw(amount=random.randint(1, 300_00), reference=f"slip {reference}"))
        except CommandRejected:
            pass  # The account has less than that: nothing has happened.
    raise AssertionError("the count has no end")


# The parent: kills, and compares.


@dataclass
class Round:
    """What one life of the child came to."""

    acknowledged: list[str]
    seconds: float
    exit_code: int

    @property
    def was_killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


@dataclass
class Findings:
    """Acknowledged deposits against stored ones."""

    acknowledged: int = 0
    stored: int = 0
    events: int = 0
    lost: set[str] = field(default_factory=set[str])
    doubled: set[str] = field(default_factory=set[str])


def run_and_kill(store_url: str, round_name: str) -> Round:
    """Start the child, let it work for a random time, and kill it."""
    # The URL may hold a password, which anyone could read on the command line.
    command, environment = [sys.executable, __file__, "--work", round_name], os.environ | {_STORE: store_url}
    acknowledged: list[str] = []
    # In a session of its own, so that Ctrl-C comes to this process alone.
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
        assert child.stdout is not None
        # A child that hangs would let us wait for its next line for ever.
        watchdog = threading.Timer(PATIENCE_SECONDS, child.kill)
        watchdog.start()
        try:
            line = child.stdout.readline()
            started = time.monotonic()
            end = started + random.uniform(SHORTEST_ROUND_SECONDS, LONGEST_ROUND_SECONDS)
            while line and time.monotonic() < end:
                acknowledged.append(line.strip())
                line = child.stdout.readline()
        finally:
            child.kill()
            watchdog.cancel()
        seconds = time.monotonic() - started
        # What it had reported before it died is still in the pipe.
        acknowledged.extend(rest.strip() for rest in [line, *child.stdout] if rest)
    return Round(acknowledged, seconds, child.returncode)


async def deposits(store: EventStore, run: str) -> AsyncIterator[Deposited]:
    """Every deposit of a run in the journal. No actor is involved: this is what the database says."""
    async for recorded in store.read_all(where=EventFilter(types=("account.deposited",))):
        event = store.decode(recorded)
        assert isinstance(event, Deposited)
        if event.reference.startswith(run):
            yield event


async def compare(store: EventStore, acknowledged: set[str], *, run: str = "") -> Findings:
    stored = Counter([deposit.reference async for deposit in deposits(store, run)])
    return Findings(
        acknowledged=len(acknowledged),
        stored=stored.total(),
        events=(await store.statistics()).events,
        lost=acknowledged - stored.keys(),
        doubled={reference for reference, times in stored.items() if times > 1},
    )


async def audit_trail(store: EventStore, stream_id: str) -> Table:
    """The newest events of one account. The balance is not stored anywhere: it is the sum of what happened."""
    table = Table(title=f"Audit trail of {stream_id}, newest {SHOWN_EVENTS} events", title_justify="left")
    for heading in ("time (UTC)", "version", "type", "amount", "balance"):
        table.add_column(heading, justify="right" if heading in ("version", "amount", "balance") else "left")
    version, balance = await store.version(stream_id), 0
    async for recorded in store.read(stream_id):
        amount = signed_amount(store, recorded)
        balance += amount
        if recorded.version > version - SHOWN_EVENTS:
            when = recorded.recorded_at.strftime("%H:%M:%S.%f")[:-3]
            table.add_row(when, str(recorded.version), recorded.type, money(amount, sign="+"), money(balance))
    return table


def signed_amount(store: EventStore, recorded: RecordedEvent) -> int:
    match store.decode(recorded):
        case Deposited(amount=amount):
            return amount
        case Withdrawn(amount=amount):
            return -amount
        case other:
            raise AssertionError(f"an account has no {other!r}")


def money(cents: int, *, sign: str = "-") -> str:
    return f"{cents / 100:{sign},.2f}"


def main(store_url: str) -> int:
    console = Console()
    # Deposits are told from those of earlier runs by it.
    run = secrets.token_hex(4)
    console.print(
        Panel(
            f"A child process serves {ACCOUNTS} accounts at once on {kind_of(store_url)}. It is killed with SIGKILL in "
            f"the middle of its work, {ROUNDS} times, and started again on the same one.",
            title="A bank that is killed",
            title_align="left",
        )
    )
    acknowledged: set[str] = set()
    have_rounds_worked = True
    for number in range(1, ROUNDS + 1):
        with console.status(f"Round {number}: the bank is at work"):
            round_ = run_and_kill(store_url, f"{run}-{number}")
        acknowledged.update(round_.acknowledged)
        have_rounds_worked &= round_.was_killed and bool(round_.acknowledged)
        ending = "killed" if round_.was_killed else f"[red]ended by itself with exit code {round_.exit_code}[/red]"
        console.print(
            f"Round {number}: [bold]{ending}[/bold] after {round_.seconds:.1f} s, "
            f"{len(round_.acknowledged):,} deposits acknowledged"
        )

    has_held = asyncio.run(check(store_url, acknowledged, run, console)) and have_rounds_worked
    console.print()
    console.print(
        Text("Every acknowledged deposit is there, and none is there twice.", style="bold green")
        if has_held
        else Text("The check has FAILED.", style="bold red")
    )
    return 0 if has_held else 1


def kind_of(store_url: str) -> str:
    kinds = {"sqlite": "one SQLite file", "postgresql": "one Postgres database", "redis": "one Redis"}
    return kinds.get(parse_store_url(store_url).scheme, "one store")


async def check(store_url: str, acknowledged: set[str], run: str, console: Console) -> bool:
    async with EventStore.open(store_url) as store:
        findings = await compare(store, acknowledged, run=run)
        console.print()
        console.print(report(findings))
        console.print()
        console.print(await audit_trail(store, f"{Account.kind}-{ACCOUNT_SHOWN}"))
    return not findings.lost and not findings.doubled


def report(findings: Findings) -> Table:
    table = Table(title="What the journal holds", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    unreported = findings.stored - findings.acknowledged + len(findings.lost)
    table.add_row("events", f"{findings.events:,}")
    table.add_row("deposits acknowledged before a kill", f"{findings.acknowledged:,}")
    table.add_row("deposits stored", f"{findings.stored:,}")
    table.add_row("  stored just before a kill, too late to be acknowledged", f"{unreported:,}")
    table.add_row("acknowledged deposits lost", f"{len(findings.lost):,}")
    table.add_row("deposits stored twice", f"{len(findings.doubled):,}")
    return table


def leave(signum: int, _frame: object) -> NoReturn:
    """To be terminated is to leave as well: the temporary files must not stay behind."""
    sys.exit(128 + signum)


async def look_at(store_url: str) -> None:
    """Open the store once, so that what is wrong with it is said here and not by a child."""
    async with EventStore.open(store_url):
        pass


def demonstrate(store_url: str | None) -> int:
    if store_url is None:
        with tempfile.TemporaryDirectory(prefix="eventstore-demo-") as folder:
            return main(f"sqlite:///{Path(folder) / 'bank.db'}")
    try:
        asyncio.run(look_at(store_url))
        return main(store_url)
    except EventStoreError as error:
        sys.exit(f"The store failed: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        asyncio.run(work(os.environ[_STORE], sys.argv[2]))
    else:
        parser = argparse.ArgumentParser(description="Kill a bank in the middle of its work, and look what is lost.")
        parser.add_argument("--store", metavar="URL", help="default: a temporary SQLite file")
        signal.signal(signal.SIGTERM, leave)
        try:
            sys.exit(demonstrate(parser.parse_args().store))
        except KeyboardInterrupt:
            sys.exit(130)
