"""F29, F19: whatever is cancelled, wherever, on every database: an event is stored once or not at all, and the actor's
state is the journal's. Asks without an id, appends, reads, opening and closing on SQLite are in `test_cancel.py`."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from actors import ActorRef, ActorSystem, fold, new_command_id
from backends.sqlite_writer import SQLiteWriter
from eventstore import BackendUnavailable, EventStore
from eventstore.backend import Claim, CommandLookup, Load
from eventstore.snapshots import new_snapshot
from tests.faults.cancelling import Moment, assert_nothing_pending, cancel_at, no_threads_or_files_left
from tests.faults.vault import Deposit, Deposited, GetTotal, Receipt, SlowDeposit, Vault, parts_of

ROOT = Path(__file__).parents[2]

moments = pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)


@pytest.fixture(params=["sqlite", "memory", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal."""
    if request.param in ("postgres", "redis"):
        url: str = request.getfixturevalue(f"{request.param}_url")
        return url
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/vaults.db"


def run_without_leaks(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await work()
        assert_nothing_pending()

    with no_threads_or_files_left():
        asyncio.run(run())


# Asking. Each returns what is to be cancelled, in a situation of its own, and the id of its command.

Victim = Coroutine[Any, Any, object]
Prepare = Callable[[ActorSystem, str], Awaitable[tuple[Victim, str | None]]]
COMMAND = Deposit(id="victim", parts=3, amount=5)
SLOW_COMMAND = SlowDeposit(id="victim", parts=3, amount=5)


async def with_an_id(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    vault, command_id = system.ref(Vault, key), new_command_id()
    # From here on the vault knows which ids are new.
    await vault.ask(Deposit(id="before"), command_id="before")
    return vault.ask(COMMAND, command_id=command_id), command_id


async def with_an_id_of_a_cold_actor(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    command_id = new_command_id()
    return system.ref(Vault, key).ask(COMMAND, command_id=command_id), command_id


async def with_an_id_that_is_remembered(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    vault, command_id = system.ref(Vault, key), new_command_id()
    await vault.ask(COMMAND, command_id=command_id)
    return vault.ask(COMMAND, command_id=command_id), command_id


async def with_an_id_behind_another_command(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    vault, command_id = system.ref(Vault, key), new_command_id()
    await vault.tell(SlowDeposit(id="before"), command_id="before")
    return vault.ask(COMMAND, command_id=command_id), command_id


async def with_an_id_by_an_async_handler(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    vault, command_id = system.ref(Vault, key), new_command_id()
    await vault.ask(Deposit(id="before"), command_id="before")
    return vault.ask(SLOW_COMMAND, command_id=command_id), command_id


async def fresh(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await _moved_on(system, key)
    return system.ref(Vault, key).ask(COMMAND, fresh=True), None


async def fresh_with_an_id(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await _moved_on(system, key)
    command_id = new_command_id()
    return system.ref(Vault, key).ask(COMMAND, fresh=True, command_id=command_id), command_id


async def fresh_by_an_async_handler(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await _moved_on(system, key)
    return system.ref(Vault, key).ask(SLOW_COMMAND, fresh=True), None


async def on_a_state_that_another_writer_moved_on(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await _moved_on(system, key)
    return system.ref(Vault, key).ask(COMMAND), None


async def that_causes_a_snapshot(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    vault = system.ref(Vault, key)
    await vault.ask(Deposit(id="before", parts=18))
    return vault.ask(COMMAND), None


async def _moved_on(system: ActorSystem, key: str) -> None:
    """The actor is live, and somebody else has appended since."""
    await system.ref(Vault, key).ask(GetTotal())
    await system.store.append(f"vault-{key}", [Deposited(id=f"h{n}", part=1, parts=1, amount=1) for n in range(3)])


ASKS: list[Prepare] = [
    with_an_id,
    with_an_id_of_a_cold_actor,
    with_an_id_that_is_remembered,
    with_an_id_behind_another_command,
    with_an_id_by_an_async_handler,
    fresh,
    fresh_with_an_id,
    fresh_by_an_async_handler,
    on_a_state_that_another_writer_moved_on,
    that_causes_a_snapshot,
]


@moments
@pytest.mark.parametrize("ownership", ["shared", "exclusive"])
def test_an_ask_cancelled_at_any_await_leaves_the_actor_whole(url: str, ownership: Any, moment: Moment) -> None:
    # What others append is no business of an owner's.
    asks = [prepare for prepare in ASKS if ownership == "shared" or "writer" not in prepare.__name__]
    if ownership == "exclusive":
        asks = [prepare for prepare in asks if "fresh" not in prepare.__name__]

    run_without_leaks(lambda: cancel_asks_everywhere(url, ownership, moment, asks))


async def cancel_asks_everywhere(url: str, ownership: Any, moment: Moment, asks: list[Prepare]) -> None:
    async with ActorSystem(url, ownership=ownership) as system:
        for prepare in asks:
            struck = 0
            for number in count(1):
                key = f"{prepare.__name__}/{number}"
                victim, command_id = await prepare(system, key)
                has_struck = await cancel_at(number, victim, moment)
                struck += has_struck
                await assert_whole(system, key, command_id)
                if not has_struck:
                    break
            assert struck > 0, f"{prepare.__name__} was never cancelled"


async def swallowing(ref: ActorRef[Any], command: Any, **options: Any) -> Any:
    try:
        return await ASK(ref, command, **options)
    except asyncio.CancelledError:
        return None


async def repeating(ref: ActorRef[Any], command: Any, **options: Any) -> Any:
    try:
        return await ASK(ref, command, **options)
    except asyncio.CancelledError:
        await ref.tell(command)
        raise


ASK = ActorRef.ask


@moments
@pytest.mark.parametrize(
    ("broken", "found"),
    [(swallowing, "the cancellation was swallowed"), (repeating, "the victim in the journal")],
    ids=lambda broken: getattr(broken, "__name__", ""),
)
def test_an_ask_that_is_broken_on_purpose_is_found_guilty(
    monkeypatch: pytest.MonkeyPatch, moment: Moment, broken: Any, found: str
) -> None:
    monkeypatch.setattr(ActorRef, "ask", broken)
    with pytest.raises(AssertionError, match=found):
        run_without_leaks(lambda: cancel_asks_everywhere("memory://", "shared", moment, ASKS))


async def assert_whole(system: ActorSystem, key: str, command_id: str | None) -> None:
    """The actor serves, its state is the journal's, and the victim is stored as a whole or not at all; with an id it
    is stored once when it was asked again."""
    async with asyncio.timeout(20):
        vault = system.ref(Vault, key)
        if command_id is not None:
            command = SLOW_COMMAND if "async_handler" in key else COMMAND
            again: Receipt = await vault.ask(command, command_id=command_id)
            assert await vault.ask(command, command_id=command_id) == again
        before = await vault.ask(GetTotal(), fresh=True)
        after = await vault.ask(Deposit(id="after", amount=1))
        assert after == (before.version + 1, before.total + 1)

        recorded = [found async for found in system.store.read(f"vault-{key}")]
        events = [system.store.decode(found) for found in recorded]
        deposits = [event for event in events if isinstance(event, Deposited)]
        assert [found.version for found in recorded] == list(range(1, after.version + 1))
        assert sum(event.amount for event in deposits) == after.total
        for use_snapshots in (True, False):
            assert (await fold(system.store, Vault, key, use_snapshots=use_snapshots)).state.total == after.total

        victim = [event for event in deposits if event.id == "victim"]
        allowed = [parts_of(COMMAND)] if command_id is not None else [[], parts_of(COMMAND)]
        assert victim in allowed, "the victim in the journal"
        batches = {found.batch_id for found, event in zip(recorded, deposits, strict=True) if event.id == "victim"}
        assert len(batches) == bool(victim)
        if command_id is not None:
            # The reply was that of the one time that it was handled.
            assert sum(event.amount for event in deposits[: again.version]) == again.total


# Calls to the store


async def a_snapshot(store: EventStore, version: int) -> None:
    await store.save_snapshot(new_snapshot("vault-1", version, Vault.state_type.fingerprint, b'{"total":%d}' % version))


async def snapshots_deleted(store: EventStore, _: int) -> None:
    await store.delete_snapshots("vault-1", through=1)


async def a_truncation(store: EventStore, _: int) -> None:
    await store.truncate("old-1", 3, reason="test")


async def commands_forgotten(store: EventStore, _: int) -> None:
    await store.forget_commands("vault-1", keep=1)


async def a_claim(store: EventStore, _: int) -> None:
    await store.claim("claimed-1")


async def a_claim_in_a_crowd(store: EventStore, _: int) -> None:
    await store.claim_as(Claim("claimed-1"))


async def a_load(store: EventStore, version: int) -> None:
    assert (await store.load(Load("vault-1"))).version == version


async def a_remembered_command(store: EventStore, _: int) -> None:
    found = await store.find_command(CommandLookup("vault-1", "before", 10))
    assert found.outcome is not None


async def what_moved(store: EventStore, _: int) -> None:
    assert "vault-1" in (await store.moved(after=0)).versions


async def holdings(store: EventStore, _: int) -> None:
    assert [holding async for holding in store.holdings()] == []


async def statistics(store: EventStore, version: int) -> None:
    assert (await store.statistics()).events >= version


CALLS = [
    a_snapshot,
    snapshots_deleted,
    a_truncation,
    commands_forgotten,
    a_claim,
    a_claim_in_a_crowd,
    a_load,
    a_remembered_command,
    what_moved,
    holdings,
    statistics,
]


@moments
def test_a_call_to_the_store_cancelled_at_any_await_takes_no_connection_with_it(url: str, moment: Moment) -> None:
    async def cancel_everywhere() -> None:
        struck = 0
        async with EventStore.open(url) as store:
            async with ActorSystem(store, catch_up_seconds=60) as system:
                version = (await system.ref(Vault, "1").ask(COMMAND, command_id="before")).version
            await store.append("old-1", parts_of(COMMAND))
            for call in CALLS:
                for number in count(1):
                    # As many as there could be connections: none of them may be lost.
                    has_struck = [await cancel_at(number, call(store, version), moment) for _ in range(8)]
                    async with asyncio.timeout(20):
                        await asyncio.gather(*(call(store, version) for _ in range(8)))
                    struck += any(has_struck)
                    if not any(has_struck):
                        break
            assert (await store.append("vault-1", parts_of(COMMAND), expected_version=version)).versions == (6,)
            assert (await fold(store, Vault, "1")).state.total == 3 + 15
        assert struck > len(CALLS) or url.startswith("memory"), "they were never cancelled"

    run_without_leaks(cancel_everywhere)


# Opening and closing


@moments
@pytest.mark.parametrize("open_", [EventStore.open, ActorSystem], ids=["store", "system"])
def test_an_opening_cancelled_at_any_await_leaves_nothing_open(
    url: str, moment: Moment, open_: Callable[[str], EventStore | ActorSystem]
) -> None:
    async def cancel_everywhere() -> None:
        for number in count(1):
            opening = open_(url)
            if not await cancel_at(number, opening.__aenter__(), moment):
                await opening.close()
                break
        async with ActorSystem(url) as system:
            assert (await system.ref(Vault, "1").ask(COMMAND)).version == 3
        assert number > 1 or url.startswith("memory"), "it was never cancelled"

    run_without_leaks(cancel_everywhere)


@moments
@pytest.mark.parametrize("url", ["postgres", "redis"], indirect=True)
def test_a_closing_cancelled_at_any_await_lets_go_all_the_same(url: str, moment: Moment) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.faults.closing", url, moment.value],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        check=True,
    )
    left = json.loads(done.stdout)

    assert len(left) > 1, "it was never cancelled"
    assert left == [[]] * len(left)


# While another connection holds SQLite's lock


@contextmanager
def lock_held(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


async def an_append_to_a_known_stream(store: EventStore) -> None:
    await store.append("vault-1", parts_of(COMMAND))


async def an_append_to_a_new_stream(store: EventStore) -> None:
    await store.append("vault-2", parts_of(COMMAND))


async def a_snapshot_saved(store: EventStore) -> None:
    await a_snapshot(store, 3)


async def a_truncation_of_events(store: EventStore) -> None:
    await store.truncate("vault-1", 1, reason="test")


async def a_stream_claimed(store: EventStore) -> None:
    await store.claim("vault-1")


async def old_commands_forgotten(store: EventStore) -> None:
    await store.forget_commands("vault-1", keep=0)


@dataclass
class Jobs:
    """How many SQLite's writer was given, and how many have ended, one way or the other."""

    given: int = 0
    ended: int = 0


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    jobs = Jobs()
    submit = SQLiteWriter.submit

    def noted(writer: SQLiteWriter, job: Any, on_end: Callable[..., None], **options: Any) -> None:
        def told(*outcome: Any) -> None:
            jobs.ended += 1
            on_end(*outcome)

        jobs.given += 1
        submit(writer, job, told, **options)

    monkeypatch.setattr(SQLiteWriter, "submit", noted)
    return jobs


async def given(jobs: Jobs, before: int) -> None:
    """Wait until the writer has something more to do."""
    async with asyncio.timeout(20):
        while jobs.given == before:
            await asyncio.sleep(0)


@pytest.mark.parametrize("is_in_time", [True, False], ids=["let go in time", "held too long"])
@pytest.mark.parametrize(
    "change",
    [
        an_append_to_a_known_stream,
        an_append_to_a_new_stream,
        a_snapshot_saved,
        a_truncation_of_events,
        a_stream_claimed,
        old_commands_forgotten,
    ],
    ids=lambda change: change.__name__,
)
def test_a_change_cancelled_behind_the_lock_leaves_no_transaction(
    tmp_path: Path,
    jobs: Jobs,
    change: Callable[[EventStore], Coroutine[Any, Any, None]],
    is_in_time: bool,
) -> None:
    path = tmp_path / "vaults.db"
    busy_seconds = 60.0 if is_in_time else 0.2

    async def cancel_behind_the_lock() -> None:
        async with EventStore.open(f"sqlite:///{path}?busy_timeout={busy_seconds}") as store:
            async with ActorSystem(store) as system:
                await system.ref(Vault, "1").ask(COMMAND, command_id="before")
            before = _all_rows(path)
            with lock_held(path) as other:
                before_it = jobs.given
                task = asyncio.create_task(change(store))
                # Before that it looks, and who is cancelled then has changed nothing.
                await given(jobs, before_it)
                assert not task.done(), "it did not wait for the lock"
                task.cancel()
                await asyncio.sleep(0.05)
                if not is_in_time:
                    async with asyncio.timeout(30):
                        while jobs.ended < jobs.given:
                            await asyncio.sleep(0.01)
                other.execute("ROLLBACK")
                await asyncio.wait([task], timeout=30)
                assert task.cancelled()
                # Behind whatever is still under way.
                await store.append("other", parts_of(COMMAND))
                other.execute("BEGIN IMMEDIATE")
                other.execute("ROLLBACK")
            changed = _all_rows(path) != before
            assert changed is is_in_time
            version = await store.version("vault-1")
            assert (await store.append("vault-1", parts_of(COMMAND), expected_version=version)).versions
            assert await store.version("vault-2") in (0, 3)

    run_without_leaks(cancel_behind_the_lock)


def test_an_ask_cancelled_behind_a_lock_that_is_held_too_long_stores_nothing_and_may_be_repeated(
    tmp_path: Path, jobs: Jobs
) -> None:
    path = tmp_path / "vaults.db"

    async def cancel_behind_the_lock() -> None:
        async with ActorSystem(f"sqlite:///{path}?busy_timeout=1") as system:
            vault = system.ref(Vault, "1")
            await vault.ask(Deposit(id="before"), command_id="before")
            with lock_held(path):
                before_it = jobs.given
                ask = asyncio.create_task(vault.ask(COMMAND, command_id="victim"))
                await given(jobs, before_it)
                ask.cancel()
                await asyncio.wait([ask])
                assert ask.cancelled()
                with pytest.raises(BackendUnavailable):
                    await vault.ask(GetTotal())
            assert await vault.ask(GetTotal()) == (1, 1)
            assert await vault.ask(COMMAND, command_id="victim") == (4, 16)
            assert await vault.ask(COMMAND, command_id="victim") == (4, 16)
            assert await vault.ask(GetTotal()) == (4, 16)

    run_without_leaks(cancel_behind_the_lock)


def _all_rows(path: Path) -> list[list[Any]]:
    """What the change could have changed, apart from the stream that is appended to afterwards."""
    with closing(sqlite3.connect(path)) as connection:
        return [
            connection.execute(statement).fetchall()
            for statement in (
                "SELECT stream, version FROM journal_events e JOIN journal_streams s ON s.id = e.stream "
                "WHERE s.stream_id <> 'other' ORDER BY position",
                "SELECT stream, version FROM journal_snapshots",
                "SELECT stream_id, epoch, truncated FROM journal_streams WHERE stream_id <> 'other' ORDER BY stream_id",
                "SELECT command_id FROM journal_commands",
            )
        ]
