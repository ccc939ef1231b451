"""F11, F12: a command whose reply was lost, or whose commit comes when nobody waits for it any more, has one outcome.

Some who ask have an id and ask again with it until they are answered, others have none and do as they are told.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from actors import ActorSystem
from eventstore import EventStore
from tests.backends.postgres_help import connected, via
from tests.faults.asking_again import Asking
from tests.faults.broken import opened_with
from tests.faults.broken_resolving import BROKEN
from tests.faults.outcomes import verdict_on_ids
from tests.faults.test_dropped_connections import HOLD_COMMITS, LET_GO
from tests.faults.vault import Deposit, Vault, deposit
from tests.faults.verdict import Violation
from tests.servers.proxy import FaultProxy

KEYS = ("a", "b", "c")
# Of who asks with an id, until they ask again.
PATIENCE = 0.25
GUILTY = {"refused but stored", "doubled", "outcome not remembered", "torn"}


@asynccontextmanager
async def system_through(proxy: FaultProxy, url: str, build: str | None, timeout: float) -> AsyncIterator[ActorSystem]:
    distant = via(proxy, url, command_timeout=timeout)
    store = EventStore.open(distant) if build is None else opened_with(BROKEN[build], distant)
    async with store, ActorSystem(store, ask_timeout=60) as system:
        yield system


# Replies that are lost


async def lose_replies(proxy: FaultProxy, url: str, count: int, build: str | None = None) -> Asking:
    """Deposit while so many replies to appends are lost, and then for a moment while none is."""
    asking = Asking(timeout=2.0)
    async with system_through(proxy, url, build, 1.0) as system:
        depositing = asyncio.create_task(asking.keep_depositing(system, KEYS))
        for number in itertools.count(1):
            if proxy.lost_replies >= count or depositing.done():
                break
            proxy.lose_reply(to=b"faults.deposited", reset=random.random() < 0.99)
            with suppress(TimeoutError):
                async with asyncio.timeout(20):
                    await proxy.reply_was_lost.wait()
            proxy.keep_replies()
            if number % 5:
                await acknowledged(asking, 1, depositing)
            # Else what finds out about this one is lost as well.
        await acknowledged(asking, 50, depositing)
        depositing.cancel()
        await asyncio.wait([depositing])
        if not depositing.cancelled():
            depositing.result()
    return asking


async def acknowledged(asking: Asking, count: int, depositing: asyncio.Task[Any]) -> None:
    """Wait until so many more deposits are acknowledged."""
    before = asking.acknowledged
    async with asyncio.timeout(60):
        while asking.acknowledged < before + count and not depositing.done():
            await asyncio.sleep(0.001)


async def test_a_command_whose_reply_is_lost_has_one_outcome(proxy: FaultProxy, url: str) -> None:
    await survives_lost_replies(proxy, url, 25)


@pytest.mark.soak
async def test_commands_whose_replies_are_lost_5000_times_have_one_outcome_each(proxy: FaultProxy, url: str) -> None:
    await survives_lost_replies(proxy, url, 5000)


async def survives_lost_replies(proxy: FaultProxy, url: str, count: int) -> None:
    asking = await lose_replies(proxy, url, count)

    print(f"{proxy.lost_replies} replies lost, {asking.acknowledged} deposits with ids, {dict(asking.errors)}")
    assert proxy.lost_replies >= count
    assert await asyncio.to_thread(verdict_on_ids, url, asking.record(), asking.ids) == []
    assert asking.acknowledged > count


# What is committed before anybody looks is found, so those that look are not caught by this fault, but by the next.
@pytest.mark.parametrize("build", ["taking lost for refused", "resolving without ids"])
async def test_a_store_that_finds_out_about_lost_replies_in_a_wrong_way_is_found_guilty(
    proxy: FaultProxy, url: str, build: str
) -> None:
    asking = await lose_replies(proxy, url, 10, build)

    assert proxy.lost_replies >= 10
    found = await asyncio.to_thread(verdict_on_ids, url, asking.record(), asking.ids)
    assert GUILTY & {violation.rule for violation in found}


# Commits that come later


class Zombies:
    """Makes commits that nobody waits for: the append stands at its commit, its connection goes, then it commits."""

    def __init__(self, proxy: FaultProxy, holder: Any, watcher: Any, *, patience: float) -> None:
        self.proxy = proxy
        self._patience = patience
        self._holder = holder
        self._watcher = watcher
        self.made = 0
        self.waited_for = 0

    async def make(self, work: Coroutine[Any, Any, object], seconds: float) -> None:
        """Make one of the append that some work waits for, and let it commit so many seconds later."""
        await self._holder.execute("SELECT pg_advisory_lock(7)")
        asking = asyncio.create_task(work)
        try:
            await self._until_waiting("advisory", asking)
            self.proxy.reset()
            # The second try waits for the first. A broken store has none.
            is_tried_again = await self._until_waiting("transactionid", asking, seconds=self._patience)
            self.waited_for += is_tried_again
            await asyncio.sleep(seconds)
            self.made += await self._waiting("advisory")
        finally:
            await self._holder.execute(LET_GO)
        async with asyncio.timeout(60):
            await asking

    async def _until_waiting(self, event: str, asking: asyncio.Task[Any], seconds: float = 20.0) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not asking.done():
                    if await self._waiting(event):
                        return True
                    await asyncio.sleep(0.002)
        return False

    async def _waiting(self, event: str) -> int:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = $1 "
            "AND backend_type = 'client backend'"
        )
        return int(await self._watcher.fetchval(query, event))


async def make_zombies(url: str, count: int, build: str | None = None) -> tuple[Asking, Zombies]:
    asking = Asking(timeout=PATIENCE)
    parts = urlsplit(url)
    async with (
        FaultProxy(parts.hostname or "", parts.port or 0) as proxy,
        system_through(proxy, url, build, 5.0) as system,
        connected(url) as holder,
        connected(url) as watcher,
    ):
        for key in KEYS:
            await asking.deposit(system.ref(Vault, key), Deposit(id=f"{key}/first"))
        await holder.execute(HOLD_COMMITS)
        await holder.execute(LET_GO)
        zombies = Zombies(proxy, holder, watcher, patience=20.0 if build is None else 1.0)
        for number in range(count):
            vault = system.ref(Vault, random.choice(KEYS))
            command = Deposit(id=f"zombie/{number}", parts=random.choice((1, 3)), amount=random.randint(1, 9))
            with_id = number % 2 == 0
            work = asking.deposit(vault, command) if with_id else deposit(vault, command, asking.lines.append)
            # Some come so late that who asks has asked again.
            await zombies.make(work, 1.5 * PATIENCE if number % 10 == 0 else 0)
    return asking, zombies


async def verdict_on_zombies(url: str, asking: Asking) -> list[Violation]:
    return await asyncio.to_thread(verdict_on_ids, url, asking.record(), asking.ids)


async def test_a_command_whose_commit_comes_after_its_connection_has_gone_has_one_outcome(postgres_url: str) -> None:
    await survives_zombies(postgres_url, 10)


@pytest.mark.soak
async def test_a_thousand_commands_whose_commits_come_later_have_one_outcome_each(postgres_url: str) -> None:
    await survives_zombies(postgres_url, 1000)


async def survives_zombies(url: str, count: int) -> None:
    asking, zombies = await make_zombies(url, count)

    print(f"{zombies.made} zombie commits, {zombies.waited_for} waited for, {dict(asking.errors)}")
    assert zombies.made == zombies.waited_for == count
    assert asking.errors["AskTimeout"] >= count / 10
    assert await verdict_on_zombies(url, asking) == []
    record = asking.record()
    assert len(record.acks) == count + len(KEYS)
    assert record.unknown == set()
    assert record.refused == {}


@pytest.mark.parametrize("build", BROKEN)
async def test_a_store_that_cannot_cope_with_a_late_commit_is_found_guilty(postgres_url: str, build: str) -> None:
    asking, zombies = await make_zombies(postgres_url, 6, build)

    assert zombies.made >= 3
    assert GUILTY & {violation.rule for violation in await verdict_on_zombies(postgres_url, asking)}
