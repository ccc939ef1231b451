"""Everything that waits (threads, sockets, timers) does so on any event loop that asyncio can run: here on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, ClassVar

import pytest
import uvloop

from actors import ActorSystem, SnapshotPolicy
from eventstore import EventFilter, EventStore, Projection, ProjectionRunner, RecordedEvent, event_handler
from eventstore.audit import find
from eventstore.contract.audit_query import AuditQuery
from tests.actors.notebook import Notebook, Read, Write, WriteSlowly, Written

ACTORS, WRITES = 20, 10


class Diary(Notebook, kind="Diary"):
    ownership = "exclusive"
    snapshot_policy = SnapshotPolicy(every=4)


class Lines(Projection, name="lines", kinds=("Diary",)):
    texts: ClassVar[list[str]] = []

    @event_handler
    def written(self, event: Written, recorded: RecordedEvent) -> None:
        self.texts.append(event.text)


async def application(url: str) -> None:
    async with EventStore.open(url) as store:
        seen: list[str] = []
        follower = asyncio.create_task(follow(store, seen))
        async with ActorSystem(store, name="one") as system:

            async def write(key: str) -> None:
                for number in range(WRITES):
                    # Half in the loop's own turn, half in a task of the handler's own.
                    command = Write(text=f"{key}-{number}") if number % 2 else WriteSlowly(text=f"{key}-{number}")
                    await system.ref(Diary, key).ask(command, command_id=f"{key}-{number}", timeout=60)

            await asyncio.gather(*(write(f"k{number}") for number in range(ACTORS)))
            async with system.transaction() as transaction:
                for key in ("k0", "k1"):
                    await transaction.ask(system.ref(Diary, key), Write(text="both"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await system.ref(Diary, "k2").ask(Write(text="nobody waits for it"))
        async with ActorSystem(store, name="two") as system:
            lines = await system.ref(Diary, "k1").ask(Read(), timeout=60)
        assert lines == [*(f"k1-{number}" for number in range(WRITES)), "both"]

        Lines.texts.clear()
        await ProjectionRunner(store, Lines).run(follow=False)
        stored = [recorded async for recorded in find(store, AuditQuery(EventFilter(kinds=("Diary",))))]
        assert len(stored) >= ACTORS * WRITES + 2
        assert len(Lines.texts) == len(stored)
        async with asyncio.timeout(60):
            while len(seen) < len(stored):
                await asyncio.sleep(0.01)
        assert seen == Lines.texts
        follower.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follower


async def follow(store: EventStore, seen: list[str]) -> None:
    async for recorded in store.subscribe(where=EventFilter(kinds=("Diary",))):
        event = store.decode(recorded)
        assert isinstance(event, Written)
        seen.append(event.text)


def test_an_application_runs_on_another_event_loop_and_leaves_nothing_behind(url: str) -> None:
    before = threading.active_count()
    reports: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, report: reports.append(report))
        runner.run(application(url))
    assert reports == []
    assert threading.active_count() == before
