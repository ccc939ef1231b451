"""F34: SQLite's files are damaged, cut off or gone. A page that is not what SQLite wrote is a typed error, and no part
of a history is given for the whole. What SQLite cannot see is said here too: a log that is gone, or cut off, takes the
newest commits with it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors import ActorSystem, fold
from backends.sqlite_reading import SQLiteReader
from eventstore import EventStore, EventStoreError, JournalCorrupt, SchemaMissing
from eventstore.backend import NO_EVENTS, Load, Loaded
from tests.faults.journals import sqlite_url, stored_events
from tests.faults.vault import Deposit, Vault

ROOT = Path(__file__).parents[2]
PAGE = 4096
KEYS = ("a", "b", "c")
DEPOSITS = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A journal's file, with all of its log written back."""
    path = tmp_path_factory.mktemp("whole") / "vaults.db"
    asyncio.run(deposit(path))
    assert path.with_name("vaults.db-wal").exists() is False
    return path.read_bytes()


async def deposit(path: Path) -> None:
    async with ActorSystem(sqlite_url(path)) as system:
        for number in range(DEPOSITS):
            command = Deposit(id=f"{number}-{'x' * 100}", amount=number)
            id_ = f"c{number}" if number % 3 == 0 else None
            await asyncio.gather(*(system.ref(Vault, key).ask(command, command_id=id_) for key in KEYS))


async def look(path: Path) -> dict[str, Any]:
    """All states and the length of the log; where it cannot be read, the error."""
    seen: dict[str, Any] = {}
    try:
        async with EventStore.open(sqlite_url(path), create=False) as store:
            for key in KEYS:
                for use_snapshots in (True, False):
                    try:
                        folded = await fold(store, Vault, key, use_snapshots=use_snapshots)
                        seen[f"{key}, {use_snapshots}"] = (folded.version, folded.state.total)
                    except EventStoreError as error:
                        seen[f"{key}, {use_snapshots}"] = error
            try:
                seen["log"] = len([recorded async for recorded in store.read_all()])
            except EventStoreError as error:
                seen["log"] = error
    except EventStoreError as error:
        seen["open"] = error
    return seen


WHOLE = {
    **{f"{key}, {way}": (DEPOSITS, sum(range(DEPOSITS))) for key in KEYS for way in (True, False)},
    "log": DEPOSITS * len(KEYS),
}


def partly(seen: dict[str, Any]) -> dict[str, Any]:
    """What was given for the whole, and is not."""
    return {way: f for way, f in seen.items() if not isinstance(f, EventStoreError) and f != WHOLE[way]}


