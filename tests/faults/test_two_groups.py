"""Two groups of appends under way at once on a network that fails: nothing acknowledged is lost, nothing doubled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

import pytest

from backends.conformance.events import Happened, collect
from eventstore import BackendUnavailable, EventStore, OutcomeUnknown
from eventstore.backend import Appended, Backend, Batch, EventFilter
from eventstore.calls.appending import Appending
from eventstore.calls.halving import Halving
from tests.backends.postgres_help import via
from tests.patience import PATIENCE_SECONDS, opened_patiently
from tests.servers.proxy import FaultProxy

WRITERS = 40
FOLLOWED = 60
FAULTS = 10
CALM_SECONDS = 5


class Groups:
    """What appends to the backend, and counts the groups that went behind another one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._last: Appending | None = None
        self.followed = 0

    def append(self, batches: Sequence[Batch]) -> Appending:
        appending = self._backend.append(batches)
        assert isinstance(appending, Appending)
        self.followed += self._last is not None and not self._last.done()
        self._last = appending
        return appending

    async def follow(self, count: int) -> None:
        """Give so many groups more the time to go behind another: on a busy machine they do not between two faults."""
        wanted = self.followed + count
        with suppress(TimeoutError):
            async with asyncio.timeout(CALM_SECONDS):
                while self.followed < wanted:
                    await asyncio.sleep(0.01)


class Writers:
    """Each appends numbers to its stream, one after the other, and notes what it was told of each."""

    def __init__(self, store: EventStore, kind: str) -> None:
        self._store = store
        self._kind = kind
        self.told: dict[int, Appended] = {}
        self.unknown: set[int] = set()
        self.is_over = False

    async def write(self, writer: int) -> None:
        stream_id, number, version = f"{self._kind}-{writer}", writer, 0
        while not self.is_over:
            number += WRITERS
            try:
                self.told[number] = ack = await self._store.append(
                    stream_id, [Happened(number=number)], expected_version=version
                )
                assert ack.versions == (version + 1,)
                version += 1
            except BackendUnavailable:
                # Not stored, so the next one is at the same version.
                await asyncio.sleep(0.01)
            except OutcomeUnknown:
                self.unknown.add(number)
                return


async def disturb(proxy: FaultProxy) -> None:
    proxy.lose_reply(to=b"conformance.happened", reset=random.random() < 0.8)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.3):
            await proxy.reply_was_lost.wait()
    proxy.keep_replies()
    proxy.slice_bytes = random.choice((None, 7, 100))
    await asyncio.sleep(random.uniform(0.01, 0.2))
    proxy.slice_bytes = None
    proxy.reset()
    await asyncio.sleep(random.uniform(0.01, 0.1))


async def test_two_groups_on_a_network_that_fails_lose_nothing_and_double_nothing(
    proxy: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether two groups pay is a matter of this machine's speed.
    monkeypatch.setattr(Halving, "measure", lambda halving, *_: setattr(halving, "pays", True))
    async with opened_patiently(via(proxy, url, command_timeout=1)) as store, EventStore.open(url) as other:
        writers, others, groups = Writers(store, "s"), Writers(other, "other"), Groups(store._backend)
        store.commits.append_by(groups.append)
        async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
            for writer in range(WRITERS):
                tasks.create_task(writers.write(writer))
            # So no store can tell the positions beforehand.
            tasks.create_task(others.write(0))
            while groups.followed < FOLLOWED or proxy.lost_replies < FAULTS or proxy.resets < 2 * FAULTS:
                await disturb(proxy)
                await groups.follow(FOLLOWED // FAULTS)
            writers.is_over = others.is_over = True
    async with EventStore.open(url) as store:
        log = await collect(store.read_all(where=EventFilter(kinds=("s",))))
    stored = {recorded.json()["number"]: recorded for recorded in log}
    assert len(stored) == len(log)
    assert {(number, ack.position, *ack.versions) for number, ack in writers.told.items()} == {
        (number, recorded.position, recorded.version)
        for number, recorded in stored.items()
        if number not in writers.unknown
    }
    for writer in range(WRITERS):
        own = [(recorded.version, recorded.json()["number"]) for recorded in log if recorded.stream_id == f"s-{writer}"]
        assert [version for version, _ in own] == list(range(1, len(own) + 1))
        assert own == sorted(own, key=lambda each: each[1])
