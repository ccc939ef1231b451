"""Several processes have the same actors in memory: nothing is lost or doubled, and every reply is the journal's."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest

from tests.faults.journals import stored_events
from tests.faults.resending import Answers, verdict_on_answers
from tests.faults.stores import KINDS, MakeStore, assert_together, new_folder, new_store

ROOT = Path(__file__).parents[2]
PROCESSES = ("one", "two", "three", "four")
KEYS = tuple(f"{number}" for number in range(10))
SHORT_ROUNDS = 4
LONG_ROUNDS = 100


@pytest.fixture(params=KINDS)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    return lambda: new_store(request.param, request, tmp_path)


def hammer(
    url: str, folder: Path, rounds: int, *, build: str = "honest", names: tuple[str, ...] = PROCESSES
) -> Counter[str]:
    """Let all processes begin at once, and wait for their end. Returns how often each was overtaken."""
    with ExitStack() as stack:
        processes: dict[str, subprocess.Popen[str]] = {}
        for name in names:
            arguments = [url, str(folder / f"{name}.record"), name, str(rounds), build, *KEYS]
            command = [sys.executable, "-W", "error", "-m", "tests.faults.hammer", *arguments]
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
            output, _ = process.communicate(timeout=60 + 4 * rounds)
            assert process.returncode == 0
            overtaken[name] = int(output)
    return overtaken


def answers(folder: Path, names: tuple[str, ...] = PROCESSES) -> Answers:
    said = Answers()
    for name in names:
        said.read((folder / f"{name}.record").read_text())
    return said


def nothing_is_lost_or_doubled(url: str, folder: Path, rounds: int) -> bool:
    """Whether they were at work at the same time, and nothing was lost or doubled, which is asserted."""
    overtaken = hammer(url, folder, rounds)
    said = answers(folder)
    events = stored_events(url)

    assert verdict_on_answers(url, said) == []
    # All of them sent the same command under the same id, and it was handled once.
    common = [id_ for id_ in said.streams if id_.startswith("all/")]
    assert len(common) == len(KEYS) * rounds
    assert {said.times[id_] for id_ in common} == {len(PROCESSES)}
    # Without an id, a deposit may be refused when it was overtaken again and again; nothing else may come of it.
    assert set(said.record.refused.values()) <= {"ConcurrencyError"}
    assert said.record.unknown == set()
    print(
        f"{len(said.streams)} commands, {len(said.without_ids)} of them without id, {len(events)} events, "
        f"overtaken {sum(overtaken.values())} times, {len(said.record.refused)} refused, {dict(said.errors)}"
    )
    turns = [name for name, _ in groupby(event.id.partition("/")[0] for event in events if event.id[:3] != "all")]
    return len(turns) > len(PROCESSES) and sum(overtaken.values()) > 0


def test_four_processes_on_ten_actors_lose_nothing_and_double_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    assert_together(partial(nothing_is_lost_or_doubled, rounds=SHORT_ROUNDS), make_store, tmp_path)


@pytest.mark.soak
def test_four_processes_for_a_long_time_lose_nothing_and_double_nothing(make_store: MakeStore, tmp_path: Path) -> None:
    assert_together(partial(nothing_is_lost_or_doubled, rounds=LONG_ROUNDS), make_store, tmp_path)


# What these break is not the store's part.
@pytest.mark.parametrize("make_store", ["redis"], indirect=True)
@pytest.mark.parametrize(("build", "rule"), [("unchecked", "wrong reply"), ("forgetting ids", "doubled")])
def test_a_build_that_does_not_heed_the_others_is_found_guilty(
    make_store: MakeStore, tmp_path: Path, build: str, rule: str
) -> None:
    names = PROCESSES[:2]
    # Whether they meet where it breaks is chance.
    for number in range(10):
        folder = new_folder(tmp_path, number)
        with make_store() as url:
            hammer(url, folder, SHORT_ROUNDS, build=build, names=names)
            if rule in {violation.rule for violation in verdict_on_answers(url, answers(folder, names))}:
                return
    pytest.fail(f"the {build} build was not found guilty")
