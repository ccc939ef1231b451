"""F33: single bits of what a journal holds are flipped. What is noticed is a typed error that names the place; what is
not noticed is said here too. F36, a snapshot ahead of the journal, is in `tests/actors/test_snapshots.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest

from actors import ActorSystem, RecoveryError, fold
from actors.cells.replies import read_reply
from actors.command_identity import identify
from eventstore import DuplicateCommandMismatch, EventStore, EventStoreError, JournalCorrupt, ReplyDecodeError
from eventstore.backend import CommandLookup, CommandsFound, Load, Loaded
from eventstore.snapshots import new_snapshot
from tests.faults.damage import (
    COMMAND_ID,
    VERSION,
    VICTIM,
    Unholdable,
    damage_command_id,
    damage_outcome_beyond_reading,
    flipped,
    lose_payloads,
    places,
)
from tests.faults.vault import Deposit, GetTotal, Vault

OTHER = "vault-other"


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/vaults.db"
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


# Flipped bits. What a flip does, by the worst of it:
NOTICED = "noticed"
"""Reading it is a typed error, which names the place."""
HEALED = "healed"
"""All is read as it was written: nothing rests on it, or it is taken from what is whole."""
UNNOTICED = "unnoticed"
"""Something that was stored reads differently, and nothing tells."""
IMPOSSIBLE = "impossible"
"""The database cannot hold such a value, or has a row like that already."""

SQL_PLACES = {
    # Another position is another place in the log: its stream is read by versions.
    "events.position": {UNNOTICED, IMPOSSIBLE},
    "events.stream": {NOTICED},
    "events.version": {NOTICED, IMPOSSIBLE},
    "events.type": {NOTICED, IMPOSSIBLE},
    "events.schema_version": {NOTICED, IMPOSSIBLE},
    "events.payload": {NOTICED, IMPOSSIBLE},
    "events.metadata": {NOTICED, IMPOSSIBLE},
    "events.checksum": {NOTICED, IMPOSSIBLE},
    "events.event_id": {UNNOTICED},
    "events.epoch": {UNNOTICED},
    "events.recorded_at": {UNNOTICED, NOTICED},
    "snapshots.version": {HEALED},
    "snapshots.fingerprint": {HEALED, IMPOSSIBLE},
    "snapshots.encoding": {HEALED, IMPOSSIBLE},
    "snapshots.payload": {HEALED},
    "snapshots.checksum": {HEALED},
    "snapshots.epoch": {HEALED},
    "snapshots.recorded_at": {HEALED},
    # Under another id it is not remembered: sent again, the command is handled again.
    "commands.command_id": {UNNOTICED, IMPOSSIBLE},
    "commands.fingerprint": {NOTICED},
    "commands.outcome_id": {HEALED},
    "commands.is_rejection": {NOTICED, HEALED},
    "commands.payload": {NOTICED, UNNOTICED, IMPOSSIBLE},
    "commands.version": {HEALED},
    "commands.issued_at": {HEALED},
    "commands.recorded_at": {HEALED},
    # The stream is found under another name, and under its own there is none.
    "streams.stream_id": {UNNOTICED, IMPOSSIBLE},
    "streams.kind": {HEALED, IMPOSSIBLE},
    # They say who may write, and are not looked at by who reads.
    "streams.epoch": {HEALED},
    "streams.forgotten": {HEALED},
    "streams.truncated": {NOTICED, HEALED},
}
REDIS_PLACES = {
    # In the head of the event and in the log; only who reads many events, or the log, compares them.
    "event.position": {NOTICED, UNNOTICED},
    "event.time": {UNNOTICED, NOTICED},
    "event.event_id": {UNNOTICED},
    "event.epoch": {UNNOTICED},
    "event.checksum": {NOTICED},
    "event.schema_version": {NOTICED},
    "event.type_bytes": {NOTICED},
    "event.size": {NOTICED},
    "event.rest": {NOTICED},
    "snapshot.version": {HEALED},
    "snapshot.time": {HEALED},
    "snapshot.epoch": {HEALED},
    "snapshot.sizes": {HEALED},
    "snapshot.rest": {HEALED},
    "command.version": {HEALED},
    "command.time": {HEALED},
    "command.fingerprint": {NOTICED},
    "command.outcome_id": {HEALED},
    "command.issued_at": {HEALED},
    "command.is_rejection": {NOTICED, HEALED},
    "command.rest": {NOTICED, UNNOTICED},
    "head.number": {NOTICED, UNNOTICED},
    "head.version": {NOTICED},
    "head.truncated": {NOTICED},
    "head.epoch": {HEALED},
    "head.snapshot": {HEALED},
    "head.forgotten": {HEALED},
    # Only readers of the whole log go by it.
    "log.entry": {HEALED},
}


@pytest.fixture
def log_of_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Every damaged snapshot is told to the log, which after the test is as it was."""
    caplog.set_level(logging.ERROR, "actors")


