"""F04, F15: a disk that fails or is full costs no acknowledged deposit, and the store serves again afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from eventstore import EventStore

from .disk import stored
from .journals import sqlite_url, stored_events
from .vault import Receipt, Record
from .verdict import verdict

ROOT = Path(__file__).parents[2]
INJECTED = "EIO (Input/output error) (INJECTED)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that is there already, so that the faults hit the deposits."""
    path = tmp_path / "vaults.db"
    asyncio.run(make(path))
    return path


async def make(path: Path) -> None:
    async with EventStore.open(f"sqlite:///{path}"):
        pass


def run(program: str, path: Path, *around: str) -> tuple[Record, dict[str, Any]]:
    """Run a program of `disk.py`. Returns its record, and the facts that it told."""
    done = subprocess.run(
        [*around, sys.executable, "-W", "error", "-m", "tests.faults.disk", program, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = Record()
    record.read(done.stdout)
    return record, json.loads(done.stderr or "{}")


# Syncing fails


@pytest.mark.parametrize("failing", ["5..5", "5..6", "5..8"])
@pytest.mark.parametrize("program", ["asking", "appending"])
def test_what_could_not_be_synced_is_not_acknowledged_before_it_is(
    path: Path, strace: str, program: str, failing: str
) -> None:
    trace = path.with_suffix(".trace")
    inject = ["-e", "trace=fsync,fdatasync,write", "-e", f"inject=fdatasync:error=EIO:when={failing}"]
    record, _ = run(program, path, strace, "-f", "-o", str(trace), *inject)

    # Served again, with exactly one copy of everything.
    assert verdict(sqlite_url(path), record) == []
    assert len(stored_events(sqlite_url(path))) == len(record.acks) == 8
    first, last = failing.split("..")
    assert trace.read_text().count(INJECTED) == int(last) - int(first) + 1
    assert unsafe_acknowledgements(trace.read_text()) == []


@pytest.mark.parametrize("failing", ["4..4", "6..9"])
def test_the_users_rows_and_the_events_are_stored_together_where_syncs_fail(
    path: Path, strace: str, failing: str
) -> None:
    asyncio.run(make_ledger(path))
    trace = path.with_suffix(".trace")
    inject = ["-e", "trace=fsync,fdatasync,write", "-e", f"inject=fdatasync:error=EIO:when={failing}"]
    record, facts = run("transacting", path, strace, "-f", "-o", str(trace), *inject)

    assert facts["rows"] == facts["events"]
    assert {f"t{number}" for number in facts["rows"]} == set(record.acks)
    # Each was told what became of it: nothing is unknown, and what was refused is not there. The fourth sync is that of
    # the second one's commit.
    assert len(record.acks) + len(record.refused) == 8
    assert failing != "4..4" or set(record.refused) == {"t1"}
    first, last = failing.split("..")
    assert trace.read_text().count(INJECTED) == int(last) - int(first) + 1
    assert unsafe_acknowledgements(trace.read_text()) == []


def test_what_was_refused_does_not_come_back_after_a_crash(path: Path, strace: str) -> None:
    asyncio.run(make_ledger(path))
    inject = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=4..4"]
    command = [strace, "-f", "-o", os.devnull, *inject, sys.executable, "-m", "tests.faults.disk", "refused", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    record = Record()
    record.read(done.stdout)

    assert set(record.refused) == {"t1"}, done.stderr
    assert asyncio.run(ledger(path)) == ([0], [0])


async def ledger(path: Path) -> tuple[list[int], list[int]]:
    async with EventStore.open(f"sqlite:///{path}") as store:
        return await stored(store)


async def make_ledger(path: Path) -> None:
    async with EventStore.open(f"sqlite:///{path}") as store:
        begun = await store.begin_sql(seconds=30)
        await begun.connection.execute(text("CREATE TABLE ledger (n int PRIMARY KEY)"))
        await begun.commit([])


def wait_until_held_up(pid: int) -> None:
    """Wait until strace holds a thread of the program that it traces, for longer than it takes to look at a call."""
    deadline = time.monotonic() + 20
    looks = 0
    while looks < 50:
        assert time.monotonic() < deadline, "nothing is held up"
        looks = looks + 1 if any(state == "t" for state in states_below(pid)) else 0
        time.sleep(0.01)


def states_below(pid: int) -> Iterator[str]:
    """The states of all threads of a process's children."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        for stat in Path(f"/proc/{child}/task").glob("*/stat"):
            yield stat.read_text().rpartition(")")[2].split()[0]


def test_what_a_killed_writer_left_unsynced_is_synced_before_a_reply_rests_on_it(path: Path, strace: str) -> None:
    # The fourth sync is that of the second deposit. It is held up, and the process is killed meanwhile.
    delay = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=20000000:when=4"]
    command = [strace, "-f", "-o", os.devnull, *delay, sys.executable, "-m", "tests.faults.disk", "asking", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        wait_until_held_up(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
    assert [line.split()[:2] for line in lines] == [["intent", "d0"], ["ack", "d0"], ["intent", "d1"]]

    trace = path.with_suffix(".trace")
    record, _ = run("reading", path, strace, "-f", "-o", str(trace), "-e", "trace=fsync,fdatasync,write")

    assert record.acks == {"read": Receipt(2, 2)}, "the second deposit was not written: the fault missed it"
    assert unsafe_acknowledgements(trace.read_text()) == []


def unsafe_acknowledgements(trace: str) -> list[str]:
    """The deposits that were acknowledged when their bytes had not been synced since the last failure."""
    unsafe: list[str] = []
    is_safe = False
    for line in trace.splitlines():
        # A call that another thread interrupted is told in two lines: the second one says how it ended.
        if said := re.search(r"write\(1, \"(intent|ack) (\w+)", line):
            if said[1] == "ack" and not is_safe:
                unsafe.append(said[2])
            is_safe = is_safe and said[1] == "ack"
        elif re.search(r"\b(fdatasync|fsync)(\(| resumed)", line) and "unfinished" not in line:
            is_safe = line.endswith("= 0")
    return unsafe


def test_the_trace_is_read_rightly() -> None:
    good = '1 write(1, "intent a v 1 1\\n", 9) = 9\n2 fdatasync(8) = 0\n1 write(1, "ack a 1 1\\n", 9) = 9\n'
    bad = f'1 write(1, "intent b v 1 1\\n", 9) = 9\n2 fdatasync(8) = -1 {INJECTED}\n1 write(1, "ack b 2 2\\n", 9) = 9\n'
    split = good.replace("2 fdatasync(8) = 0", "2 fdatasync(8 <unfinished ...>\n2 <... fdatasync resumed>) = 0")

    assert unsafe_acknowledgements(good + bad + good) == ["b"]
    assert unsafe_acknowledgements(good + split) == []
    assert unsafe_acknowledgements(good.replace("2 fdatasync(8) = 0\n", "")) == ["a"]


# Writing fails


def test_a_write_error_that_passes_is_waited_for_and_stored_once(path: Path) -> None:
    record, facts = run("limited", path)

    assert facts == {"fault": "EFBIG", "was_waiting": True}
    assert verdict(sqlite_url(path), record) == []
    assert record.acks["limited"] == Receipt(4, 4)
    assert record.acks["after"] == Receipt(5, 5)


@pytest.mark.soak
def test_a_write_error_that_stays_is_an_unknown_outcome_and_the_actor_serves_again(path: Path) -> None:
    record, facts = run("limited_long", path)

    assert facts == {"fault": "EFBIG", "was_waiting": False}
    assert verdict(sqlite_url(path), record) == []
    assert record.unknown == {"limited"}
    assert "after" in record.acks


# No room


def test_a_full_disk_is_a_typed_error_and_when_there_is_room_again_it_serves(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    record, facts = run("filling", small / "vaults.db", *on_a_small_file_system(small))

    assert record == Record()
    assert facts["violations"] == []
    assert facts["errors"] == ["StorageFull"]
    assert facts["unknown"] == 0
    # It was full in the midst of work, it could still be read, and then it could be written again.
    assert facts["rounds"] > 5
    assert facts["refused_again"] == 10
    assert min(facts["read_while_full"]) >= 3 * facts["rounds"]
    assert facts["refused_with_room"] == 0


def on_a_small_file_system(folder: Path) -> list[str]:
    """What to put before a command so that it has a folder of 2 MiB, which nobody else sees and which ends with it."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = f'mount -t tmpfs -o size=2m none "{folder}" && exec "$@"'
    around = ["unshare", *user, "--mount", "--", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    tried = subprocess.run([*around, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    return around
