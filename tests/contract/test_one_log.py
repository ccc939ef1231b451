"""One log: the same operations on every database give the same answers, and leave the same journal behind."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from eventstore import EventStore
from eventstore.backend import Appended, Expected, Holder
from eventstore.errors import (
    CommandForgotten,
    ConcurrencyError,
    DuplicateCommand,
    DuplicateEventError,
    FencedError,
    JournalCorrupt,
)

from .broken import BREAKS, broken
from .operations import AppendGroup, ClaimMany, FindCommands, ForgetCommands, Operation, SaveSnapshot, Truncate
from .recorder import Recorder, canonical_log
from .scenario import draw

_OPERATIONS = 2000
_FEW = 1000
_SHOWN_CHARACTERS = 300
_NAMES = itertools.count(1)


@pytest.fixture
def urls(tmp_path: Path, postgres_url: str, redis_url: str) -> dict[str, str]:
    return {
        "SQLite": f"sqlite:///{tmp_path}/journal.db?durability=process-crash",
        "Postgres": postgres_url,
        "Redis": redis_url,
    }


async def test_two_thousand_operations_leave_one_log_on_all_databases(urls: dict[str, str]) -> None:
    await assert_one_log(urls, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 22))
async def test_whatever_the_operations_they_leave_one_log(urls: dict[str, str], seed: int) -> None:
    await assert_one_log(urls, seed=seed)


async def assert_one_log(urls: dict[str, str], *, seed: int) -> None:
    operations = await draw(seed, _OPERATIONS)
    expected = await log_of(memory(), operations)
    for name, url in urls.items():
        found = await log_of(url, operations)
        difference = first_difference(expected, found)
        assert difference is None, f"seed {seed}, {name} and memory differ: {difference}"
        assert "\n".join(found).encode() == "\n".join(expected).encode()


@pytest.mark.parametrize("name", BREAKS)
async def test_a_difference_is_found(name: str) -> None:
    operations = await draw(1, _FEW)
    expected = await log_of(memory(), operations)
    url = memory()
    try:
        found = await canonical_log(lambda: broken(name, url), operations)
    except JournalCorrupt:
        return  # What it stored is not what it was given: the checksum tells.
    assert first_difference(expected, found) is not None


async def test_the_scenario_holds_every_kind_of_operation_and_of_outcome() -> None:
    operations = await draw(1, _OPERATIONS)
    url = memory()
    recorder = Recorder(lambda: EventStore.open(url))
    await recorder.open()
    outcomes = Counter[str]()
    for operation in operations:
        answer = await recorder.perform(operation)
        match operation:
            case AppendGroup() | ClaimMany() if isinstance(answer, list):
                outcomes.update(kind_of(outcome) for outcome in answer)
            case FindCommands() if isinstance(answer, list):
                outcomes.update("found" if found.outcome else "not found" for found in answer)
            case SaveSnapshot() if isinstance(answer, bool):
                outcomes["snapshot stored" if answer else "snapshot not stored"] += 1
            case ClaimMany() | SaveSnapshot() | Truncate() if answer is not None:
                outcomes[f"{type(operation).__name__}: {type(answer).__name__}"] += 1
            case ForgetCommands() if answer:
                outcomes["commands forgotten"] += 1
            case _:
                pass
    await recorder.close()

    assert set(Counter(type(operation) for operation in operations)) == set(Operation.__args__)
    wanted = {
        *("stored", "stored in several streams", "stored before", "no event stored", "fenced", "duplicate"),
        *("conflict at a version", "conflict STREAM_EXISTS", "conflict NO_STREAM"),
        *("command stored before", "command remembered", "command forgotten"),
        *("found", "not found", "commands forgotten"),
        *("claimed", "held", "ClaimMany: LeaseLost"),
        *("snapshot stored", "snapshot not stored"),
        *("SaveSnapshot: FencedError", "Truncate: FencedError", "Truncate: int"),
    }
    assert {kind: count for kind, count in outcomes.items() if count < 2} == {}
    assert set(outcomes) == wanted


async def test_the_same_seed_draws_the_same_operations_and_another_draws_others() -> None:
    assert await draw(7, 200) == await draw(7, 200)
    assert await draw(7, 200) != await draw(8, 200)


def memory() -> str:
    """A journal that nobody else has, and that is there again when it is opened again."""
    return f"memory://one-log-{next(_NAMES)}"


async def log_of(url: str, operations: Sequence[Operation]) -> list[str]:
    return await canonical_log(lambda: EventStore.open(url), operations)


def first_difference(expected: Sequence[str], found: Sequence[str]) -> str | None:
    for one, other in itertools.zip_longest(expected, found, fillvalue=""):
        if one != other:
            place = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            begin = max(0, place - _SHOWN_CHARACTERS // 3)
            shown = slice(begin, begin + _SHOWN_CHARACTERS)
            what = (one or other).partition(":")[0]
            return f"{what}\n  expected …{one[shown]}…\n  found    …{other[shown]}…"
    return None


def kind_of(outcome: object) -> str:
    match outcome:
        case Appended(position=0, is_duplicate=True):
            return "command stored before"
        case Appended(is_duplicate=True):
            return "stored before"
        case Appended(position=0):
            return "no event stored"
        case Appended(versions=versions):
            return "stored in several streams" if len(versions) > 1 else "stored"
        case FencedError():
            return "fenced"
        case DuplicateCommand():
            return "command remembered"
        case CommandForgotten():
            return "command forgotten"
        case int():
            return "claimed"
        case Holder():
            return "held"
        case DuplicateEventError():
            return "duplicate"
        case ConcurrencyError(expected=Expected.NO_STREAM):
            return "conflict NO_STREAM"
        case ConcurrencyError(expected="STREAM_EXISTS"):
            return "conflict STREAM_EXISTS"
        case ConcurrencyError():
            return "conflict at a version"
        case _:
            return repr(outcome)
