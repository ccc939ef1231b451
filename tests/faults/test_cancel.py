"""F29, F19: a caller that is cancelled at any await at all leaves the store and the actors whole."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from actors import ActorRef, ActorSystem, fold
from eventstore import Append, EventStore
from eventstore.calls import group_commit

from .cancelling import Moment, assert_nothing_pending, cancel_at, no_threads_or_files_left
from .vault import Deposit, Deposited, GetTotal, SlowDeposit, Vault, parts_of

moments = pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)


@pytest.fixture(params=["sqlite", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/vaults.db"


def run_without_leaks(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await work()
        assert_nothing_pending()

    with no_threads_or_files_left():
        asyncio.run(run())


# Asking. Each returns what is to be cancelled, in a situation of its own.

Victim = Coroutine[Any, Any, object]
Prepare = Callable[[ActorSystem, str], Awaitable[Victim]]
COMMAND = Deposit(id="victim", parts=3, amount=5)
SLOW_COMMAND = SlowDeposit(id="victim", parts=3, amount=5)


async def warm(system: ActorSystem, key: str) -> ActorRef[Vault]:
    vault = system.ref(Vault, key)
    await vault.ask(GetTotal())
    return vault


async def on_the_fast_path(system: ActorSystem, key: str) -> Victim:
    return (await warm(system, key)).ask(COMMAND)


async def behind_another_command(system: ActorSystem, key: str) -> Victim:
    vault = await warm(system, key)
    await vault.tell(SlowDeposit(id="before", parts=2))
    return vault.ask(COMMAND)


async def of_a_cold_actor(system: ActorSystem, key: str) -> Victim:
    return system.ref(Vault, key).ask(COMMAND)


async def of_an_actor_with_history(system: ActorSystem, key: str) -> Victim:
    await system.store.append(f"vault-{key}", [Deposited(id=f"h{n}", part=1, parts=1, amount=1) for n in range(500)])
    return system.ref(Vault, key).ask(COMMAND)


async def of_an_async_handler(system: ActorSystem, key: str) -> Victim:
    return (await warm(system, key)).ask(SLOW_COMMAND)


async def of_a_cold_async_handler(system: ActorSystem, key: str) -> Victim:
    return system.ref(Vault, key).ask(SLOW_COMMAND)


async def of_a_full_mailbox(system: ActorSystem, key: str) -> Victim:
    vault = await warm(system, key)
    system_is_small = Deposit(id="before", parts=2)
    await vault.tell(SlowDeposit(id="first"))
    await vault.tell(system_is_small)
    return vault.ask(COMMAND)


async def for_a_read_behind_an_append(system: ActorSystem, key: str) -> Victim:
    vault = await warm(system, key)
    await vault.tell(COMMAND)
    return vault.ask(GetTotal())


@moments
@pytest.mark.parametrize(
    "prepare",
    [
        on_the_fast_path,
        behind_another_command,
        of_a_cold_actor,
        of_an_actor_with_history,
        of_an_async_handler,
        of_a_cold_async_handler,
        of_a_full_mailbox,
        for_a_read_behind_an_append,
    ],
    ids=lambda prepare: prepare.__name__,
)
def test_an_ask_cancelled_at_any_await_leaves_the_actor_whole(url: str, prepare: Prepare, moment: Moment) -> None:
    async def cancel_everywhere() -> None:
        small = prepare is of_a_full_mailbox
        async with ActorSystem(
            url, mailbox_size=1 if small else 1000, mailbox_overflow="wait" if small else "reject"
        ) as system:
            for number in count(1):
                key = str(number)
                has_struck = await cancel_at(number, await prepare(system, key), moment)
                await assert_whole(system, key)
                if not has_struck:
                    break
            assert number > 1, "it was never cancelled"

    run_without_leaks(cancel_everywhere)


@pytest.mark.parametrize("size", [1, 2])
def test_a_caller_cancelled_with_room_in_hand_gives_it_to_the_next(size: int) -> None:
    async def cancel_one_of_two() -> None:
        async with ActorSystem("memory://", mailbox_size=size, mailbox_overflow="wait") as system:
            vault = await warm(system, "1")
            for number in range(size + 1):
                await vault.tell(SlowDeposit(id=f"before {number}"))
            cancelled = asyncio.create_task(cancel_at(1, vault.ask(COMMAND), Moment.TOO_LATE))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            next_one = asyncio.create_task(vault.ask(Deposit(id="next"), timeout=20))
            assert await cancelled
            assert (await next_one).version == size + 2

    run_without_leaks(cancel_one_of_two)


async def assert_whole(system: ActorSystem, key: str) -> None:
    """The actor serves, its state is the journal's, and the victim is stored as a whole or not at all."""
    async with asyncio.timeout(30):
        vault = system.ref(Vault, key)
        # Behind everything that was asked before; then the actor decides and stores again.
        before = await vault.ask(GetTotal())
        after = await vault.ask(Deposit(id="after", amount=1))
        assert after == (before.version + 1, before.total + 1)

        recorded = [found async for found in system.store.read(f"vault-{key}")]
        events = [system.store.decode(found) for found in recorded]
        assert [found.version for found in recorded] == list(range(1, after.version + 1))
        assert sum(event.amount for event in events if isinstance(event, Deposited)) == after.total
        assert (await fold(system.store, Vault, key)).state.total == after.total

        victim = [event for event in events if isinstance(event, Deposited) and event.id == "victim"]
        assert victim in ([], parts_of(COMMAND))
        batches = {found.batch_id for found, event in zip(recorded, events, strict=True) if event in victim}
        assert len(batches) <= 1