def damages(whole: bytes) -> dict[str, bytes]:
    """The file with each of its pages replaced, and cut off at each of them."""
    chance = random.Random(1)
    found: dict[str, bytes] = {}
    for number, start in enumerate(range(0, len(whole), PAGE), start=1):
        before, page, behind = whole[:start], whole[start : start + PAGE], whole[start + PAGE :]
        kinds = {"zeros": bytes(PAGE), "noise": chance.randbytes(PAGE), "moved by a byte": page[1:] + b"\0"}
        found |= {f"page {number} {name}": before + other + behind for name, other in kinds.items()}
        found[f"cut off at page {number}"] = before
        found[f"cut off in page {number}"] = whole[: start + PAGE // 2]
    return found


def assert_nothing_is_given_for_the_whole(path: Path, whole: bytes) -> None:
    noticed = 0
    for name, data in damages(whole).items():
        for file in path.parent.glob("vaults.db*"):
            file.unlink()
        path.write_bytes(data)
        seen = asyncio.run(look(path))
        assert partly(seen) == {}, name
        noticed += any(isinstance(found, EventStoreError) for found in seen.values())
    # Pages of what was not looked at, outcomes of commands and free ones, may be anything.
    assert noticed > len(damages(whole)) / 2


def test_a_damaged_page_or_a_file_that_is_cut_off_is_an_error(tmp_path: Path, whole: bytes) -> None:
    assert_nothing_is_given_for_the_whole(tmp_path / "vaults.db", whole)


def test_a_reader_that_takes_errors_for_the_end_is_found_guilty(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SQLiteReader.load

    async def forgiving(self: SQLiteReader, loads: list[Load]) -> list[Loaded | JournalCorrupt]:
        try:
            return list(await honest(self, loads))
        except JournalCorrupt:
            return [Loaded(None, NO_EVENTS, 0, 0) for _ in loads]

    monkeypatch.setattr(SQLiteReader, "load", forgiving)
    with pytest.raises(AssertionError, match="page"):
        assert_nothing_is_given_for_the_whole(tmp_path / "vaults.db", whole)


# What a killed process leaves: a file, and a log with the newest commits

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.faults.test_damaged_files import deposit
async def main():
    task = asyncio.ensure_future(deposit(Path(sys.argv[1])))
    from backends.sqlite_writer import SQLiteWriter
    SQLiteWriter.close = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    await task
asyncio.run(main())
"""


@pytest.fixture
def killed(killed_once: Path, tmp_path: Path) -> Path:
    """The path of a journal whose process was killed when it had stored everything."""
    for file in (killed_once, log_of(killed_once)):
        shutil.copy(file, tmp_path)
    return tmp_path / killed_once.name


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "vaults.db"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, timeout=180, check=False)
    assert done.returncode == -signal.SIGKILL
    assert log_of(path).stat().st_size > 10 * PAGE, "nothing was left in the log"
    return path


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def test_the_log_of_a_killed_process_holds_what_was_acknowledged(killed: Path) -> None:
    assert asyncio.run(look(killed)) == WHOLE


def test_the_index_to_the_log_may_be_gone_or_noise(killed: Path) -> None:
    index = killed.with_name(f"{killed.name}-shm")
    index.write_bytes(random.Random(1).randbytes(32768))
    assert asyncio.run(look(killed)) == WHOLE
    index.unlink(missing_ok=True)
    assert asyncio.run(look(killed)) == WHOLE


def cut_off(log: Path) -> None:
    os.truncate(log, log.stat().st_size // 2)


def noise_within(log: Path) -> None:
    middle = log.stat().st_size // 2
    data = log.read_bytes()
    log.write_bytes(data[:middle] + random.Random(1).randbytes(PAGE) + data[middle + PAGE :])


@pytest.mark.parametrize("damage", [cut_off, noise_within])
def test_a_log_that_is_damaged_loses_the_newest_commits_and_nobody_is_told(
    killed: Path, damage: Callable[[Path], None]
) -> None:
    damage(log_of(killed))
    seen = asyncio.run(look(killed))
    events = stored_events(sqlite_url(killed))

    # Not promised: SQLite takes the damage for the end of the log, as after a loss of power.
    assert not any(isinstance(found, EventStoreError) for found in seen.values())
    assert 0 < len(events) < WHOLE["log"]
    # What is left is a history that there was.
    for key in KEYS:
        history = [event for event in events if event.stream_id == f"vault-{key}"]
        assert [event.version for event in history] == list(range(1, len(history) + 1))
        assert [event.amount for event in history] == list(range(len(history)))
        assert seen[f"{key}, False"] == (len(history), sum(range(len(history))))


def test_a_log_that_is_gone_loses_what_was_not_written_back_and_nobody_is_told(killed: Path) -> None:
    log_of(killed).unlink()
    # Not promised either. Even the tables may be in the log still.
    seen = asyncio.run(look(killed))

    assert seen.get("log", 0) != WHOLE["log"]
    for found in seen.values():
        if isinstance(found, tuple):
            version, total = found
            assert total == sum(range(version))


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "empty"])
def test_a_log_whose_file_is_gone_or_empty_is_kept_and_no_new_journal_is_made(killed: Path, is_gone: bool) -> None:
    whole = killed.read_bytes()
    log = log_of(killed).read_bytes()
    killed.unlink()
    if not is_gone:
        killed.touch()

    async def open_it() -> None:
        async with EventStore.open(sqlite_url(killed)):
            pass

    with pytest.raises(JournalCorrupt, match=r"vaults\.db is (gone|empty), and its log vaults\.db-wal is not"):
        asyncio.run(open_it())
    assert log_of(killed).read_bytes() == log
    # As the error says: with the file back, everything is there.
    killed.write_bytes(whole)
    assert asyncio.run(look(killed)) == WHOLE


def test_an_empty_file_without_a_log_is_a_new_journal_unless_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vaults.db"
    path.touch()
    seen = asyncio.run(look(path))
    assert isinstance(seen["open"], SchemaMissing)
    assert path.stat().st_size == 0

    async def make() -> None:
        async with EventStore.open(sqlite_url(path)):
            pass

    asyncio.run(make())
    assert stored_events(sqlite_url(path)) == []
