"""Who takes part is remembered, whoever else finds out something at the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actors import ActorSystem
from eventstore import EventStore, ReplicaRefused
from tests.actors.journals import new_journal
from tests.replication.ledger import Ledger, Note
from tests.replication.replicas import Replicas


async def test_two_that_are_met_at_once_are_both_remembered(replicas: Replicas) -> None:
    eu, us, ap = await replicas.start("eu", "us", "ap", actors=[Ledger])
    await asyncio.gather(eu.replication.pull_from("us"), eu.replication.pull_from("ap"))
    for system in (eu, us, ap):
        await system.close()
    for name in ("us", "ap"):
        # Another journal under that name is found out.
        store = await replicas.store(f"another {name}")
        async with ActorSystem(store, replica=name, replication_seconds=None):
            peers = {name: store}
            async with ActorSystem(replicas.stores["eu"], replica="eu", peers=peers, replication_seconds=None) as again:
                again.replication.replicate(Ledger)
                with pytest.raises(ReplicaRefused, match="the name was that of another journal"):
                    await again.replication.pull_from(name)


async def test_who_is_removed_is_so_whatever_other_processes_have_found_out(tmp_path: Path) -> None:
    url = new_journal("sqlite", tmp_path)
    async with EventStore.open("memory://") as us, EventStore.open("memory://") as ap:
        peers = {"us": us, "ap": ap}
        one = ActorSystem(url, replica="eu", peers=peers, replication_seconds=None, name="one")
        other = ActorSystem(url, replica="eu", peers=peers, replication_seconds=None, name="other")
        async with one, other:
            await one.replication.remove("ap")
            await other.replication.remove("us")
            assert list(other.replication.others) == []
        async with ActorSystem(url, replica="eu", peers=peers, replication_seconds=None) as again:
            assert list(again.replication.others) == []


@pytest.mark.parametrize("seconds", [0.05, None])
async def test_who_is_removed_by_one_process_is_so_for_all_of_them(tmp_path: Path, seconds: float | None) -> None:
    url = new_journal("sqlite", tmp_path)
    async with asyncio.timeout(60), EventStore.open("memory://") as us:
        peers = {"us": us}
        one = ActorSystem(url, replica="eu", peers=peers, replicated=[Ledger], replication_seconds=None, name="one")
        other = ActorSystem(
            url, replica="eu", peers=peers, replicated=[Ledger], replication_seconds=seconds, name="two"
        )
        async with ActorSystem(us, replica="us", replicated=[Ledger], replication_seconds=None), one, other:
            await other.replication.pull_from("us")
            # It waits for a replica that will never read it.
            asking = asyncio.create_task(other.ref(Ledger, "x").ask(Note(text="a"), replicated="all", timeout=60))
            while not [event async for event in other.store.read("Ledger-x")]:
                await asyncio.sleep(0.001)
            await one.replication.remove("us")
            if seconds is None:
                with pytest.raises(ReplicaRefused, match="left for good"):
                    await other.replication.pull_from("us")
            assert await asking == 1
            assert list(other.replication.others) == []
            (status,) = other.replication.status()
            assert (status.is_refused, status.trouble) == (True, "it has left for good")
