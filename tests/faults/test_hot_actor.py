"""F28: one actor that gets a great part of all commands does not keep the 999 others waiting."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, cast

import pytest

from actors import ActorSystem
from eventstore.backend import AppendOutcome, Backend, Batch
from eventstore.calls.group_commit import GroupCommit
from eventstore.calls.pending_append import PendingAppend
from tests.faults.broken import Wrapped, opened_with
from tests.faults.journals import sqlite_url, stored_events
from tests.faults.vault import Deposit, Vault

ACTORS = 1000
CLIENTS = 64
# The first of 1,000 gets a quarter of all that is asked, the second an eighth, and so on.
ZIPF = list(accumulate(1 / rank**1.3 for rank in range(1, ACTORS + 1)))
EVEN = list(accumulate([1.0] * ACTORS))
# Beside those who ask here and there, these ask the hot one only.
ADMIRERS = 32
# In each half of a short round.
COMMITS = 40
ADMIRED = list(accumulate([1.0] + [0.0] * (ACTORS - 1)))


class Counted(Wrapped):
    """Counts commits."""

    commits = 0

    def append(self, batches: Sequence[Batch]) -> Awaitable[Sequence[AppendOutcome]]:
        self.commits += 1
        return self._backend.append(batches)


class Wait(NamedTuple):
    seconds: float
    commits: float


@dataclass
class Seen:
    """By round: how long those waited who did not ask the hot actor, when all are asked alike, and when one is hot."""

    even: list[list[Wait]] = field(default_factory=list[list[Wait]])
    hot: list[list[Wait]] = field(default_factory=list[list[Wait]])
    asked: Counter[str] = field(default_factory=Counter[str])
    commits: int = 0
    acknowledged: list[str] = field(default_factory=list[str])

    def ratio(self, percent: int) -> float:
        """How many times as long others wait beside a hot actor, at a percentile, in the median round."""
        return _median_of(self.hot, percent, "seconds") / _median_of(self.even, percent, "seconds")

    def commits_ratio(self, percent: int) -> float:
        """For how many times as many commits, however long the machine takes for one."""
        return _median_of(self.hot, percent, "commits") / _median_of(self.even, percent, "commits")


def _median_of(rounds: list[list[Wait]], percent: int, unit: str) -> float:
    return median(quantiles([getattr(wait, unit) for wait in waits], n=100)[percent - 1] for waits in rounds)


async def load(url: str, *, rounds: int, seconds: float = 0.0, commits: int = 0) -> Seen:
    """Each half of a round lasts so long, and for so many commits."""
    seen = Seen()
    counted: list[Counted] = []

    def count(backend: Backend) -> Counted:
        counted.append(Counted(backend))
        return counted[0]

    async with opened_with(count, url) as store, ActorSystem(store) as system:
        vaults = [system.ref(Vault, str(number)) for number in range(ACTORS)]

        async def client(name: str, weights: list[float], waits: list[Wait], goes_on: Callable[[], bool]) -> None:
            number = 0
            while goes_on():
                number += 1
                chosen = random.choices(range(ACTORS), cum_weights=weights)[0]
                id_ = f"{name}/{number}"
                start, commits_before = time.monotonic(), counted[0].commits
                await vaults[chosen].ask(Deposit(id=id_))
                if chosen:
                    waits.append(Wait(time.monotonic() - start, counted[0].commits - commits_before))
                seen.asked["hot" if chosen == 0 and weights is not EVEN else "other"] += 1
                seen.acknowledged.append(id_)

        async def measure(name: str, *clients: list[float]) -> list[Wait]:
            waits: list[Wait] = []
            end, last = time.monotonic() + seconds, counted[0].commits + commits

            def goes_on() -> bool:
                return time.monotonic() < end or counted[0].commits < last

            await asyncio.gather(*(client(f"{name}/{n}", each, waits, goes_on) for n, each in enumerate(clients)))
            return waits

        # All are in memory before anything is measured.
        await asyncio.gather(*(vault.ask(Deposit(id=f"first{n}")) for n, vault in enumerate(vaults)))
        seen.acknowledged += [f"first{n}" for n in range(ACTORS)]
        before = counted[0].commits
        for number in range(rounds):
            seen.even.append(await measure(f"even{number}", *[EVEN] * CLIENTS))
            seen.hot.append(await measure(f"hot{number}", *[ZIPF] * CLIENTS, *[ADMIRED] * ADMIRERS))
        seen.commits = counted[0].commits - before
    return seen


async def survives(url: str, seen: Seen) -> None:
    total = sum(seen.asked.values())
    print(
        f"{total} deposits in {seen.commits} commits, {seen.asked['hot']} into the hot actor; the others wait "
        f"{seen.ratio(50):.2f} times as long in the median, {seen.ratio(99):.2f} times at p99, for "
        f"{seen.commits_ratio(50):.2f} and {seen.commits_ratio(99):.2f} times as many commits"
    )
    # It was hot, and shared its commits.
    assert seen.asked["hot"] > total / 10
    assert seen.commits < total / 4
    assert sorted(event.id for event in await asyncio.to_thread(stored_events, url)) == sorted(seen.acknowledged)


async def test_a_hot_actor_does_not_keep_others_waiting(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "vaults.db")
    seen = await load(url, commits=COMMITS, rounds=3)

    await survives(url, seen)
    # Those who starve wait for all of them.
    assert seen.commits_ratio(90) <= 4.0


@pytest.mark.soak
async def test_a_hot_actor_does_not_keep_others_waiting_for_a_minute(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "vaults.db")
    seen = await load(url, seconds=10.0, rounds=3)

    await survives(url, seen)
    assert seen.ratio(99) < 2.0


def hot_one_first(commits: GroupCommit, at_most: int) -> list[PendingAppend]:
    """Lets nobody else go as long as the hot actor has something to store."""
    waiting = commits._waiting
    hot = deque(pending for pending in waiting if pending.writes[0].stream_id == "vault-0")
    if not hot:
        return cast("list[PendingAppend]", _take_group(commits, at_most))
    others = deque(pending for pending in waiting if pending.writes[0].stream_id != "vault-0")
    commits._waiting = hot
    group = cast("list[PendingAppend]", _take_group(commits, at_most))
    commits._waiting = hot + others
    return group


_take_group: Any = GroupCommit._take_group


async def test_a_queue_that_prefers_the_hot_actor_is_found_guilty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GroupCommit, "_take_group", hot_one_first)
    seen = await load(sqlite_url(tmp_path / "vaults.db"), commits=COMMITS, rounds=1)
    print(seen.commits_ratio(50), seen.commits_ratio(90))
    assert seen.commits_ratio(90) > 6.0
