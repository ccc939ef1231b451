"""F01, F31: where every command has an id and is sent until it is answered, each has exactly one outcome, whatever is
killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.faults.journals import stored_events
from tests.faults.redelivery_cycles import Counts
from tests.faults.resending import Answers, verdict_on_answers
from tests.faults.stores import KINDS, new_store

ROOT = Path(__file__).parents[2]
CYCLES_TO_A_STORE = 100
SHORT_CYCLES = 20
LONG_CYCLES = 10_000

MakeStore = Callable[[], AbstractContextManager[str]]


@pytest.fixture(params=KINDS)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return lambda: new_store(request.param, request, tmp_path)


def run_cycles(url: str, record_file: Path, cycles: int, worker: str = "honest") -> tuple[Counts, Answers]:
    arguments = [url, str(record_file), str(cycles), worker]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.redelivery_cycles", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60 + cycles,
        check=True,
    )
    said = Answers()
    said.read(record_file.read_text())
    return Counts(**json.loads(done.stdout)), said


def assert_exactly_once(make_store: MakeStore, record_file: Path, cycles: int) -> None:
    killed = sent_again = commands = kept = 0
    while cycles > 0:
        count = min(cycles, CYCLES_TO_A_STORE)
        with make_store() as url:
            counts, said = run_cycles(url, record_file, count)

            assert verdict_on_answers(url, said) == []
            # Nothing else is stored than what was asked for, and all of that.
            assert {event.id for event in stored_events(url)} == said.record.intents.keys()
        # The kills came while commands were under way, and those were sent again.
        assert counts.killed == count
        assert counts.sent_again > count
        # Some of them had been handled before the kill: they were answered from memory.
        kept += sum(said.times[id_] > 1 for id_ in said.answers)
        killed, sent_again, commands = killed + count, sent_again + counts.sent_again, commands + len(said.answers)
        cycles -= count
    print(f"{killed} kills, {commands} commands, {sent_again} sent again without an answer, {kept} more than once")


def test_after_kills_every_command_has_one_outcome(make_store: MakeStore, tmp_path: Path) -> None:
    assert_exactly_once(make_store, tmp_path / "record", SHORT_CYCLES)


@pytest.mark.soak
def test_after_10_000_kills_every_command_has_one_outcome(make_store: MakeStore, tmp_path: Path) -> None:
    assert_exactly_once(make_store, tmp_path / "record", LONG_CYCLES)


def test_outcomes_that_are_stored_apart_from_their_events_are_found_guilty(
    make_store: MakeStore, tmp_path: Path
) -> None:
    assert_guilty(make_store, tmp_path / "record", "remembering apart")


# What it breaks is not the store's part.
@pytest.mark.parametrize("make_store", ["sqlite"], indirect=True)
def test_commands_that_are_sent_again_without_their_ids_are_found_guilty(make_store: MakeStore, tmp_path: Path) -> None:
    assert_guilty(make_store, tmp_path / "record", "forgetting ids")


def assert_guilty(make_store: MakeStore, record_file: Path, worker: str) -> None:
    # Whether a kill comes when it breaks its promise is chance.
    for _ in range(10):
        with make_store() as url:
            _, said = run_cycles(url, record_file, 8, worker)

            if "doubled" in {violation.rule for violation in verdict_on_answers(url, said)}:
                return
    pytest.fail(f"the {worker} worker was not found guilty")
