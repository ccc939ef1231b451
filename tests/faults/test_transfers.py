"""Transfers between actors, from several processes and under a storm of kills: both sides or none, and none twice."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from backends.conformance.cases import case
from tests.faults.journals import stored_events
from tests.faults.stores import KINDS, MakeStore, assert_together, new_folder, new_store
from tests.faults.transfer_cycles import Counts
from tests.faults.transferring import KEYS, Answers, verdict_on_transfers

ROOT = Path(__file__).parents[2]
PROCESSES = ("one", "two", "three")
SHORT_TRANSFERS = 150
LONG_TRANSFERS = 1_000
SHORT_CYCLES = 16
LONG_CYCLES = 5_000
CYCLES_TO_A_STORE = 100


@pytest.fixture(params=KINDS)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return lambda: new_store(request.param, request, tmp_path)


@pytest.fixture
def url(make_store: MakeStore) -> Iterator[str]:
    with make_store() as url:
        yield url


# Several processes


def transfer(url: str, folder: Path, count: int, build: str = "honest") -> tuple[Counter[str], Answers]:
    """Let all processes begin at once, and wait for their end. Returns how often each was overtaken, and what they
    said."""
    with ExitStack() as stack:
        processes: dict[str, subprocess.Popen[str]] = {}
        for name in PROCESSES:
            arguments = [url, str(folder / f"{name}.record"), name, str(count // len(PROCESSES)), build]
            command = [sys.executable, "-W", "error", "-m", "tests.faults.transferring", *arguments]
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            processes[name] = stack.enter_context(process)
            stack.callback(process.kill)
        for process in processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.write("begin\n")
            process.stdin.flush()
        overtaken: Counter[str] = Counter()
        for name, process in processes.items():
            output, _ = process.communicate(timeout=60 + count)
            assert process.returncode == 0
            overtaken[name] = int(output)
    said = Answers()
    for name in PROCESSES:
        said.read((folder / f"{name}.record").read_text())
    return overtaken, said


def are_exact(url: str, folder: Path, count: int) -> bool:
    """Whether they were at work at the same time, and the totals are exact, which is asserted."""
    overtaken, said = transfer(url, folder, count)

    assert verdict_on_transfers(url, said) == []
    assert len(said.acks) == count // len(PROCESSES) * len(PROCESSES)
    # Nothing but an answer has reached a caller: no deadlock, and no conflict that was not cured.
    assert said.errors == {}
    # They were at work on the same vaults in both orders.
    pairs = {(wanted.source, wanted.target) for wanted in said.intents.values()}
    assert len(pairs & {(target, source) for source, target in pairs}) > len(KEYS)
    print(f"{len(said.acks)} transfers, overtaken {sum(overtaken.values())} times")
    turns = list(groupby(event.id.partition("/")[0] for event in stored_events(url)))
    return len(turns) > len(PROCESSES) and sum(overtaken.values()) > 0


def test_transfers_of_three_processes_in_both_orders_meet_no_deadlock_and_totals_are_exact(
    make_store: MakeStore, tmp_path: Path
) -> None:
    assert_together(partial(are_exact, count=SHORT_TRANSFERS), make_store, tmp_path)


@pytest.mark.soak
def test_1_000_transfers_of_three_processes_meet_no_deadlock_and_totals_are_exact(
    make_store: MakeStore, tmp_path: Path
) -> None:
    assert_together(partial(are_exact, count=LONG_TRANSFERS), make_store, tmp_path)


# What these break is not the store's part.
@pytest.mark.parametrize("make_store", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("build", "rule"), [("in two", "torn"), ("unchecked", "lost")])
def test_processes_that_break_a_promise_are_found_guilty(
    make_store: MakeStore, tmp_path: Path, build: str, rule: str
) -> None:
    # Whether they meet where it breaks is chance.
    for number in range(10):
        with make_store() as url:
            _, said = transfer(url, new_folder(tmp_path, number), 45, build)

            if rule in {violation.rule for violation in verdict_on_transfers(url, said)}:
                return
    pytest.fail(f"the {build} build was not found guilty")


# Kills


def run_cycles(url: str, record_file: Path, cycles: int, build: str = "honest") -> tuple[Counts, Answers]:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.faults.transfer_cycles",
            url,
            str(record_file),
            str(cycles),
            build,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60 + cycles,
        check=True,
    )
    said = Answers()
    said.read(record_file.read_text())
    return Counts(**json.loads(done.stdout)), said


def assert_both_sides_or_none(make_store: MakeStore, record_file: Path, cycles: int) -> None:
    killed = transfers = sent_again = 0
    while cycles > 0:
        count = min(cycles, CYCLES_TO_A_STORE)
        with make_store() as url:
            counts, said = run_cycles(url, record_file, count)

            assert verdict_on_transfers(url, said) == []
            # In the end every one was answered, and nothing else is stored.
            assert said.unanswered == []
            assert {event.id for event in stored_events(url)} == said.intents.keys()
        assert counts.killed == count
        assert counts.killed_under_way > count // 3
        killed, transfers, sent_again = killed + count, transfers + len(said.acks), sent_again + counts.sent_again
        cycles -= count
    print(f"{killed} kills, {transfers} transfers, {sent_again} sent again without an answer")


@case("C056")
def test_after_kills_every_transfer_has_both_sides_or_none_and_none_twice(
    make_store: MakeStore, tmp_path: Path
) -> None:
    assert_both_sides_or_none(make_store, tmp_path / "record", SHORT_CYCLES)


@pytest.mark.soak
def test_after_5_000_kills_every_transfer_has_both_sides_or_none_and_none_twice(
    make_store: MakeStore, tmp_path: Path
) -> None:
    assert_both_sides_or_none(make_store, tmp_path / "record", LONG_CYCLES)


# What it breaks is not the store's part.
@pytest.mark.parametrize("make_store", ["sqlite"], indirect=True)
def test_a_build_that_stores_each_side_by_itself_is_found_guilty(make_store: MakeStore, tmp_path: Path) -> None:
    for _ in range(10):
        with make_store() as url:
            _, said = run_cycles(url, tmp_path / "record", 8, "in two")

            if verdict_on_transfers(url, said):
                return
    pytest.fail("it was not found guilty")