@pytest.mark.usefixtures("log_of_errors")
async def test_a_flipped_bit_is_noticed_or_harmless_where_it_is_said_to_be(url: str) -> None:
    await assert_effects(url, per_place=5)


@pytest.mark.soak
@pytest.mark.usefixtures("log_of_errors")
async def test_every_flipped_bit_is_noticed_or_harmless_where_it_is_said_to_be(url: str) -> None:
    await assert_effects(url, per_place=None)


async def assert_effects(url: str, *, per_place: int | None) -> None:
    found = await survey(url, per_place=per_place)
    expected = REDIS_PLACES if url.startswith("redis") else SQL_PLACES
    summary = {place: dict(effects) for place, effects in found.items()}
    print(summary)

    assert found.keys() == expected.keys()
    assert {place: effects for place, effects in summary.items() if not effects.keys() <= expected[place]} == {}
    # Flips that were refused by the database prove nothing.
    assert all(effects.keys() != {IMPOSSIBLE} for effects in summary.values()), summary


@pytest.mark.usefixtures("log_of_errors")
async def test_a_snapshot_without_a_checksum_is_found_guilty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventstore.snapshots._checksum", lambda *_: b"the same for all")
    found = await survey(f"sqlite:///{tmp_path}/vaults.db", per_place=40, only="snapshots.payload")

    assert found["snapshots.payload"].keys() & {UNNOTICED}, found


async def survey(url: str, *, per_place: int | None, only: str = "") -> dict[str, Counter[str]]:
    """Flip bits, one at a time, and look at everything: at each place so many, or all."""
    chance = random.Random(1)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    async with EventStore.open(url) as store:
        await deposit(store)
        whole, others = await looks(store, VICTIM), await looks(store, OTHER)
        async with places(url) as all_places:
            for place in all_places:
                value = await place.read()
                if value is None or not place.name.startswith(only):
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
                    damaged, unharmed = await looks(store, VICTIM), await looks(store, OTHER)
                    await place.write(value)
                    found[place.name][effect(damaged, whole)] += 1
                    assert effect(unharmed, others) == HEALED, f"{place.name}: {unharmed}"
        assert effect(await looks(store, VICTIM), whole) == HEALED
    return found


async def deposit(store: EventStore) -> None:
    async with ActorSystem(store, catch_up_seconds=60) as system:
        victim, other = (system.ref(Vault, name.removeprefix("vault-")) for name in (VICTIM, OTHER))
        for number in range(1, 6):
            deposit = Deposit(id=f"d{number}", amount=7)
            await victim.ask(deposit, command_id=COMMAND_ID if number == VERSION else None)
            await other.ask(deposit)
    folded = await fold(store, Vault, VICTIM.removeprefix("vault-"), through=VERSION + 1)
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
        # As an actor does it that is asked again.
        stored = (await store.find_command(CommandLookup(stream_id, COMMAND_ID, 5))).outcome
        if stored is None:
            return None
        if stored.fingerprint != identify(Deposit(id=f"d{VERSION}", amount=7), COMMAND_ID).fingerprint:
            raise DuplicateCommandMismatch(stream_id, COMMAND_ID)
        return read_reply(Deposit, stored)

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
    errors = [str(found) for found in seen.values() if isinstance(found, EventStoreError)]
    assert [error for error in errors if COMMAND_ID not in error and stream_id not in error] == []
    return seen


def effect(damaged: dict[str, Any], whole: dict[str, Any]) -> str:
    differing = [way for way in whole if damaged[way] != whole[way]]
    if not differing:
        return HEALED
    if any(isinstance(damaged[way], EventStoreError) for way in differing):
        return NOTICED
    return UNNOTICED


