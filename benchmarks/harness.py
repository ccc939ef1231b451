"""Ratio: two sides measured in one run, in rounds A B A B, and what becomes of their figures."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

FULL = "SQLite, WAL, synchronous=FULL"
NOT_DURABLE = "nothing is stored"
READ_ONLY = "reads only"


class Plan(NamedTuple):
    """How much is measured: `rounds` of every side, each about `seconds` long, on files in `directory`."""

    rounds: int
    seconds: float
    directory: Path
    is_quick: bool = False
    is_long: bool = False


class Side(NamedTuple):
    """One side of a ratio. `measure` runs it for about the given seconds and returns its figure."""

    name: str
    durability: str
    measure: Callable[[float], Awaitable[float]]


class Unit(NamedTuple):
    """What a figure is, and how it is printed."""

    name: str
    scale: float
    digits: int

    def shown(self, value: float) -> str:
        return f"{value * self.scale:,.{self.digits}f} {self.name}"


EVENTS_PER_SECOND = Unit("events/s", 1, 0)
MICROSECONDS = Unit("µs", 1e6, 2)
MILLISECONDS = Unit("ms", 1e3, 2)
BYTES = Unit("bytes", 1, 0)


class Goal(NamedTuple):
    """The ratio to reach, from `performance.md`."""

    least: float
    aim: float
    is_upper_limit: bool = False

    def verdict(self, value: float) -> str:
        if self.is_upper_limit:
            return "aim" if value <= self.aim else "ok" if value <= self.least else "MISSED"
        return "aim" if value >= self.aim else "ok" if value >= self.least else "MISSED"

    def __str__(self) -> str:
        sign = "<=" if self.is_upper_limit else ">="
        return f"{sign} {self.least:g} ({self.aim:g})"


class Figure(NamedTuple):
    """A side's median, as text, with what it stands for."""

    name: str
    durability: str
    value: str


class Ratio(NamedTuple):
    """One line of the table. `low` and `high` are the quartiles of the rounds' own ratios."""

    row: str
    what: str
    value: float
    low: float
    high: float
    goal: Goal | None
    figures: tuple[Figure, ...]
    digits: int = 2
    unit: str = ""


async def interleaved(sides: Sequence[Side], plan: Plan, *, rounds: int | None = None) -> list[list[float]]:
    """Measure the sides in turn, round after round, after one round that does not count. One list for each side."""
    figures: list[list[float]] = [[] for _ in sides]
    for number in range((rounds or plan.rounds) + 1):
        for side, found in zip(sides, figures, strict=True):
            # What one side leaves behind is not to be swept up in the time of the other.
            gc.collect()
            figure = await side.measure(plan.seconds if number else plan.seconds / 2)
            if number:
                found.append(figure)
    return figures


def compared(
    row: str,
    what: str,
    sides: Sequence[Side],
    figures: Sequence[Sequence[float]],
    unit: Unit,
    goal: Goal | None = None,
    digits: int = 2,
) -> Ratio:
    """The first side over the second, round by round: two figures of one round are neighbours. The median of those."""
    ratios = [ours / theirs for ours, theirs in zip(figures[0], figures[1], strict=True)]
    low, high = spread(ratios)
    shown = tuple(
        Figure(side.name, side.durability, unit.shown(median(found)))
        for side, found in zip(sides, figures, strict=True)
    )
    return Ratio(row, what, median(ratios), low, high, goal, shown, digits)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def progress(text: str) -> None:
    """Tell who waits, on stderr: stdout is the table's."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
