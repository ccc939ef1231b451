"""Money moves between accounts while the bank is killed, again and again: it is neither lost nor made.

    python examples/transfers.py
    python examples/transfers.py --store postgresql://me:pw@host/bank    # once `eventstore migrate URL` has been run

A child process moves money between accounts, many transfers at once and in all directions. A transfer is a transaction
over two actors, so both sides of it are stored or neither is, and it has an id, so it is done once however often it
is sent. This process kills the child with SIGKILL while it works, starts it again, and has it send again what had no
reply. In the end it looks at the journal alone: the sum of all balances is what it was when the accounts were opened,
every transfer has two sides, nothing acknowledged is missing, and nothing was done twice.

The store is a temporary SQLite file unless `--store` names another. What is in it from before is left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from bank import Account, Deposit, Withdraw
from demo import kind_of, leave, look_at, money, signed_amount
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actors import ActorSystem, CommandRejected, Transaction
from eventstore import EventStore, EventStoreError, RecordedEvent
from eventstore.backend import EventFilter

KILLS = 4
ACCOUNTS = 100
OPENING_BALANCE = 1_000_00
TRANSFERS_AT_ONCE = 64
SHORTEST_ROUND_SECONDS, LONGEST_ROUND_SECONDS = 0.5, 1.2
PATIENCE_SECONDS = 30
_STORE = "TRANSFERS_STORE"


# What is to be done. It follows from the number of the transfer, so that both processes know it.


class Wish(NamedTuple):
    """One transfer. Its id is made once, and sent with every try."""

    id: str
    giver: str
    taker: str
    cents: int


def wish(run: str, number: int) -> Wish:
    chance = random.Random(f"{run} {number}")
    giver, taker = chance.sample(range(ACCOUNTS), 2)
    return Wish(f"{run}-{number}", key_of(run, giver), key_of(run, taker), chance.randint(1, 400_00))


def key_of(run: str, account: int) -> str:
    return f"{run}-{account:02}"


# The child: a bank at work. It is told by its standard input what to send again, and tells by its standard output
# what it has sent and what came of it.


async def work(store: str, run: str, again: list[int], first_new: int | None) -> None:
    """Send what had no reply, and then new transfers until killed, or none."""
    numbers = chain(again, count(first_new) if first_new is not None else ())
    async with ActorSystem(store) as bank, asyncio.TaskGroup() as tellers:
        await open_accounts(bank, run)
        for _ in range(TRANSFERS_AT_ONCE):
            tellers.create_task(serve(bank, run, numbers))


async def open_accounts(bank: ActorSystem, run: str) -> None:
    """Each child does this, and it is done once: a deposit with an id is answered with what came of it then."""
    for account in range(ACCOUNTS):
        opening = Deposit(amount=OPENING_BALANCE, reference="opening")
        await bank.ref(Account, key_of(run, account)).ask(opening, command_id=f"{run}-opening")


async def serve(bank: ActorSystem, run: str, numbers: Iterator[int]) -> None:
    for number in numbers:
        tell("sent", number)
        tell(await transfer(bank, wish(run, number)), number)


async def transfer(bank: ActorSystem, wish: Wish) -> str:
    """Move money from one account to another: both sides are stored, or neither. Returns what came of it."""
    giver, taker = bank.ref(Account, wish.giver), bank.ref(Account, wish.taker)

    async def move(tx: Transaction) -> bool:
        await tx.ask(giver, Withdraw(amount=wish.cents, reference=wish.id))
        await tx.ask(taker, Deposit(amount=wish.cents, reference=wish.id))
        return tx.is_repeated

    try:
        was_done_before = await bank.transact(move, command_id=wish.id)
    except CommandRejected:
        return "refused"  # The giver has less than that: nothing has happened.
    return "known" if was_done_before else "done"


def tell(what: str, number: int) -> None:
    # A line written by one call arrives whole or not at all.
    os.write(sys.stdout.fileno(), f"{what} {number}\n".encode())


# The parent: kills, and compares.


@dataclass
class Ledger:
    """What the children have told: the numbers of the transfers, by what came of them."""

    sent: set[int] = field(default_factory=set[int])
    done: set[int] = field(default_factory=set[int])
    refused: set[int] = field(default_factory=set[int])
    known: set[int] = field(default_factory=set[int])
    """Those that a child sent again, and that had been stored before the kill."""

    def note(self, line: str) -> None:
        what, number = line.split()
        {"sent": self.sent, "done": self.done, "refused": self.refused, "known": self.known}[what].add(int(number))

    @property
    def acknowledged(self) -> set[int]:
        return self.done | self.known

    @property
    def without_reply(self) -> list[int]:
        return sorted(self.sent - self.acknowledged - self.refused)


class Life(NamedTuple):
    """How one child ended."""

    seconds: float
    exit_code: int

    @property
    def was_killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


def live(store_url: str, run: str, ledger: Ledger, *, is_killed: bool) -> Life:
    """Start a child. Let it work for a random time and kill it, or let it send what had no reply and end."""
    # The URL may hold a password, which anyone could read on the command line.
    command, environment = [sys.executable, __file__, "--work", run], os.environ | {_STORE: store_url}
    first_new = max(ledger.sent, default=-1) + 1 if is_killed else None
    # In a session of its own, so that Ctrl-C comes to this process alone.
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        # A child that hangs would let us wait for its next line for ever.
        watchdog = threading.Timer(PATIENCE_SECONDS, child.kill)
        watchdog.start()
        try:
            child.stdin.write(json.dumps({"again": ledger.without_reply, "first_new": first_new}))
            child.stdin.close()
            line = child.stdout.readline()
            started = time.monotonic()
            end = started + random.uniform(SHORTEST_ROUND_SECONDS, LONGEST_ROUND_SECONDS)
            while line and not (is_killed and time.monotonic() > end):
                ledger.note(line)
                line = child.stdout.readline()
            if is_killed:
                child.kill()
            # What it had told before it died is still in the pipe.
            for rest in chain([line], child.stdout):
                if rest:
                    ledger.note(rest)
            child.wait()
        finally:
            child.kill()
            watchdog.cancel()
    return Life(time.monotonic() - started, child.returncode)


# The check: what the journal says, and no actor.


@dataclass
class Findings:
    """What is in the journal, and what of that is wrong."""

    accounts: int = 0
    transfers: int = 0
    opened_with: int = 0
    balances: int = 0
    missing: set[str] = field(default_factory=set[str])
    """Acknowledged, and not stored."""
    refused_but_stored: set[str] = field(default_factory=set[str])
    one_sided: set[str] = field(default_factory=set[str])
    """Stored, and not as one withdrawal and one deposit of the same amount in one commit."""
    doubled: set[str] = field(default_factory=set[str])

    @property
    def is_sound(self) -> bool:
        is_wrong = self.missing or self.refused_but_stored or self.one_sided or self.doubled
        return not is_wrong and self.accounts == ACCOUNTS and self.balances == self.opened_with


async def sides_of(store: EventStore, run: str) -> dict[str, list[RecordedEvent]]:
    """All that was stored for a run, by correlation id: that of a transfer is its id."""
    found: dict[str, list[RecordedEvent]] = {}
    async for recorded in store.read_all(where=EventFilter(types=("account.deposited", "account.withdrawn"))):
        if recorded.stream_id.startswith(f"{Account.kind}-{run}-"):
            about = recorded.metadata and (recorded.metadata.correlation_id or recorded.metadata.command_id)
            found.setdefault(about or "", []).append(recorded)
    return found


async def compare(store: EventStore, run: str, ledger: Ledger) -> Findings:
    sides = await sides_of(store, run)
    opening = sides.pop(f"{run}-opening", [])
    findings = Findings(accounts=len(opening), transfers=len(sides))
    findings.opened_with = sum(signed_amount(store, recorded) for recorded in opening)
    findings.balances = findings.opened_with
    for about, events in sides.items():
        amounts = sorted(signed_amount(store, recorded) for recorded in events)
        findings.balances += sum(amounts)
        if len(events) > 2:
            findings.doubled.add(about)
        elif len(events) < 2 or sum(amounts) != 0 or events[0].batch_id != events[1].batch_id:
            findings.one_sided.add(about)
    findings.missing = {wish(run, number).id for number in ledger.acknowledged} - sides.keys()
    findings.refused_but_stored = {wish(run, number).id for number in ledger.refused} & sides.keys()
    return findings


async def audit_trail(store: EventStore, run: str, about: str) -> Table:
    """Everything that one transfer has done, by its correlation id."""
    events = (await sides_of(store, run)).get(about, [])
    when = " and ".join(sorted({recorded.recorded_at.strftime("%H:%M:%S.%f")[:-3] for recorded in events}))
    table = Table(title=f"Audit trail of transfer {about}, at {when} UTC", title_justify="left")
    for heading in ("account", "version", "type", "amount", "correlation id"):
        table.add_column(heading, justify="right" if heading in ("version", "amount") else "left")
    for recorded in events:
        amount = money(signed_amount(store, recorded), sign="+")
        table.add_row(recorded.stream_id, str(recorded.version), recorded.type, amount, about)
    return table


def report(findings: Findings, ledger: Ledger) -> Table:
    table = Table(title="What the journal holds", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("accounts", f"{findings.accounts:,}")
    table.add_row("transfers stored, both sides", f"{findings.transfers:,}")
    table.add_row("  stored just before a kill, and known when they came again", f"{len(ledger.known):,}")
    table.add_row("transfers refused, for want of money", f"{len(ledger.refused):,}")
    table.add_row("acknowledged transfers missing", f"{len(findings.missing):,}")
    table.add_row("refused transfers stored", f"{len(findings.refused_but_stored):,}")
    table.add_row("transfers with one side", f"{len(findings.one_sided):,}")
    table.add_row("transfers done twice", f"{len(findings.doubled):,}")
    table.add_row("sum of all balances when the accounts were opened", money(findings.opened_with))
    table.add_row("sum of all balances now", money(findings.balances))
    return table


def main(store_url: str) -> int:
    console = Console()
    run = secrets.token_hex(2)
    console.print(
        Panel(
            f"A child process moves money between {ACCOUNTS} accounts on {kind_of(store_url)}, {TRANSFERS_AT_ONCE} "
            f"transfers at once. It is killed with SIGKILL in the middle of its work, {KILLS} times, and started "
            "again; what had no reply is sent again.",
            title="Transfers in a bank that is killed",
            title_align="left",
        )
    )
    ledger, have_lives_ended_as_they_should = Ledger(), True
    for number in range(1, KILLS + 2):
        is_killed = number <= KILLS
        sent_again, known, done = ledger.without_reply, len(ledger.known), len(ledger.acknowledged)
        with console.status(f"Life {number}: the bank is at work"):
            life = live(store_url, run, ledger, is_killed=is_killed)
        have_lives_ended_as_they_should &= life.was_killed if is_killed else life.exit_code == 0
        again = f"; {len(sent_again)} sent again, {len(ledger.known) - known} of them known" if sent_again else ""
        acknowledged = len(ledger.acknowledged) - done
        console.print(f"Life {number}: {ending(life)} after {life.seconds:.1f} s, {acknowledged:,} acknowledged{again}")
    is_sound = asyncio.run(check(store_url, run, ledger, console))
    has_held = is_sound and have_lives_ended_as_they_should and bool(ledger.acknowledged)
    console.print()
    console.print(
        Text("The sum of all balances is what it was, and every transfer is there once.", "bold green")
        if has_held
        else Text("The check has FAILED.", style="bold red")
    )
    return 0 if has_held else 1


def ending(life: Life) -> str:
    if life.was_killed:
        return "[bold]killed[/bold]"
    return "ended" if life.exit_code == 0 else f"[red]ended by itself with exit code {life.exit_code}[/red]"


async def check(store_url: str, run: str, ledger: Ledger, console: Console) -> bool:
    async with EventStore.open(store_url) as store:
        findings = await compare(store, run, ledger)
        console.print()
        console.print(report(findings, ledger))
        if shown := sorted(ledger.known or ledger.acknowledged):
            console.print()
            console.print(await audit_trail(store, run, wish(run, shown[-1]).id))
    # A reply that never came is none that anybody waits for now.
    return findings.is_sound and not ledger.without_reply


def run_on(store_url: str | None) -> int:
    if store_url is None:
        with tempfile.TemporaryDirectory(prefix="eventstore-transfers-") as folder:
            return main(f"sqlite:///{Path(folder) / 'bank.db'}")
    try:
        asyncio.run(look_at(store_url))
        return main(store_url)
    except EventStoreError as error:
        sys.exit(f"The store failed: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        todo = json.load(sys.stdin)
        asyncio.run(work(os.environ[_STORE], sys.argv[2], todo["again"], todo["first_new"]))
    else:
        parser = argparse.ArgumentParser(description="Kill a bank in the middle of its transfers, and count its money.")
        parser.add_argument("--store", metavar="URL", help="default: a temporary SQLite file")
        signal.signal(signal.SIGTERM, leave)
        try:
            sys.exit(run_on(parser.parse_args().store))
        except KeyboardInterrupt:
            sys.exit(130)
