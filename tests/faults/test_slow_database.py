"""F26: a database that is slow, and serves: callers wait, nobody is refused, and the breaker stays closed."""

from __future__ import annotations

import asyncio
import math
import time
from statistics import median

import pytest

from actors import ActorRef, ActorSystem
from tests.backends.postgres_help import via
from tests.faults.asking_again import Asking
from tests.faults.machine import resident_megabytes
from tests.faults.outcomes import verdict_on_ids
from tests.faults.vault import Deposit, Vault
from tests.patience import opened_patiently
from tests.servers.proxy import FaultProxy

ACTORS = 40
LATE = 0.2


class Load:
    """Deposits into forty actors, by five who ask at each, while the database is slow, or for so long at most."""

    def __init__(self, *, command_timeout: float, slow_seconds: float = math.inf) -> None:
        self.command_timeout = command_timeout
        self.slow_seconds = slow_seconds
        self.asking = Asking()
        self.waits: list[float] = []
        self.was_open = False
        self.grown_megabytes = 0.0

    async def run(self, proxy: FaultProxy, url: str, seconds: float) -> None:
        distant = via(proxy, url, command_timeout=self.command_timeout, connect_timeout=20)
        async with opened_patiently(distant) as store, ActorSystem(store, ask_timeout=60) as system:
            store.commits.breaker.on_change.append(self._changed)
            vaults = [system.ref(Vault, str(number)) for number in range(ACTORS)]
            await asyncio.gather(*(self.asking.deposit(vault, Deposit(id=vault.stream_id)) for vault in vaults))
            before = resident_megabytes()
            proxy.late_replies = LATE
            if self.slow_seconds < math.inf:
                asyncio.get_running_loop().call_later(self.slow_seconds, setattr, proxy, "late_replies", 0.0)
            end = time.monotonic() + seconds
            async with asyncio.TaskGroup() as tellers:
                for vault in vaults:
                    for name in range(5):
                        tellers.create_task(self._teller(vault, f"{vault.stream_id}/{name}", end))
            self.grown_megabytes = resident_megabytes() - before
            proxy.late_replies = 0.0

    async def _teller(self, vault: ActorRef[Vault], name: str, end: float) -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            start = time.monotonic()
            await self.asking.deposit(vault, Deposit(id=f"{name}/{number}"))
            self.waits.append(time.monotonic() - start)

    def _changed(self) -> None:
        self.was_open = True


async def survives(proxy: FaultProxy, url: str, seconds: float, *, is_strict: bool = False) -> None:
    load = Load(command_timeout=10)
    await load.run(proxy, url, seconds)

    print(
        f"{len(load.waits)} deposits, median wait {median(load.waits):.2f} s, longest {max(load.waits):.2f} s, "
        f"{load.grown_megabytes:+.1f} MiB"
    )
    # Every reply was late: whoever asked has waited for that, and those who came meanwhile went together.
    assert min(load.waits) >= LATE
    # One after another they would wait for 40 s. A short run may have a busy machine to itself for a moment only.
    assert median(load.waits) < (5 if is_strict else 50) * LATE
    # Who must read may wait for a connection beside the snapshots of forty actors.
    assert max(load.waits) < 2 * load.command_timeout
    if is_strict:
        assert len(load.waits) >= seconds / (5 * LATE) * ACTORS
    assert load.asking.errors == {}
    assert not load.was_open
    assert load.grown_megabytes < 32
    assert await asyncio.to_thread(verdict_on_ids, url, load.asking.record(), load.asking.ids) == []


async def test_a_slow_database_makes_callers_wait_and_refuses_nobody(proxy: FaultProxy, url: str) -> None:
    await survives(proxy, url, 2)


@pytest.mark.soak
async def test_a_database_that_is_slow_for_a_minute_makes_callers_wait_and_refuses_nobody(
    proxy: FaultProxy, url: str
) -> None:
    await survives(proxy, url, 60, is_strict=True)


async def test_a_store_that_takes_a_slow_database_for_one_that_is_away_is_found_guilty(
    proxy: FaultProxy, url: str
) -> None:
    # It would go on for ever.
    load = Load(command_timeout=LATE / 2, slow_seconds=2.5)
    await load.run(proxy, url, 2)
    assert load.was_open
