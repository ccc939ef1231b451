"""Tenants: a replica takes the events of its own tenant, and of no other one that has the same ids."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from actors import ActorSystem
from actors.replicas.peer import Pull, Pulled, ReplicaNamed, StorePeer
from eventstore import DefinitionError, EventStore
from eventstore.errors import ReplicationError
from tests.replication.ledger import Ledger, Note, Read


async def lines(system: ActorSystem) -> Sequence[str]:
    return await system.ref(Ledger, "x").ask(Read())


@pytest.mark.parametrize("whose", ["acme", None])
async def test_a_replica_takes_its_own_tenants_events_alone(mixed_urls: dict[str, str], whose: str | None):
    eu_url, us_url = mixed_urls["eu"], mixed_urls["us"]
    stranger = None if whose else "bolt"
    options = {"replicated": [Ledger], "replication_seconds": None}
    async with (
        ActorSystem(eu_url, tenant=whose, replica="eu", peers={"us": us_url}, **options) as eu,  # type: ignore[arg-type]
        ActorSystem(us_url, tenant=whose, replica="us", peers={"eu": eu_url}, **options) as us,  # type: ignore[arg-type]
        # In the same databases, under the same names and ids.
        ActorSystem(eu_url, tenant=stranger, replica="eu", peers={"us": us_url}, **options) as eu_of_others,  # type: ignore[arg-type]
        ActorSystem(us_url, tenant=stranger, replica="us", peers={"eu": eu_url}, **options) as us_of_others,  # type: ignore[arg-type]
    ):
        await eu.ref(Ledger, "x").ask(Note(text="ours"))
        await eu_of_others.ref(Ledger, "x").ask(Note(text="theirs"))
        for system in (us, us_of_others):
            while await system.replication.pull_from("eu"):
                pass
        assert await lines(us) == ["ours"]
        assert await lines(us_of_others) == ["theirs"]
        events = [event async for event in us.store.read("Ledger-x")]
        assert [(event.tenant, event.origin) for event in events] == [(whose or "", "eu")]


async def test_a_store_of_another_tenant_is_no_peer():
    async with EventStore.open("memory://", tenant="acme") as eu, EventStore.open("memory://", tenant="bolt") as us:
        system = ActorSystem(eu, replica="eu", peers={"us": us}, replicated=[Ledger])
        with pytest.raises(DefinitionError, match="opened for bolt, this one for acme"):
            await system.__aenter__()


class _Mixed:
    """A peer whose transport brings the events of another tenant."""

    def __init__(self, peer: StorePeer) -> None:
        self._peer = peer

    async def journal(self) -> ReplicaNamed | None:
        return await self._peer.journal()

    async def pull(self, wish: Pull) -> Pulled:
        return await self._peer.pull(wish)

    async def wait(self, after: int, timeout: float) -> None:
        await self._peer.wait(after, timeout)


async def test_what_a_transport_brings_of_another_tenant_is_refused():
    options = {"replicated": [Ledger], "replication_seconds": None}
    async with EventStore.open("memory://") as eu, EventStore.open("memory://", tenant="bolt") as us:
        async with ActorSystem(us, replica="us", **options) as theirs:  # type: ignore[arg-type]
            await theirs.ref(Ledger, "x").ask(Note(text="theirs"))
        peer = _Mixed(StorePeer("us", us))
        async with ActorSystem(eu, replica="eu", peers={"us": peer}, **options) as system:  # type: ignore[arg-type]
            with pytest.raises(ReplicationError, match="another tenant's"):
                await system.replication.pull_from("us")
            assert await lines(system) == []
