"""What the command line's tests share: a user's project, a journal in it, and ways to run the program."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from actors import ActorSystem, fold
from eventstore import EventStore, Metadata, NewEvent
from eventstore.cli.app import main
from eventstore.cli.shapes import SHAPES
from eventstore.snapshots import new_snapshot

PROJECT = Path(__file__).parent / "project"
EVIL_ID = "Account-\x1b[31mred\x1b[0m\u202e\r\n\t\\ [bold]x[/bold] é"
EVIL_NOTE = "\x1b]0;title\x07 \x9b31m \u2028 [red]y[/red] \\ é 🙂"


class Result(NamedTuple):
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.split("\n") if line]


Rewrite = Callable[[str], None]
Change = Callable[[Callable[[EventStore], Awaitable[object]]], None]


class Run(Protocol):
    def __call__(self, *arguments: str) -> Result: ...


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in the user's directory, and what they put on the path is taken off again."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "path", [str(PROJECT), *sys.path])
    monkeypatch.delenv("EVENTSTORE_TRACEBACK", raising=False)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in this process."""

    def run(*arguments: str) -> Result:
        code = main(arguments)
        result = Result(int(code), *capsys.readouterr())
        if "--json" in arguments:
            check_shapes(arguments, result)
        return result

    return run


def check_shapes(arguments: tuple[str, ...], result: Result) -> None:
    """What is printed with `--json` is what the reference says."""
    names = (" ".join(arguments[:count]) for count in (3, 2, 1))
    shapes = next((SHAPES[name] for name in names if name in SHAPES), ())
    for found in result.objects if shapes else ():
        assert any(shape.fits(found) for shape in shapes), found


@pytest.fixture
def program() -> Run:
    """Runs the program as a user does, in a process of its own."""

    def run(*arguments: str) -> Result:
        process = start(*arguments)
        out, err = process.communicate(timeout=180)
        return Result(process.returncode, out.decode(), err.decode())

    return run


def command(*arguments: str | bytes) -> list[str | bytes]:
    """The program's command line. With -P, as in a console script, modules of the current directory are not found."""
    return [sys.executable, "-P", "-m", "eventstore.cli", *arguments]


_started: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def start(*arguments: str | bytes, stdout: int = subprocess.PIPE, **environ: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command(*arguments), cwd=PROJECT, env=environment(**environ), stdout=stdout, stderr=subprocess.PIPE
    )
    _started.append(process)
    # A test that waits for output that never comes fails, and does not hang.
    watchdog = threading.Timer(180, process.kill)
    watchdog.daemon = True
    watchdog.start()
    return process


def environment(**more: str) -> dict[str, str]:
    shaping = ("COLUMNS", "NO_COLOR", "FORCE_COLOR", "PYTHONUNBUFFERED", "PYTHONIOENCODING")
    kept = {name: value for name, value in os.environ.items() if name not in shaping}
    return {**kept, "PYTHONWARNINGS": "error", **more}


@pytest.fixture(scope="session")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal for tests that only look at it: see `build`."""
    path = tmp_path_factory.mktemp("cli") / "bank.db"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(PROJECT))
        asyncio.run(build(path))
    return path


@pytest.fixture
def url(journal: Path) -> str:
    return f"sqlite:///{journal}"


@pytest.fixture
def own_journal(journal: Path, tmp_path: Path) -> Path:
    """A copy of the journal that a test may change."""
    return Path(shutil.copy(journal, tmp_path / "own.db"))


@pytest.fixture
def own_url(own_journal: Path) -> str:
    return f"sqlite:///{own_journal}"


@pytest.fixture
def change(own_url: str) -> Change:
    """Does something to the copy with the store's own methods."""

    def apply(work: Callable[[EventStore], Awaitable[object]]) -> None:
        async def changed() -> None:
            async with EventStore.open(own_url) as store:
                await work(store)

        asyncio.run(changed())

    return apply


@pytest.fixture
def rewrite(own_journal: Path) -> Rewrite:
    """Changes events of the copy, which the journal itself refuses."""

    def apply(update: str) -> None:
        with closing(sqlite3.connect(own_journal)) as connection:
            name = "journal_events_no_update"
            (trigger,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
            connection.execute(f"DROP TRIGGER {name}")
            connection.execute(f"UPDATE journal_events SET {update}")
            connection.execute(trigger)
            connection.commit()

    return apply


async def build(path: Path) -> None:
    """Alice has 5 events and snapshots at 2 and 4, Carol lost her first 3 of 5, and some names are hostile."""
    from cli_ledger import Account, Deposit, Deposited  # type: ignore[import-not-found]

    async with ActorSystem(f"sqlite:///{path}") as system:
        for name in ("alice", "carol"):
            account = system.ref(Account, name)
            for amount in (10, 20, 30, 40, 50):
                await account.ask(Deposit(amount=amount))
    async with EventStore.open(f"sqlite:///{path}") as store:

        async def save(key: str, version: int) -> None:
            data = Account.state_type.dump((await fold(store, Account, key, through=version)).state)
            fingerprint = Account.state_type.fingerprint
            await store.save_snapshot(new_snapshot(f"Account-{key}", version, fingerprint, data))

        for key in ("alice", "carol"):
            await save(key, 2)
            await save(key, 4)
        await store.truncate("Account-carol", 3, reason="test")
        noted = NewEvent(
            Deposited(amount=1, note=EVIL_NOTE),
            metadata=Metadata(user=f"ann {EVIL_NOTE}", tags=("odd",), values={EVIL_NOTE: 1}),
        )
        await store.append(EVIL_ID, [noted])
        await store.append("Account-huge", [Deposited(amount=12345678901234567890123, note="x" * 500)])
        await store.append("Note-1", [NewEvent(Deposited(amount=7), metadata=Metadata(tags=("odd", "small")))])
        await save("huge", 1)
