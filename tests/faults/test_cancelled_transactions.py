"""F29: a transaction that is cancelled, at whatever await: all of it is stored once or nothing is, every actor's state
is the journal's, and none is held."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from actors import ActorSystem, Transaction, fold, new_command_id
from tests.faults.cancelling import Moment, assert_nothing_pending, cancel_at, no_threads_or_files_left
from tests.faults.resending import PatientDeposit, RememberingVault
from tests.faults.vault import Deposit, Deposited, GetTotal, SlowDeposit

FIRST = Deposit(id="victim", parts=2, amount=5)
SECOND = Deposit(id="victim", parts=1, amount=7)
PATIENT = PatientDeposit(id="victim", parts=1, amount=7)

Victim = Coroutine[Any, Any, object]
Prepare = Callable[[ActorSystem, str], Awaitable[tuple[Victim, str | None]]]


@pytest.fixture(params=["sqlite", "memory", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty journal."""
    if request.param in ("postgres", "redis"):
        url: str = request.getfixturevalue(f"{request.param}_url")
        return url
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/vaults.db"


async def transfer(system: ActorSystem, key: str, command_id: str | None, second: Deposit = SECOND) -> None:
    async def work(tx: Transaction) -> None:
        await tx.ask(system.ref(RememberingVault, f"{key}/1"), FIRST)
        await tx.ask(system.ref(RememberingVault, f"{key}/2"), second)

    await system.transact(work, command_id=command_id)


async def begun(system: ActorSystem, key: str) -> None:
    for number in (1, 2):
        await system.ref(RememberingVault, f"{key}/{number}").ask(Deposit(id="before"), command_id="before")


async def of_live_actors(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await begun(system, key)
    return transfer(system, key, None), None


async def of_cold_actors(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    return transfer(system, key, None), None


async def with_an_id(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    command_id = new_command_id()
    await begun(system, key)
    return transfer(system, key, command_id), command_id


async def with_an_id_of_cold_actors(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    command_id = new_command_id()
    return transfer(system, key, command_id), command_id


async def with_an_id_that_is_remembered(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    command_id = new_command_id()
    await transfer(system, key, command_id)
    return transfer(system, key, command_id), command_id


async def behind_other_commands(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await begun(system, key)
    for number in (1, 2):
        await system.ref(RememberingVault, f"{key}/{number}").tell(SlowDeposit(id="before"))
    return transfer(system, key, None), None


async def by_an_async_handler(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await begun(system, key)
    return transfer(system, key, None, PATIENT), None


async def that_another_writer_overtook(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await begun(system, key)
    await system.store.append(f"vault-{key}/2", [Deposited(id="other", part=1, parts=1, amount=1)])
    return transfer(system, key, None), None


async def that_wants_what_an_older_one_has(system: ActorSystem, key: str) -> tuple[Victim, str | None]:
    await begun(system, key)
    one, two = (system.ref(RememberingVault, f"{key}/{number}") for number in (1, 2))
    has_two = asyncio.Event()

    async def old() -> None:
        async with system.transaction() as tx:
            await tx.ask(two, Deposit(id="old"))
            has_two.set()
            # By then the victim has the other, if it was not cancelled before.
            for _ in range(5):
                await asyncio.sleep(0)
            await tx.ask(one, Deposit(id="old"))

    older = asyncio.create_task(old())
    await has_two.wait()

    async def victim() -> None:
        try:
            await transfer(system, key, None)
        finally:
            olders.append(older)

    return victim(), None


olders: list[asyncio.Task[None]] = []

VICTIMS: list[Prepare] = [
    of_live_actors,
    of_cold_actors,
    with_an_id,
    with_an_id_of_cold_actors,
    with_an_id_that_is_remembered,
    behind_other_commands,
    by_an_async_handler,
    that_another_writer_overtook,
    that_wants_what_an_older_one_has,
]


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)
def test_a_transaction_cancelled_at_any_await_is_stored_as_a_whole_or_not_at_all(url: str, moment: Moment) -> None:
    run_without_leaks(lambda: cancel_transactions_everywhere(url, moment, again=False))


@pytest.mark.parametrize("moment", Moment, ids=lambda moment: moment.value)
def test_a_transaction_cancelled_again_and_again_from_any_await_on_too(moment: Moment) -> None:
    run_without_leaks(lambda: cancel_transactions_everywhere("memory://", moment, again=True))


def run_without_leaks(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await work()
        assert_nothing_pending()

    with no_threads_or_files_left():
        asyncio.run(run())


async def cancel_transactions_everywhere(url: str, moment: Moment, *, again: bool) -> None:
    async with ActorSystem(url) as system:
        for prepare in VICTIMS:
            struck = 0
            for number in count(1):
                key = f"{prepare.__name__}/{number}"
                victim, command_id = await prepare(system, key)
                has_struck = await cancel_at(number, victim, moment, again=again)
                struck += has_struck
                while olders:
                    await olders.pop()
                await assert_whole(system, key, command_id)
                if not has_struck:
                    break
            assert struck > 0, f"{prepare.__name__} was never cancelled"
        assert system.stats().failures == {}


async def assert_whole(system: ActorSystem, key: str, command_id: str | None) -> None:
    async with asyncio.timeout(20):
        if command_id is not None:
            await transfer(system, key, command_id)
        found: list[int] = []
        batches: set[object] = set()
        for number in (1, 2):
            vault = system.ref(RememberingVault, f"{key}/{number}")
            before = await vault.ask(GetTotal(), fresh=True)
            assert await vault.ask(Deposit(id="after", amount=1)) == (before.version + 1, before.total + 1)
            recorded = [found async for found in system.store.read(vault.stream_id)]
            events = [system.store.decode(found) for found in recorded]
            deposits = [event for event in events if isinstance(event, Deposited)]
            assert [found.version for found in recorded] == list(range(1, before.version + 2))
            assert sum(event.amount for event in deposits) == before.total + 1
            assert (await fold(system.store, RememberingVault, f"{key}/{number}")).state.total == before.total + 1
            found.append(sum(event.id == "victim" for event in deposits))
            batches |= {found.batch_id for found, event in zip(recorded, deposits, strict=True) if event.id == "victim"}
        assert tuple(found) in ([(2, 1)] if command_id is not None else [(2, 1), (0, 0)]), "the victim in the journal"
        assert len(batches) == (found != [0, 0])


def test_a_transaction_that_keeps_its_actors_is_found_guilty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "abort", lambda self, reason: None)

    async def cancel_one() -> None:
        async with ActorSystem("memory://", shutdown_timeout=0.1) as system:
            victim, _ = await by_an_async_handler(system, "x")
            assert await cancel_at(1, victim, Moment.AT_ONCE)
            async with asyncio.timeout(0.5):
                await system.ref(RememberingVault, "x/1").ask(GetTotal())

    with pytest.raises(TimeoutError):
        asyncio.run(cancel_one())
