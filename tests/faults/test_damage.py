"""F33, F34, F36: what becomes of a journal that is not what was written: single bits that are flipped, and files that are
damaged, cut off, or gone. What is noticed is a typed error that names the place; what is not noticed is said here too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from actors import ActorSystem, fold
from actors.replies import read_reply
from eventstore import CommandRejected, EventStore, EventStoreError
from eventstore.backend import CommandLookup
from eventstore.snapshots import new_snapshot
from tests.faults.damage import COMMAND_ID, VERSION, VICTIM, Unholdable, flipped, places
from tests.faults.vault import Deposit, Vault


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/vaults.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


# Flipped bits. What a flip does, by the worst of it:
NOTICED = "noticed"
"""Reading it is a typed error, which names the stream and the version."""
HEALED = "healed"
"""The state is right all the same: it comes from what is whole."""
UNNOTICED = "unnoticed"
"""Something that was stored reads differently, and nothing tells."""
IMPOSSIBLE = "impossible"
"""The database cannot hold such a value, or already has a row like that."""


async def test_survey(url):
    counts = await survey(url, per_place=10)
    for k, c in counts.items():
        print(k, dict(c))


async def survey(url: str, *, per_place: int | None) -> dict[str, Counter[str]]:
    """Flip bits, one at a time, and look at everything: at each place so many, or all."""
    chance = random.Random(url)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    async with EventStore.open(url) as store:
        await deposit(store)
        whole, others = await looks(store, VICTIM), await looks(store, "vault-other")
        async with places(url) as all_places:
            for place in all_places:
                value = await place.read()
                if value is None:
                    continue
                flips = list(flipped(value))
                if per_place is not None and len(flips) > per_place:
                    flips = chance.sample(flips, per_place)
                for flip in flips:
                    if flip is None:
                        found[place.name][IMPOSSIBLE] += 1
                        continue
                    try:
                        await place.write(flip)
                    except Unholdable:
                        found[place.name][IMPOSSIBLE] += 1
                        continue
                    damaged, unharmed = await looks(store, VICTIM), await looks(store, "vault-other")
                    await place.write(value)
                    found[place.name][effect(damaged, whole)] += 1
                    if effect(unharmed, others) != HEALED: found[place.name]["OTHER"] += 1
                    for k, e in damaged.items():
                        if isinstance(e, EventStoreError) and VICTIM not in str(e):
                            print(place.name, k, repr(e)[:300])
        assert await looks(store, VICTIM) == whole
    return found


async def deposit(store: EventStore) -> None:
    async with ActorSystem(store, catch_up_seconds=60) as system:
        victim, other = system.ref(Vault, "victim"), system.ref(Vault, "other")
        for number in range(1, 6):
            await victim.ask(Deposit(id=f"d{number}", amount=7), command_id=COMMAND_ID if number == VERSION else None)
            await other.ask(Deposit(id=f"o{number}", amount=7))
    folded = await fold(store, Vault, "victim", through=VERSION + 1)
    data = Vault.state_type.dump(folded.state)
    await store.save_snapshot(new_snapshot(VICTIM, folded.version, Vault.state_type.fingerprint, data))


async def looks(store: EventStore, stream_id: str) -> dict[str, Any]:
    """Everything that can be read of a stream, in every way; where it cannot, the error."""

    async def state(use_snapshots: bool) -> object:
        folded = await fold(store, Vault, stream_id.removeprefix("vault-"), use_snapshots=use_snapshots)
        return folded.state.total, folded.version

    async def events() -> object:
        return [(recorded, store.decode(recorded)) async for recorded in store.read(stream_id)]

    async def outcome() -> object:
        stored = (await store.find_command(CommandLookup(stream_id, COMMAND_ID, 5))).outcome
        return None if stored is None else (stored.fingerprint, read_reply(Deposit, stored))

    ways: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "state": lambda: state(True),
        "state without snapshots": lambda: state(False),
        "events": events,
        "outcome": outcome,
    }
    seen: dict[str, Any] = {}
    for way, look in ways.items():
        try:
            seen[way] = await look()
        except EventStoreError as error:
            seen[way] = error
        except Exception as error:
            import traceback; traceback.print_exc(limit=-3)
            seen[way] = repr(error)
    return seen


def effect(damaged: dict[str, Any], whole: dict[str, Any]) -> str:
    differing = [way for way in whole if damaged[way] != whole[way]]
    if not differing:
        return HEALED
    if any(isinstance(damaged[way], EventStoreError) for way in differing):
        return NOTICED
    return UNNOTICED
