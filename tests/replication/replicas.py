"""Replicas: systems over stores of their own, which read each other only when a test says so."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

from actors import ActorSystem, ReplicatedActor
from actors.replicas.peer import Peer
from eventstore import EventStore
from eventstore.stamp import parse_stamp
from eventstore.vector_clock import VectorClock


class Replicas:
    """Made by name; each knows those that are named with it."""

    def __init__(self, stack: AsyncExitStack, urls: dict[str, str]) -> None:
        self._stack = stack
        self._urls = urls
        self.stores: dict[str, EventStore] = {}
        self.systems: dict[str, ActorSystem] = {}

    async def store(self, name: str) -> EventStore:
        """The store of a replica, which outlives its systems."""
        if name not in self.stores:
            url = self._urls.get(name, "memory://")
            self.stores[name] = await self._stack.enter_async_context(EventStore.open(url))
        return self.stores[name]

    async def start(
        self,
        *names: str,
        actors: Iterable[type[ReplicatedActor[Any]]],
        peers: dict[str, dict[str, Peer]] | None = None,
        **options: Any,
    ) -> list[ActorSystem]:
        """Start a system for each name. In the background it reads nothing."""
        for name in names:
            await self.store(name)
        started: list[ActorSystem] = []
        options = {"replication_seconds": None, "name": "test", **options}
        for name in names:
            others: dict[str, Any] = {other: self.stores[other] for other in names if other != name}
            others |= (peers or {}).get(name, {})
            system = ActorSystem(self.stores[name], replica=name, peers=others, replicated=actors, **options)
            await self._stack.enter_async_context(system)
            self.systems[name] = system
            started.append(system)
        return started

    async def sync(self, *pairs: tuple[str, str]) -> None:
        """Let the first of each pair read all that the second has."""
        for name, other in pairs:
            while await self.systems[name].replication.pull_from(other):
                pass

    async def sync_all(self, rounds: int = 2) -> None:
        """Let everyone read everyone."""
        names = list(self.systems)
        for _ in range(rounds):
            await self.sync(*((name, other) for name in names for other in names if name != other))


async def journaled(store: EventStore, stream_id: str) -> list[tuple[str, int, VectorClock, bool]]:
    """The stamps of a stream, in the order in which the journal has its events."""
    found: list[tuple[str, int, VectorClock, bool]] = []
    async for event in store.read(stream_id):
        assert event.origin is not None
        assert event.origin_sequence is not None
        assert event.clock is not None
        stamp = parse_stamp(event.origin, event.origin_sequence, event.clock)
        found.append((stamp.origin, stamp.sequence, stamp.clock, event.concurrent))
    return found
