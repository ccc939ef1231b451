"""What is broken off, given up or overtaken leaves a replicated actor as its journal has it, and nothing behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest

from actors import ActorSystem, SnapshotPolicy, event_handler
from actors.replicas.replicated_cell import ReplicatedCell
from eventstore import EventStore, NotReplicated, RecoveryError, Snapshot
from eventstore.snapshots import new_snapshot
from tests.actors.journals import new_journal
from tests.replication.ledger import KeptLedger, Ledger, Note, Noted, Read
from tests.replication.replicas import Replicas

# More than are applied without giving the loop a turn.
_MANY = 300


class Broken(Ledger, kind="Ledger"):
    """Has a task cancelled while one of its events is applied."""

    always_fresh = True
    line: ClassVar[str | None] = None
    task: ClassVar[asyncio.Task[None] | None] = None

    @event_handler
    def noted(self, event: Noted) -> None:
        self.state.lines.append(event.text)
        cls = type(self)
        if event.text == cls.line and cls.task is not None:
            cls.line = None
            cls.task.cancel()


class KeptBroken(Broken, kind="Ledger"):
    """The same, with snapshots: it does not hold all of its history."""

    snapshot_policy = SnapshotPolicy(every=5)


async def broken_off(system: ActorSystem, line: str, actor: type[Ledger] = Broken) -> None:
    """A transaction that is cancelled while its actor catches up, where that has come to a line."""

    async def read() -> None:
        async with system.transaction() as tx:
            await tx.ask(system.ref(actor, "x"), Read())

    Broken.line, Broken.task = line, asyncio.create_task(read())
    with pytest.raises(asyncio.CancelledError):
        await Broken.task


async def test_a_catching_up_that_was_broken_off_applies_nothing_twice(tmp_path: Path) -> None:
    url = new_journal("sqlite", tmp_path)
    one = ActorSystem(url, replica="eu", replicated=[Ledger], replication_seconds=None, name="one")
    other = ActorSystem(url, replica="eu", replicated=[Broken], replication_seconds=None, name="other")
    async with asyncio.timeout(60), one, other:
        ref = other.ref(Broken, "x")
        assert await ref.ask(Note(text="first")) == 1
        asking = one.ref(Ledger, "x")
        await asyncio.gather(*(asking.ask(Note(text=str(number))) for number in range(_MANY)))
        expected = await asking.ask(Read())
        assert len(expected) == _MANY + 1
        # In the second part of what it has to catch up with, which is the last that is applied.
        await broken_off(other, expected[150])
        assert await ref.ask(Read(), fresh=True) == expected
        assert await ref.ask(Note(text="last")) == _MANY + 2


async def test_a_rebuilding_that_was_broken_off_leaves_nothing_half_built(tmp_path: Path) -> None:
    url = new_journal("sqlite", tmp_path)
    async with asyncio.timeout(60), EventStore.open("memory://") as store:
        us = ActorSystem(store, replica="us", replicated=[Ledger], replication_seconds=None)
        one = ActorSystem(url, replica="eu", peers={"us": store}, replicated=[Ledger], replication_seconds=None)
        # It knows of no other replica, so it takes for final what it has.
        other = ActorSystem(url, replica="eu", replicated=[KeptBroken], replication_seconds=None)
        async with us, one, other:
            await us.ref(Ledger, "x").ask(Note(text="before all"))
            ref = other.ref(KeptBroken, "x")
            await asyncio.gather(*(ref.ask(Note(text=str(number))) for number in range(_MANY)))
            while await one.replication.pull_from("us"):
                pass
            expected = ["before all", *map(str, range(_MANY))]
            assert await one.ref(Ledger, "x").ask(Read(), fresh=True) == expected
            await broken_off(other, "150", KeptBroken)
            assert await ref.ask(Read()) == expected
            assert await ref.ask(Note(text="last")) == _MANY + 2


async def test_a_snapshot_of_an_event_that_the_journal_does_not_have_is_told(replicas: Replicas) -> None:
    (eu,) = await replicas.start("eu", actors=[KeptLedger])
    await eu.ref(KeptLedger, "x").ask(Note(text="a+b+c+d+e+f"))
    await eu.close()
    store = replicas.stores["eu"]
    (kept,) = await store.snapshots("KeptLedger-x")
    assert isinstance(kept, Snapshot)
    assert kept.version == 6
    # As after a restore of the events from an older copy than the snapshots.
    ahead = new_snapshot(kept.stream_id, 9, kept.fingerprint, kept.data.replace(b'"eu":6', b'"eu":9'))
    await store.save_snapshot(ahead, keep=2)
    (eu,) = await replicas.start("eu", actors=[KeptLedger])
    with pytest.raises(RecoveryError, match="its snapshot is of version 9, and the journal does not have that event"):
        await eu.ref(KeptLedger, "x").ask(Read())


async def test_who_gave_up_waiting_for_other_replicas_is_not_kept(replicas: Replicas) -> None:
    eu, _ = await replicas.start("eu", "us", actors=[Ledger])
    ref = eu.ref(Ledger, "x")
    for _ in range(3):
        with pytest.raises(NotReplicated):
            await ref.ask(Note(text="a"), replicated="all", timeout=0.5)
    cell = eu._runtime.live_cell("Ledger-x")  # pyright: ignore[reportPrivateUsage]
    assert isinstance(cell, ReplicatedCell)
    assert len(cell._waiting) == 0  # pyright: ignore[reportPrivateUsage]
