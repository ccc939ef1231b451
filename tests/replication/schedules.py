"""Schedules: three replicas that write, read each other over bad links, and crash, in an order drawn from a seed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from actors import ActorSystem, Command, ReplicatedActor, fold
from actors.replicas.peer import Pull, Pulled, ReplicaNamed, StorePeer
from eventstore import EventStore, EventStoreError, RecordedEvent
from tests.replication.ledger import Ledger, Note

NAMES = ("eu", "us", "ap")
_STEPS = 26


class LinkDown(ConnectionError):
    """Nothing comes through."""


class Link:
    """The way from one replica to another: a peer as the other sees it, through whatever happens on the way."""

    def __init__(self, name: str, store: EventStore, chance: random.Random) -> None:
        self._peer = StorePeer(name, store)
        self._chance = chance
        self._late: list[Pulled] = []
        self.is_down = False
        self.is_bad = False

    async def journal(self) -> ReplicaNamed | None:
        return await self._peer.journal()

    async def wait(self, after: int, timeout: float) -> None:
        await self._peer.wait(after, timeout)

    async def pull(self, wish: Pull) -> Pulled:
        if self.is_down:
            raise LinkDown
        pulled = await self._peer.pull(wish)
        if not self.is_bad:
            return pulled
        self._late.append(pulled)
        events = list(pulled.events)
        match self._chance.randrange(8):
            case 0 | 1 if self._chance.random() < 0.6:
                raise LinkDown  # It was read, and the answer is lost.
            case 2:
                return self._chance.choice(self._late)  # An answer that comes late, to an earlier wish perhaps.
            case 3:
                self._chance.shuffle(events)
            case 4 if events:
                events += self._chance.choices(events, k=3)
                self._chance.shuffle(events)
            case 5 if events:
                events.pop(self._chance.randrange(len(events)))  # A part is lost.
            case _:
                pass
        return pulled._replace(events=events)


class World:
    """Three replicas over stores that stay, for one schedule after another: each uses streams of its own."""

    def __init__(self, stores: Mapping[str, EventStore], actors: Sequence[type[ReplicatedActor[Any]]]) -> None:
        self._stores = stores
        self._actors = actors
        self._chance = random.Random(0)
        self._links: dict[tuple[str, str], Link] = {}
        self.systems: dict[str, ActorSystem] = {}
        self.crashes = 0
        self.refused = 0

    async def __aenter__(self) -> World:
        for name in NAMES:
            await self._start(name)
        return self

    async def __aexit__(self, *_: object) -> None:
        for system in self.systems.values():
            await system.close()

    async def _start(self, name: str) -> None:
        for other in NAMES:
            if other != name and (name, other) not in self._links:
                self._links[name, other] = Link(other, self._stores[other], self._chance)
        system = ActorSystem(
            self._stores[name],
            replica=name,
            peers={other: self._links[name, other] for other in NAMES if other != name},
            replicated=self._actors,
            replication_seconds=None,
            name=name,
        )
        self.systems[name] = await system.__aenter__()

    async def run(self, seed: int, actor: type[ReplicatedActor[Any]], key: str) -> set[str]:
        """One schedule. Returns what was acknowledged."""
        chance = random.Random(seed)
        self._chance.seed(seed)
        skews = {name: chance.choice((-(10**12), -1000, 0, 0, 3, 10**9)) for name in NAMES}
        now = 1_700_000_000_000_000
        for name, system in self.systems.items():
            system.replication.wall = lambda name=name: now + skews[name]  # type: ignore[misc]
        for link in self._links.values():
            link.is_bad, link.is_down = chance.random() < 0.8, chance.random() < 0.3
        acknowledged: set[str] = set()
        for number in range(_STEPS):
            now += chance.randrange(5)
            name, other = chance.sample(NAMES, 2)
            match chance.randrange(14):
                case 0:
                    link = self._links[name, other]
                    link.is_down = not link.is_down
                case 1 if chance.random() < 0.4:
                    await self.crash(name, self._write(name, actor, key, f"{name}{number}?"), chance.randrange(40))
                case 2 if chance.random() < 0.6:
                    await self.crash(name, self.pull(name, other), chance.randrange(60))
                case 3:
                    skews[name] += chance.choice((-(10**9), -50, 50, 10**6))
                case step if step < 9:
                    # Two at once: they are stored, or merged, together with what comes meanwhile.
                    text = f"{name}{number}"
                    await asyncio.gather(self._write(name, actor, key, text), self.pull(name, other, give_up=True))
                    acknowledged.add(text)
                case _:
                    with suppress(EventStoreError, LinkDown):
                        await self.pull(name, other)
        for link in self._links.values():
            link.is_bad = link.is_down = False
        return acknowledged

    async def _write(self, name: str, actor: type[ReplicatedActor[Any]], key: str, text: str) -> None:
        command: Command[Any] = Note(text=text)
        await self.systems[name].ref(actor, key).ask(command, timeout=20)

    async def pull(self, name: str, other: str, *, give_up: bool = False) -> None:
        try:
            await self.systems[name].replication.pull_from(other, limit=self._chance.choice((3, 50)))
        except (EventStoreError, LinkDown):
            self.refused += 1
            if not give_up:
                raise

    async def crash(self, name: str, work: Any, turns: int) -> None:
        """Let a system die in the middle of something, and start it anew on what its journal has by then."""
        task = asyncio.ensure_future(work)
        for _ in range(turns):
            if task.done():
                break
            await asyncio.sleep(0)
        abandon(self.systems[name])
        task.cancel()
        await asyncio.wait([task])
        self.crashes += 1
        await self._start(name)

    async def heal(self) -> None:
        """Let everyone read everyone to the end, twice around: then all know all."""
        for _ in range(2):
            for name in NAMES:
                for other in NAMES:
                    if name != other:
                        while await self.systems[name].replication.pull_from(other):
                            pass

    async def states(self, actor: type[ReplicatedActor[Any]], key: str) -> list[bytes]:
        """The state of one actor everywhere: live, and out of the journal, with snapshots and without."""
        found: list[bytes] = []
        for name in NAMES:
            ref = self.systems[name].ref(actor, key)
            await ref.clock()
            cell: Any = ref._live_cell()  # pyright: ignore[reportPrivateUsage]
            found.append(actor.state_type.dump(cell.actor.state))
            for use_snapshots in (True, False):
                folded = await fold(self._stores[name], actor, key, use_snapshots=use_snapshots)
                found.append(actor.state_type.dump(folded.state))
        return found

    async def journals(self, actor: type[ReplicatedActor[Any]], key: str) -> list[list[RecordedEvent]]:
        """The actor's events as each replica has them."""
        stream_id = f"{actor.kind}-{key}"
        return [[event async for event in self._stores[name].read(stream_id)] for name in NAMES]


