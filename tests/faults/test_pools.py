"""F25: where all reading connections are in use, readers are told so in time, and appends do not notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from actors import ActorSystem
from backends.conformance.events import collect, happened, numbers
from eventstore import BackendUnavailable, ConnectionsBusy, EventStore
from tests.backends.postgres_help import has_told, via
from tests.servers.proxy import FaultProxy

from .vault import Deposit, Vault

COMMAND_TIMEOUT = 2.0


@pytest_asyncio.fixture
async def store(url: str, proxy: FaultProxy) -> AsyncIterator[EventStore]:
    """A store with one connection for all that it reads."""
    async with EventStore.open(via(proxy, url, command_timeout=COMMAND_TIMEOUT, pool_size=1)) as store:
        await store.append("held", happened(0))
        await collect(store.read("held"))
        await has_told(store)
        yield store


async def test_readers_beside_one_who_holds_the_only_connection_are_answered_or_refused_in_time(
    store: EventStore, proxy: FaultProxy
) -> None:
    proxy.lose_reply(to=b"held", reset=False)
    start = time.monotonic()
    holder = asyncio.create_task(collect(store.read("held")))
    await proxy.reply_was_lost.wait()
    readers = [asyncio.create_task(store.version("held")) for _ in range(100)]
    await asyncio.wait([holder, *readers], timeout=60)

    assert time.monotonic() - start < 10 * COMMAND_TIMEOUT
    with pytest.raises(BackendUnavailable):
        holder.result()
    refused = [reader for reader in readers if reader.exception() is not None]
    assert {type(reader.exception()) for reader in refused} <= {BackendUnavailable, ConnectionsBusy}
    assert {reader.result() for reader in readers if reader not in refused} <= {1}
    # Afterwards the connection is there for everybody again.
    assert await asyncio.gather(*(store.version("held") for _ in range(20))) == [1] * 20


async def test_who_waits_longer_than_the_time_allowed_is_told_that_the_pool_is_in_use(
    store: EventStore, proxy: FaultProxy
) -> None:
    proxy.latency = 0.1
    outcomes = await asyncio.gather(*(store.version("held") for _ in range(60)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]

    assert refused
    assert {type(error) for error in refused} == {ConnectionsBusy}
    assert all("pool_size" in str(error) for error in refused)
    assert {outcome for outcome in outcomes if not isinstance(outcome, BaseException)} == {1}


async def test_appends_do_not_wait_for_readers(store: EventStore, proxy: FaultProxy) -> None:
    proxy.lose_reply(to=b"held", reset=False)
    holder = asyncio.create_task(collect(store.read("held")))
    await proxy.reply_was_lost.wait()
    readers = [asyncio.create_task(store.version("held")) for _ in range(100)]
    appended = 0
    while appended < 30 and not holder.done():
        await store.append("free", happened(appended), expected_version=appended)
        appended += 1
    # One that had waited for the connection would have been the last.
    assert appended > 2
    await asyncio.wait([holder, *readers], timeout=60)
    for task in (holder, *readers):
        task.exception()
    assert await numbers(store.read("free")) == list(range(appended))


async def test_actors_that_are_woken_in_a_crowd_share_one_connection(store: EventStore) -> None:
    # Recovery reads, and what is recovered appends: neither may wait for the other's connection.
    async with ActorSystem(store) as system:
        receipts = await asyncio.gather(
            *(system.ref(Vault, str(number)).ask(Deposit(id=str(number))) for number in range(200))
        )
    assert receipts == [(1, 1)] * 200
