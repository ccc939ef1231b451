"""F11, F13, F14: a network that loses, delays and breaks up what it carries, under load and for a single call."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from actors import ActorSystem
from backends.conformance.events import collect, happened, numbers
from eventstore import BackendUnavailable, EventStore, OutcomeUnknown
from eventstore.backend import Load
from tests.backends.postgres_help import has_told, via
from tests.patience import PATIENCE_SECONDS, opened_patiently, patiently
from tests.servers.proxy import FaultProxy

from .broken import BROKEN, opened_with
from .vault import Record, keep_depositing
from .verdict import verdict

# Under load


async def disturb(proxy: FaultProxy, seconds: float, *, losses: int, resets: int) -> None:
    """One fault after another, of every kind, each for a moment: for so long, and until so many came to something."""

    async def lose_reply(patience: float = 0.3) -> None:
        # The name is in every append, and in nothing else that is sent.
        proxy.lose_reply(to=b"faults.deposited", reset=random.random() < 0.8)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await proxy.reply_was_lost.wait()
        # Else it would lie in wait for the one append that finds out what became of the last.
        proxy.keep_replies()

    async def reset() -> None:
        proxy.reset()

    async def stall() -> None:
        proxy.stall()
        await asyncio.sleep(random.uniform(0.01, 0.1))
        proxy.resume()

    async def cut() -> None:
        proxy.cut_after = random.randint(1, 2000)
        await asyncio.sleep(0.02)
        proxy.cut_after = None

    async def slice_up() -> None:
        proxy.slice_bytes, proxy.slice_seconds = random.choice((1, 7, 100)), 0.0002
        await asyncio.sleep(0.05)
        proxy.slice_bytes = None

    async def delay() -> None:
        proxy.latency = 0.02
        await asyncio.sleep(0.05)
        proxy.latency = 0.0

    async def refuse() -> None:
        proxy.refuse()
        proxy.reset()
        await asyncio.sleep(0.03)
        await proxy.accept()

    faults = (lose_reply, lose_reply, reset, stall, cut, slice_up, delay, refuse)
    end = time.monotonic() + seconds
    await lose_reply(patience=PATIENCE_SECONDS)
    while time.monotonic() < end or proxy.lost_replies < losses or proxy.resets < resets:
        assert time.monotonic() < end + PATIENCE_SECONDS, f"{proxy.lost_replies} replies lost, {proxy.resets} resets"
        await random.choice(faults)()
        await asyncio.sleep(random.uniform(0.01, 0.1))


async def load_through(
    proxy: FaultProxy, url: str, seconds: float, *, losses: int = 1, resets: int = 0, broken: str | None = None
) -> Record:
    """Deposits through a network that fails all the time, and then through one that does not."""
    lines: list[str] = []
    distant = via(proxy, url, command_timeout=1)
    store = EventStore.open(distant) if broken is None else opened_with(BROKEN[broken], distant)
    async with store, ActorSystem(store, ask_timeout=60) as system:
        depositing = asyncio.create_task(keep_depositing(system, ("a", "b", "c"), "n", lines.append))
        disturbing = asyncio.create_task(disturb(proxy, seconds, losses=losses, resets=resets))
        await asyncio.wait([depositing, disturbing], return_when=asyncio.FIRST_COMPLETED)
        disturbing.result()
        acknowledged = sum(line.startswith("ack") for line in lines)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sum(line.startswith("ack") for line in lines) < acknowledged + 50:
                await asyncio.sleep(0.01)
        depositing.cancel()
        await asyncio.wait([depositing])
    record = Record()
    record.read("\n".join(lines))
    return record


async def survives(proxy: FaultProxy, url: str, seconds: float) -> None:
    record = await load_through(proxy, url, seconds, losses=1 + int(seconds / 10), resets=1 + int(seconds))

    assert await asyncio.to_thread(verdict, url, record) == []
    # Nearly every outcome that was not told was found out.
    assert len(record.unknown) <= len(record.acks) / 100
    assert set(record.refused.values()) <= {"BackendUnavailable", "CircuitOpen"}
    assert len(record.acks) > 10 * seconds


async def test_a_network_that_fails_all_the_time_loses_nothing_and_doubles_nothing(proxy: FaultProxy, url: str) -> None:
    await survives(proxy, url, 3)


@pytest.mark.soak
async def test_a_network_that_fails_for_two_minutes_loses_nothing_and_doubles_nothing(
    proxy: FaultProxy, url: str
) -> None:
    await survives(proxy, url, 120)


@pytest.mark.parametrize("broken", ["taking lost for refused", "retrying anew"])
async def test_a_store_that_takes_a_lost_reply_for_something_else_is_found_guilty(
    proxy: FaultProxy, url: str, broken: str
) -> None:
    record = await load_through(proxy, url, 1, losses=4, broken=broken)

    # What was refused, as its caller was told, is stored; what he therefore did again is stored twice.
    found = {violation.rule for violation in await asyncio.to_thread(verdict, url, record)}
    assert found & {"refused but stored", "doubled"}


# One call


CALLS: dict[str, Callable[[EventStore], Awaitable[object]]] = {
    "append": lambda store: store.append("a", happened(9)),
    "read": lambda store: collect(store.read("a")),
    "read_all": lambda store: collect(store.read_all()),
    "load": lambda store: store.load(Load("a")),
    "claim": lambda store: store.claim("a"),
    "truncate": lambda store: store.truncate("a", 1, reason="test"),
    "streams": lambda store: collect(store.streams()),
    "statistics": lambda store: store.statistics(),
}


@pytest.mark.parametrize(
    ("call", "is_connected"),
    [*((call, True) for call in CALLS), ("append", False), ("read", False), ("claim", False)],
    ids=lambda value: {True: "connected", False: "connecting"}.get(value, value),
)
async def test_a_black_hole_holds_nobody_longer_than_the_time_allowed(
    proxy: FaultProxy, url: str, call: str, is_connected: bool
) -> None:
    distant = via(proxy, url, command_timeout=0.4, connect_timeout=0.4)
    async with opened_patiently(distant) as store:
        store_commits = store._commits
        assert store_commits is not None
        # An outcome that stays unknown is looked into for so long.
        store_commits._resolve_within = 0.4
        await patiently(lambda: store.append("a", happened(1)))
        await patiently(lambda: collect(store.read("a")))
        await has_told(store)
        proxy.stall()
        if not is_connected:
            proxy.reset()
            await asyncio.sleep(0.05)
        before = proxy.accepted
        start = time.monotonic()
        with pytest.raises((OutcomeUnknown, BackendUnavailable)):
            await CALLS[call](store)
        seconds = time.monotonic() - start
        # The deadline of each try, and a little.
        assert 0.3 < seconds < 20
        if is_connected and call != "append":
            # Nobody has opened another connection, to ask for a cancellation, and waited there.
            assert proxy.accepted == before
        start = time.monotonic()
        await store.close()
        assert time.monotonic() - start < 20
    proxy.resume()
    async with EventStore.open(url) as store:
        assert (await numbers(store.read("a")))[:1] in ([1], [9], [])


async def test_a_wait_for_news_ends_in_time_before_a_black_hole(proxy: FaultProxy, url: str) -> None:
    async with opened_patiently(via(proxy, url, command_timeout=0.5, connect_timeout=0.5)) as store:
        ack = await patiently(lambda: store.append("a", happened(1)))
        await store._backend.wait(ack.position, 0.1)
        proxy.stall()
        start = time.monotonic()
        await store._backend.wait(ack.position, 0.3)
        assert time.monotonic() - start < 20
        start = time.monotonic()
        await store.close()
        assert time.monotonic() - start < 20
    proxy.resume()


async def test_a_reply_that_comes_byte_by_byte_is_read_rightly(proxy: FaultProxy, url: str) -> None:
    async with EventStore.open(via(proxy, url)) as store:
        proxy.slice_bytes = 1
        assert (await store.append("a", happened(*range(20)))).versions == (20,)
        assert await numbers(store.read("a")) == list(range(20))
        assert await numbers(store.read_all()) == list(range(20))


@pytest.mark.parametrize("after", [3_000, 10_000, 20_000])
async def test_a_reset_in_the_midst_of_rows_is_an_error_and_never_a_shorter_page(
    proxy: FaultProxy, url: str, after: int
) -> None:
    async with EventStore.open(via(proxy, url)) as store:
        await store.append("a", happened(*range(400)))
        await collect(store.read("a"))
        # From here on every connection is new, and ends after so many bytes, most of which are rows.
        proxy.reset()
        await asyncio.sleep(0.02)
        proxy.cut_after = after
        resets = proxy.resets
        with pytest.raises(BackendUnavailable):
            await collect(store.read("a"))
        assert proxy.resets > resets
        proxy.cut_after = None
        assert await numbers(store.read("a")) == list(range(400))


async def test_a_late_reply_never_reaches_the_next_caller(proxy: FaultProxy, url: str) -> None:
    # What redis-py did (issue 2665): a cancelled caller's reply was handed to whoever got the connection next.
    async with EventStore.open(via(proxy, url, pool_size=1)) as store:
        for number in range(20):
            await store.append(f"s-{number}", happened(number))
        proxy.latency = 0.02
        for number in range(1, 20):
            hasty = asyncio.create_task(collect(store.read("s-0")))
            await asyncio.sleep(random.uniform(0.001, 0.06))
            hasty.cancel()
            assert await numbers(store.read(f"s-{number}")) == [number]
            await asyncio.wait([hasty])