async def test_an_actor_with_a_damaged_event_says_where_and_the_others_serve(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/vaults.db"
    async with EventStore.open(url) as store:
        await deposit(store)
        await store.delete_snapshots(VICTIM)
    async with places(url) as all_places:
        (payload,) = (place for place in all_places if place.name == "events.payload")
        await payload.read()
        await payload.write("{")
    async with ActorSystem(url) as system:
        with pytest.raises(RecoveryError, match=rf"{VICTIM}.*version {VERSION}"):
            await system.ref(Vault, "victim").ask(GetTotal())
        assert await system.ref(Vault, "other").ask(GetTotal()) == (5, 35)


async def test_a_damaged_outcome_is_an_error_for_who_asks_for_it_and_the_actor_goes_on(url: str) -> None:
    async with EventStore.open(url) as store:
        await deposit(store)
    async with places(url) as all_places:
        (place,) = (place for place in all_places if place.name.endswith(".is_rejection"))
        value = await place.read()
        await place.write(next(flip for flip in flipped(cast("Any", value)) if flip is not None))
    async with ActorSystem(url, ask_timeout=30) as system:
        victim = system.ref(Vault, "victim")
        with pytest.raises(ReplyDecodeError):
            await victim.ask(Deposit(id=f"d{VERSION}", amount=7), command_id=COMMAND_ID)
        assert await victim.ask(GetTotal()) == (5, 35)


async def test_a_damaged_outcome_spoils_no_answer_to_others_who_ask_at_the_same_time(url: str) -> None:
    async with EventStore.open(url) as store:
        await deposit(store)
        await damage_outcome_beyond_reading(url)
        damaged, unharmed = await asyncio.gather(
            *(store.find_command(CommandLookup(stream_id, COMMAND_ID)) for stream_id in (VICTIM, OTHER)),
            return_exceptions=True,
        )

    assert isinstance(damaged, JournalCorrupt)
    assert (damaged.stream_id, isinstance(damaged.__cause__, Exception)) == (VICTIM, True)
    assert isinstance(unharmed, CommandsFound)


async def test_a_damaged_outcome_hides_no_id_from_who_asks_which_are_remembered(url: str) -> None:
    async with EventStore.open(url) as store:
        await deposit(store)
        await damage_outcome_beyond_reading(url)
        found = await store.find_command(CommandLookup(VICTIM, "new", recent=5))

    assert (found.outcome, list(found.recent), found.known_above) == (None, [COMMAND_ID], "")


@pytest.mark.parametrize("url", ["sqlite", "redis"], indirect=True)
async def test_an_id_that_is_no_text_spoils_no_answer_to_others_who_ask_at_the_same_time(url: str) -> None:
    async with EventStore.open(url) as store:
        await deposit(store)
        await damage_command_id(url)
        damaged, unharmed = await asyncio.gather(
            *(store.find_command(CommandLookup(stream_id, "new", recent=5)) for stream_id in (VICTIM, OTHER)),
            return_exceptions=True,
        )

    assert isinstance(damaged, JournalCorrupt)
    assert damaged.stream_id == VICTIM
    assert isinstance(unharmed, CommandsFound)


async def test_events_that_the_server_finds_damaged_spoil_no_load_of_others(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await deposit(store)
        await lose_payloads(postgres_url, "journal_events")
        damaged, unharmed = await asyncio.gather(
            *(store.load(Load(stream_id, use_snapshot=False)) for stream_id in (VICTIM, OTHER)), return_exceptions=True
        )

    assert isinstance(damaged, JournalCorrupt)
    assert damaged.stream_id == VICTIM
    assert isinstance(unharmed, Loaded)
    assert len(unharmed.events) == 5


async def test_an_error_that_nobody_foresaw_ends_the_ask_and_not_the_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ActorSystem(f"sqlite:///{tmp_path}/vaults.db", ask_timeout=30) as system:

        async def overflowing(*_: object) -> NoReturn:
            raise OverflowError("date value out of range")

        with monkeypatch.context() as broken:
            broken.setattr(system.store, "find_command", overflowing)
            with pytest.raises(OverflowError):
                await system.ref(Vault, "1").ask(Deposit(id="a"), command_id="a")
        assert await system.ref(Vault, "1").ask(Deposit(id="a"), command_id="a") == (1, 1)
