"""Tenants: two systems of one journal have actors of the same keys, and know nothing of each other's."""

from __future__ import annotations

import asyncio

import pytest

from actors import ActorSystem, DuplicateCommandMismatch
from eventstore import EventStore, InvalidTenant

from .notebook import Notebook, Read, Write, texts


async def test_the_actors_of_one_key_are_two_actors(url: str):
    async with ActorSystem(url, tenant="acme") as acme, ActorSystem(url, tenant="bolt") as bolt:
        ours, theirs = acme.ref(Notebook, "a"), bolt.ref(Notebook, "a")
        assert await ours.ask(Write(text="ours")) == 1
        assert await theirs.ask(Read()) == []
        assert await asyncio.gather(theirs.ask(Write(text="theirs")), ours.ask(Write(text="more"))) == [1, 2]
        assert (acme.store.tenant, bolt.store.tenant) == ("acme", "bolt")
    async with ActorSystem(url, tenant="bolt") as bolt, ActorSystem(url) as nobodys:
        assert await bolt.ref(Notebook, "a").ask(Read()) == ["theirs"]
        assert await nobodys.ref(Notebook, "a").ask(Read()) == []


async def test_a_command_id_is_each_tenants_own(url: str):
    async with ActorSystem(url, tenant="acme") as acme, ActorSystem(url, tenant="bolt") as bolt:
        ours, theirs = acme.ref(Notebook, "a"), bolt.ref(Notebook, "a")
        assert await ours.ask(Write(text="ours"), command_id="c") == 1
        # Another command under the same id: to one tenant it would be a mistake.
        assert await theirs.ask(Write(text="theirs"), command_id="c") == 1
        assert await ours.ask(Write(text="ours"), command_id="c") == 1
        with pytest.raises(DuplicateCommandMismatch):
            await ours.ask(Write(text="theirs"), command_id="c")
        assert [await texts(system.store) for system in (acme, bolt)] == [["ours"], ["theirs"]]


async def test_two_tenants_own_the_actors_of_one_key_at_the_same_time(url: str):
    async with (
        ActorSystem(url, tenant="acme", ownership="exclusive", name="here") as acme,
        ActorSystem(url, tenant="bolt", ownership="exclusive", name="there") as bolt,
    ):
        for system, text in ((acme, "ours"), (bolt, "theirs"), (acme, "more")):
            await system.ref(Notebook, "a").ask(Write(text=text))
        for system, name in ((acme, "here"), (bolt, "there")):
            assert [info.name for info in await system.store.owners()] == [name]
            assert [holding.stream_id async for holding in system.store.holdings()] == ["Notebook-a"]
        assert await texts(acme.store) == ["ours", "more"]


async def test_a_transaction_is_one_tenants(url: str):
    async with ActorSystem(url, tenant="acme") as acme, ActorSystem(url, tenant="bolt") as bolt:
        await bolt.ref(Notebook, "a").ask(Write(text="theirs"))
        async with acme.transaction() as tx:
            assert await tx.ask(acme.ref(Notebook, "a"), Write(text="ours")) == 1
            assert await tx.ask(acme.ref(Notebook, "b"), Write(text="too")) == 1
        assert [await texts(acme.store, key) for key in "ab"] == [["ours"], ["too"]]
        assert [await texts(bolt.store, key) for key in "ab"] == [["theirs"], []]


async def test_an_actor_learns_what_its_own_tenant_appended_elsewhere(url: str):
    # Of the store without a tenant too, although it sees everybody's events of that id.
    for key, tenant, stranger in (("b", "acme", None), ("c", None, "acme")):
        async with ActorSystem(url, tenant=tenant, catch_up_seconds=0.05) as system:
            mine = system.ref(Notebook, key)
            await mine.ask(Write(text="first"))
            async with ActorSystem(url, tenant=stranger) as other:
                for _ in range(3):
                    await other.ref(Notebook, key).ask(Write(text="a stranger's"))
            async with ActorSystem(url, tenant=tenant) as same:
                await same.ref(Notebook, key).ask(Write(text="second"))
            lines: list[str] = []
            async with asyncio.timeout(20):
                while len(lines) < 2:
                    lines = await mine.ask(Read())
                    # An actor in memory answers at once: nothing else would come to its turn.
                    await asyncio.sleep(0.01)
            assert lines == ["first", "second"]


async def test_a_system_is_of_the_tenant_of_its_store(url: str):
    async with EventStore.open(url, tenant="acme") as store:
        async with ActorSystem(store, tenant="acme") as system:
            await system.ref(Notebook, "a").ask(Write(text="ours"))
        assert await texts(store) == ["ours"]
        with pytest.raises(InvalidTenant, match="opened for acme, not for bolt"):
            ActorSystem(store, tenant="bolt")
    with pytest.raises(InvalidTenant):
        ActorSystem(url, tenant="no/tenant")
    with pytest.raises(InvalidTenant, match="name is text, not 7"):
        ActorSystem(url, tenant=7)  # type: ignore[arg-type]
