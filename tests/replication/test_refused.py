"""Backups: a replica that comes back as an older copy of itself is refused, by others and by itself."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import pytest

from actors import ActorSystem
from eventstore import EventStore, OwnedElsewhere, ReplicaRefused
from eventstore.backend import Moved
from tests.actors.journals import new_journal
from tests.replication.ledger import Ledger, Note, Read
from tests.replication.replicas import journaled


@asynccontextmanager
async def pair(
    one: str,
    other: str,
    names: tuple[str, str] = ("eu", "us"),
    *,
    ownership: Literal["shared", "exclusive"] = "shared",
) -> AsyncIterator[tuple[ActorSystem, ...]]:
    async with EventStore.open(one) as eu, EventStore.open(other) as us:
        options = {"replicated": [Ledger], "replication_seconds": None, "ownership": ownership}
        async with (
            ActorSystem(eu, replica=names[0], peers={names[1]: us}, **options) as first,  # type: ignore[arg-type]
            ActorSystem(us, replica=names[1], peers={names[0]: eu}, **options) as second,  # type: ignore[arg-type]
        ):
            yield first, second


async def note(system: ActorSystem, text: str) -> None:
    await system.ref(Ledger, "x").ask(Note(text=text))


@pytest.fixture
async def restored(tmp_path: Path) -> tuple[str, str]:
    """Two replicas that know two events of each; then the first is put back to where it had but one."""
    for name in ("eu", "us"):
        (tmp_path / name).mkdir()
    one, other = (new_journal("sqlite", tmp_path / name) for name in ("eu", "us"))
    async with pair(one, other) as (eu, us):
        await note(eu, "a")
        await us.replication.pull_from("eu")
        await eu.replication.pull_from("us")
    shutil.copy(tmp_path / "eu" / "journal.db", tmp_path / "backup.db")
    async with pair(one, other) as (eu, us):
        await note(eu, "lost")
        await us.replication.pull_from("eu")
        assert await us.ref(Ledger, "x").ask(Read()) == ["a", "lost"]
    for file in (tmp_path / "eu").iterdir():
        file.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "eu" / "journal.db")
    return one, other


async def test_others_find_that_what_they_read_is_not_there(restored: tuple[str, str]) -> None:
    async with pair(*restored) as (_, us):
        with pytest.raises(ReplicaRefused, match="is not there any more"):
            await us.replication.pull_from("eu")


async def test_others_find_that_something_else_is_there_now(restored: tuple[str, str]) -> None:
    async with pair(*restored) as (eu, us):
        # It writes before anybody has looked, under the numbers of what it has lost.
        for text in "xyz":
            await note(eu, text)
        with pytest.raises(ReplicaRefused, match="is not there any more"):
            await us.replication.pull_from("eu")
        assert us.replication.status()[0].is_refused
        assert await us.ref(Ledger, "x").ask(Read()) == ["a", "lost"]
        assert len(await journaled(us.store, "Ledger-x")) == 2


async def test_it_finds_its_own_events_with_others_and_stops_writing(restored: tuple[str, str]) -> None:
    async with pair(*restored) as (eu, _):
        with pytest.raises(ReplicaRefused, match="others have its event 2"):
            await eu.replication.pull_from("us")
        with pytest.raises(ReplicaRefused, match="others have its event 2"):
            await note(eu, "no more")
        assert await eu.ref(Ledger, "x").ask(Read()) == ["a"]


async def test_what_another_process_of_the_replica_has_just_written_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*, after: int) -> Moved:
        return Moved({}, after, True)

    for name in ("eu", "us"):
        (tmp_path / name).mkdir()
    one, other = (new_journal("sqlite", tmp_path / name) for name in ("eu", "us"))
    async with (
        pair(one, other) as (eu, us),
        EventStore.open(one) as store,
        ActorSystem(
            store, replica="eu", peers={"us": us.store}, replicated=[Ledger], replication_seconds=None
        ) as process,
    ):
        # It is sooner that another replica tells than that the store does.
        monkeypatch.setattr(store, "moved", nothing)
        ledger = process.ref(Ledger, "x")
        for _ in range(2):
            assert await ledger.ask(Read(), fresh=True) == []
        await note(eu, "a")
        await us.replication.pull_from("eu")
        await note(us, "b")
        await process.replication.pull_from("us")
        assert await ledger.ask(Read()) == ["a", "b"]
        await note(process, "c")
        assert await eu.ref(Ledger, "x").ask(Read(), fresh=True) == ["a", "b", "c"]


async def test_what_another_process_has_written_that_took_the_actor_over_is_the_replicas_own(tmp_path: Path) -> None:
    for name in ("eu", "us"):
        (tmp_path / name).mkdir()
    one, other = (new_journal("sqlite", tmp_path / name) for name in ("eu", "us"))
    async with pair(one, other, ownership="exclusive") as (eu, us), EventStore.open(one) as store:
        await note(eu, "a")
        await store.claim("Ledger-x")
        async with ActorSystem(
            store,
            replica="eu",
            peers={"us": us.store},
            replicated=[Ledger],
            replication_seconds=None,
            ownership="exclusive",
        ) as taker:
            await note(taker, "b")
            await us.replication.pull_from("eu")
            await note(us, "c")
            # It is not told by anything else that it has lost the actor.
            with pytest.raises(OwnedElsewhere):
                await eu.replication.pull_from("us")
            with pytest.raises(OwnedElsewhere):
                await note(eu, "no more")
        await eu.replication.pull_from("us")
        await note(eu, "d")
        assert await eu.ref(Ledger, "x").ask(Read()) == ["a", "b", "c", "d"]


async def test_an_owner_in_memory_finds_its_own_events_with_others_and_stops_writing(restored: tuple[str, str]) -> None:
    async with pair(*restored, ownership="exclusive") as (eu, _):
        assert await eu.ref(Ledger, "x").ask(Read()) == ["a"]
        with pytest.raises(ReplicaRefused, match="others have its event 2"):
            await eu.replication.pull_from("us")
        with pytest.raises(ReplicaRefused, match="others have its event 2"):
            await note(eu, "no more")


async def test_two_events_under_one_number_are_found(restored: tuple[str, str]) -> None:
    async with pair(*restored) as (eu, _):
        await note(eu, "another second event")
        with pytest.raises(ReplicaRefused, match="two different events as its event 2"):
            await eu.replication.pull_from("us")


async def test_a_copied_journal_is_no_other_replica(tmp_path: Path) -> None:
    for name in ("eu", "us"):
        (tmp_path / name).mkdir()
    one, other = (new_journal("sqlite", tmp_path / name) for name in ("eu", "us"))
    async with pair(one, other) as (eu, _):
        await note(eu, "a")
    shutil.copy(tmp_path / "eu" / "journal.db", tmp_path / "copy.db")
    with pytest.raises(ReplicaRefused, match="this is the journal of 'eu'"):
        async with ActorSystem(f"sqlite:///{tmp_path}/copy.db", replica="ap"):
            pass
    async with EventStore.open(f"sqlite:///{tmp_path}/copy.db") as copy, EventStore.open(one) as store:
        system = ActorSystem(store, replica="eu", peers={"ap": copy}, replicated=[Ledger], replication_seconds=None)
        async with system:
            with pytest.raises(ReplicaRefused, match="what is there is the journal of 'eu'"):
                await system.replication.pull_from("ap")
