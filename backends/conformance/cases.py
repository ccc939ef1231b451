"""Case numbers: which test shows which case of the project's list, and which cases are shown elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Test = TypeVar("_Test", bound=Callable[..., object])


def case(*numbers: str) -> Callable[[_Test], _Test]:
    """Say which numbered cases a test shows."""

    def mark(test: _Test) -> _Test:
        test.__dict__["cases"] = numbers
        return test

    return mark


def covered_cases(contract: type) -> dict[str, list[str]]:
    """Each case number that a contract's tests carry, and the names of those tests."""
    found: dict[str, list[str]] = {}
    for name in dir(contract):
        numbers: tuple[str, ...] = getattr(getattr(contract, name), "cases", ())
        for number in numbers:
            found.setdefault(number, []).append(name)
    return found


NOT_HERE: dict[str, str] = {
    "C027": "direct SQL is a backend's own affair: the tests of each SQL backend",
    "C051": "commands and their outcomes belong to actors: the actors' tests",
    "C056": "a crash inside a commit needs a process of its own: each backend's fault tests",
    "C066": "commands and replies belong to actors: the tests of transactions",
    "C093": "no replay filter: versions and epochs are checked by the append, so writers never overlap",
    "C094": "no replay filter, as C093: the older writer is fenced instead (epochs.py)",
    "C112": "a failing deletion needs a failing database: each backend's fault tests",
    "C117": "no soft delete: later",
    "C118": "no hard delete: later",
    "C129": "snapshots are chosen by version alone: times never decide",
    "C130": "snapshots are removed up to a version (C132), none alone out of the middle",
    "C133": "snapshots are removed by version alone: times never decide",
    "C149": "when to take a snapshot is a policy of actors: the actors' tests",
    "C152": "every backend has snapshots",
    "C201": "named subscriptions with a stored position are projections: their tests",
    "C202": "stored positions are projections: their tests",
    "C210": "stored positions are projections: their tests",
    "C214": "handlers and their retries are projections: their tests",
    "C215": "dividing streams among consumers: later",
}
"""Cases about the journal (groups A to G and J of the list) that this contract does not show, and who does."""