# Appending


async def one_append(store: EventStore, key: str) -> Victim:
    return store.append(f"vault-{key}", parts_of(COMMAND), expected_version=0)


async def one_append_to_two_streams(store: EventStore, key: str) -> Victim:
    return store.append_batch([Append(f"vault-{key}", parts_of(COMMAND)), Append(f"other-{key}", parts_of(COMMAND))])


@moments
@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
@pytest.mark.parametrize("prepare", [one_append, one_append_to_two_streams], ids=lambda prepare: prepare.__name__)
@pytest.mark.parametrize("is_full", [False, True], ids=["free", "queue full"])
def test_an_append_cancelled_at_any_await_has_an_outcome_when_the_caller_is_told(
    url: str,
    prepare: Callable[[EventStore, str], Awaitable[Victim]],
    moment: Moment,
    again: bool,
    is_full: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def cancel_everywhere() -> None:
        stored = 0
        async with EventStore.open(url) as store:
            for number in count(1):
                key = str(number)
                if is_full:
                    monkeypatch.setattr(group_commit, "MAX_WAITING_BYTES", 1)
                others = [asyncio.create_task(store.append("busy", parts_of(COMMAND))) for _ in range(3)]
                await asyncio.sleep(0)
                has_struck = await cancel_at(number, await prepare(store, key), moment, again=again)
                # At once: nothing may change after the caller has been told.
                version = await store.version(f"vault-{key}")
                assert version in (0, 3)
                stored += bool(version)
                await asyncio.gather(*others)
                assert await store.version(f"vault-{key}") == version
                if prepare is one_append_to_two_streams:
                    assert await store.version(f"other-{key}") == version
                assert (await store.append(f"vault-{key}", parts_of(COMMAND))).versions == (version + 3,)
                if not has_struck:
                    break
            assert await store.version("busy") == number * 9
        assert number > 1, "it was never cancelled"
        assert stored > 0

    run_without_leaks(cancel_everywhere)


def test_an_append_cancelled_while_another_process_has_the_lock_leaves_no_transaction(tmp_path: Path) -> None:
    path = tmp_path / "vaults.db"

    async def cancel_behind_the_lock() -> None:
        async with EventStore.open(f"sqlite:///{path}") as store:
            await store.append("vault-1", parts_of(COMMAND))
            with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
                other.execute("BEGIN IMMEDIATE")
                append = asyncio.create_task(store.append("vault-1", parts_of(COMMAND), expected_version=3))
                await asyncio.sleep(0.1)
                append.cancel()
                await asyncio.sleep(0.1)
                # It is cancelled, and waits until it is known what became of it.
                assert not append.done()
                other.execute("ROLLBACK")
                await asyncio.wait([append])
                assert append.cancelled()
                assert await store.version("vault-1") == 6
                # Nobody holds the lock now.
                other.execute("BEGIN IMMEDIATE")
                other.execute("ROLLBACK")
            assert (await store.append("vault-1", parts_of(COMMAND), expected_version=6)).versions == (9,)

    run_without_leaks(cancel_behind_the_lock)


# Reading


async def a_version(store: EventStore) -> None:
    await store.version("vault-1")


async def a_stream(store: EventStore) -> None:
    assert len([recorded async for recorded in store.read("vault-1", page_size=2)]) == 3


async def the_log(store: EventStore) -> None:
    assert len([recorded async for recorded in store.read_all(page_size=2)]) == 3


async def a_state(store: EventStore) -> None:
    assert (await fold(store, Vault, "1")).version == 3


@moments
@pytest.mark.parametrize("is_first", [True, False], ids=["first of its store", "later"])
@pytest.mark.parametrize("read", [a_version, a_stream, the_log, a_state], ids=lambda read: read.__name__)
def test_a_read_cancelled_at_any_await_takes_no_connection_with_it(
    url: str, read: Callable[[EventStore], Coroutine[Any, Any, None]], moment: Moment, is_first: bool
) -> None:
    url = url.replace("memory://", "memory://cancelled-reads")

    async def cancel_everywhere() -> None:
        async with EventStore.open(url) as store:
            if not await store.version("vault-1"):
                await store.append("vault-1", parts_of(COMMAND))
        for number in count(1):
            async with EventStore.open(url) as store:
                if not is_first:
                    await asyncio.gather(*(read(store) for _ in range(3)))
                # As many as there could be connections: none of them may be lost.
                has_struck = [await cancel_at(number, read(store), moment) for _ in range(4)]
                async with asyncio.timeout(30):
                    await asyncio.gather(*(read(store) for _ in range(4)))
            if not any(has_struck):
                break
        assert number > 1 or url.startswith("memory"), "it was never cancelled"

    run_without_leaks(cancel_everywhere)


# Opening and closing


@moments
@pytest.mark.parametrize("is_new", [True, False], ids=["new file", "old file"])
@pytest.mark.parametrize("open_", [EventStore.open, ActorSystem], ids=["store", "system"])
def test_an_opening_cancelled_at_any_await_leaves_nothing_open(
    tmp_path: Path, moment: Moment, is_new: bool, open_: Callable[[str], EventStore | ActorSystem]
) -> None:
    url = f"sqlite:///{tmp_path}/vaults.db"

    async def cancel_everywhere() -> None:
        if not is_new:
            async with EventStore.open(url):
                pass
        for number in count(1):
            opening = open_(url)
            if not await cancel_at(number, opening.__aenter__(), moment):
                await opening.close()
                break
        async with ActorSystem(url) as system:
            assert (await system.ref(Vault, "1").ask(COMMAND)).version == 3
        assert number > 1, "it was never cancelled"

    run_without_leaks(cancel_everywhere)


@moments
def test_a_closing_cancelled_at_any_await_lets_go_all_the_same(url: str, moment: Moment) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "tests.faults.closing",
            url.replace("memory://", "memory://closing"),
            moment.value,
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        check=True,
    )
    left = json.loads(done.stdout)

    assert len(left) > 1, "it was never cancelled"
    assert left == [[]] * len(left)
