"""F39: whatever the way between replicas does, and whoever crashes, they agree in the end, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actors import Conflict, ReplicatedActor
from actors.replicas.conflict import Resolution
from eventstore import EventStore
from tests.actors.journals import new_journal
from tests.replication.ledger import KeptLedger, Ledger, Ruled
from tests.replication.schedules import NAMES, World, check


class Forgetful(Ledger, kind="Forgetful"):
    """A rule that throws dice."""

    dice: ClassVar[random.Random] = random.Random(1)

    def resolve(self, conflict: Conflict) -> Resolution:
        return conflict.event if self.dice.random() < 0.5 else None


ACTORS: tuple[type[ReplicatedActor[Any]], ...] = (Ledger, KeptLedger, Ruled)


@asynccontextmanager
async def world(urls: dict[str, str], *actors: type[ReplicatedActor[Any]]) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        stores = {name: await stack.enter_async_context(EventStore.open(urls.get(name, "memory://"))) for name in NAMES}
        yield await stack.enter_async_context(World(stores, actors))


async def run(urls: dict[str, str], seeds: range, *actors: type[ReplicatedActor[Any]]) -> None:
    async with world(urls, *actors) as replicas:
        events = sum([await check(replicas, seed, actors[seed % len(actors)]) for seed in seeds])
        # It was tried: there was something to lose, and there were crashes and bad links.
        assert events > 5 * len(seeds)
        assert replicas.crashes > len(seeds) / 4
        assert replicas.refused > len(seeds)


@pytest.mark.parametrize("part", range(5))
async def test_random_schedules_converge(part: int) -> None:
    await run({}, range(360 * part, 360 * (part + 1)), ACTORS[part % len(ACTORS)])


@pytest.mark.parametrize("part", range(4))
async def test_random_schedules_beside_a_file_converge(part: int, tmp_path: Path) -> None:
    await run({"us": new_journal("sqlite", tmp_path)}, range(5_000 + 35 * part, 5_000 + 35 * (part + 1)), *ACTORS)


@pytest.mark.parametrize("part", range(3))
async def test_random_schedules_on_three_databases_converge(part: int, mixed_urls: dict[str, str]) -> None:
    await run(mixed_urls, range(10_000 + 20 * part, 10_000 + 20 * (part + 1)), *ACTORS)


async def test_a_rule_that_throws_dice_is_caught() -> None:
    async with world({}, Forgetful) as replicas:
        caught = 0
        for seed in range(20):
            try:
                await check(replicas, seed, Forgetful)
            except AssertionError as error:
                caught += "Forgetful ended in" in str(error)
        assert caught > 10


@pytest.fixture
def soaked_urls(part: int, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """On three databases some, beside a file more, and most where nothing but the replicas takes time."""
    if part % 10 == 0:
        mixed: dict[str, str] = request.getfixturevalue("mixed_urls")
        return mixed
    return {"us": new_journal("sqlite", tmp_path)} if part % 10 == 1 else {}


@pytest.mark.soak
@pytest.mark.parametrize("part", range(100))
async def test_a_hundred_thousand_schedules_converge(part: int, soaked_urls: dict[str, str]) -> None:
    await run(soaked_urls, range(1_000_000 + 1000 * part, 1_000_000 + 1000 * (part + 1)), *ACTORS)