async def check(world: World, seed: int, actor: type[ReplicatedActor[Any]]) -> int:
    """Run one schedule and see that it ends well. Returns how many events there were."""
    key = f"{seed}"
    acknowledged = await world.run(seed, actor, key)
    await world.heal()
    states = await world.states(actor, key)
    assert len(set(states)) == 1, f"schedule {seed}: {actor.__qualname__} ended in {set(states)}"
    journals = await world.journals(actor, key)
    ids = [{(event.origin, event.origin_sequence): event.event_id for event in journal} for journal in journals]
    assert ids[0] == ids[1] == ids[2], f"schedule {seed}: the journals differ"
    for journal, known in zip(journals, ids, strict=True):
        assert len(journal) == len(known), f"schedule {seed}: an event was stored twice"
        assert [event.version for event in journal] == list(range(1, len(journal) + 1))
        texts = [event.json()["text"] for event in journal]
        assert len(set(texts)) == len(texts)
        missing = acknowledged.difference(texts)
        assert not missing, f"schedule {seed}: {missing} was acknowledged, and is gone"
    return len(journals[0])


def abandon(system: ActorSystem) -> None:
    """What a crash leaves of a system: nothing that goes on. What it has sent to its database may still arrive."""
    runtime: Any = system._runtime  # pyright: ignore[reportPrivateUsage]
    runtime.is_open = False
    runtime.is_shut = True
    for task in runtime._tasks:
        task.cancel()
    runtime._passivation.end()
    for cell in list(runtime._cells.values()):
        cell.abandon()
    runtime._cells.clear()


__all__ = ["Ledger", "World", "check"]
