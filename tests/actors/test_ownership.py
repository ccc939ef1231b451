"""An actor that is owned exclusively is written to by one process at a time, and a shared one by any number."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors import (
    ActorSystem,
    DefinitionError,
    FencedError,
    OwnedElsewhere,
    PersistentActor,
    RecoveryError,
    SnapshotPolicy,
    Stop,
    command_handler,
)
from eventstore import EventStore
from eventstore.backend import Claim, Holder, Lease, Owner
from eventstore.errors import LeaseLost
from tests.actors.faults import Faults
from tests.actors.journals import new_journal
from tests.actors.notebook import Notebook, Read, Wait, Write, WriteAndBreak, texts, until

LONG = 60.0
"""The lease of one who must not lose it, on whatever machine."""

SECONDS = 0.6
"""The lease of one who is to lose it, or whose renewals somebody waits for."""


class Owned(Notebook):
    ownership = "exclusive"


class Anybodys(Notebook):
    ownership = "shared"


@contextlib.asynccontextmanager
async def owner(
    store: EventStore, name: str = "one", *, lease_seconds: float = LONG, **options: object
) -> AsyncIterator[ActorSystem]:
    async with ActorSystem(store, lease_seconds=lease_seconds, name=name, **options) as system:  # type: ignore[arg-type]
        yield system


def die(system: ActorSystem) -> None:
    """The lease is renewed no longer, as when the process is stopped or killed. The rest of it does not know."""
    keeper = system._runtime._ownership._keeper  # type: ignore[union-attr]
    keeper._renew = _never  # type: ignore[method-assign]


async def _never() -> float:
    return 3600.0


# Exclusive


async def test_the_owner_serves_and_its_events_carry_its_epoch(store: EventStore):
    async with owner(store) as system:
        assert await system.ref(Owned, "a").ask(Write(text="1")) == 1
        assert await system.ref(Owned, "a").ask(Write(text="2")) == 2
    assert [recorded.epoch async for recorded in store.read("Owned-a")] == [1, 1]


async def test_another_process_is_told_who_owns_it(store: EventStore, other: EventStore):
    # It is seen to be alive once it renews, and that it may do late.
    seconds = 5 * SECONDS
    async with owner(store, "first of May", lease_seconds=seconds) as one, owner(other, "two") as two:
        await one.ref(Owned, "a").ask(Write(text="1"))
        with pytest.raises(OwnedElsewhere, match="first of May") as caught:
            await two.ref(Owned, "a").ask(Write(text="2"))
        assert caught.value.owner == "first of May"
        assert 0 < caught.value.remaining <= seconds
        # Once it has been seen to be alive, nobody waits for it: it is asked for once.
        claim = other.claim_as
        claims: list[Claim] = []

        async def counted(asked: Claim) -> int | Holder:
            claims.append(asked)
            return await claim(asked)

        other.claim_as = counted  # type: ignore[method-assign]
        with pytest.raises(OwnedElsewhere):
            await two.ref(Owned, "a").ask(Write(text="2"))
        assert len(claims) == 1
        assert two.stats().failures == {}
        assert await one.ref(Owned, "a").ask(Read()) == ["1"]


async def test_what_the_owner_has_let_go_of_another_takes_at_once(store: EventStore, other: EventStore):
    async with owner(store, idle_seconds=0.05) as one, owner(other, "two") as two:
        await one.ref(Owned, "a").ask(Write(text="1"))
        async with asyncio.timeout(20):
            while [held async for held in store.holdings()]:
                await asyncio.sleep(0.01)
        assert await two.ref(Owned, "a").ask(Write(text="2")) == 2


async def until_nothing_is_held(store: EventStore) -> None:
    async with asyncio.timeout(20):
        while [held async for held in store.holdings()]:
            await asyncio.sleep(0.01)


async def test_what_cannot_be_recovered_here_another_process_can_have(store: EventStore, other: EventStore):
    class Outdated(PersistentActor[list[str]], kind="Owned"):
        """It has no handler for what is stored."""

        ownership = "exclusive"

        @command_handler
        def read(self, command: Read) -> list[str]:
            return self.state

    async with owner(store) as one:
        await one.ref(Owned, "a").ask(Write(text="1"))
    async with owner(store, "outdated") as one, owner(other, "two") as two:
        with pytest.raises(RecoveryError):
            await one.ref(Outdated, "a").ask(Read())
        await until_nothing_is_held(store)
        assert await two.ref(Owned, "a").ask(Read()) == ["1"]


async def test_what_supervision_has_stopped_here_another_process_can_have(store: EventStore, other: EventStore):
    class Stopping(Owned):
        supervision = Stop()

    async with owner(store) as one, owner(other, "two") as two:
        await one.ref(Stopping, "a").ask(Write(text="1"))
        with pytest.raises(ValueError, match="broken"):
            await one.ref(Stopping, "a").ask(WriteAndBreak(text="lost"))
        await until_nothing_is_held(store)
        assert await two.ref(Stopping, "a").ask(Write(text="2")) == 2
        assert one.stats().stopped == 1


async def test_a_closed_system_owns_nothing(store: EventStore, other: EventStore):
    async with owner(store) as one:
        await one.ref(Owned, "a").ask(Write(text="1"))
    assert await store.owners() == []
    began = time.monotonic()
    async with owner(other, "two") as two:
        assert await two.ref(Owned, "a").ask(Write(text="2")) == 2
    assert time.monotonic() - began < LONG / 3
    assert [recorded.epoch async for recorded in store.read("Owned-a")] == [1, 2]


async def test_an_owner_that_died_is_waited_out(store: EventStore, other: EventStore):
    async with owner(store, lease_seconds=SECONDS) as one, owner(other, "two") as two:
        await one.ref(Owned, "a").ask(Write(text="1"))
        die(one)
        began = time.monotonic()
        assert await two.ref(Owned, "a").ask(Write(text="2")) == 2
        # Not before it has ended by its own clock, and no longer than its own lease.
        assert not one._runtime._ownership._keeper.is_held  # type: ignore[union-attr]
        assert time.monotonic() - began < LONG / 3


async def test_an_owner_that_was_overtaken_is_fenced_and_answers_everybody(store: EventStore, other: EventStore):
    """Its lease is made to look valid: what keeps it from writing is the store alone."""
    async with owner(store, lease_seconds=SECONDS) as one, owner(other, "two") as two:
        await one.ref(Owned, "a").ask(Write(text="1"))
        die(one)
        assert await two.ref(Owned, "a").ask(Write(text="2")) == 2
        one._runtime._ownership._keeper.ends_at = time.monotonic() + 60  # type: ignore[union-attr]
        asked = [asyncio.create_task(one.ref(Owned, "a").ask(Write(text="late"))) for _ in range(10)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(result) for result in results} == {FencedError}
        assert one.stats().live == 0
        assert await two.ref(Owned, "a").ask(Read()) == ["1", "2"]
    assert await texts(store, kind="Owned") == ["1", "2"]


async def test_an_actor_that_was_fenced_or_could_not_recover_keeps_nothing_in_memory(store: EventStore):
    class Breaking(Owned, kind="Owned"):
        recoveries = 0

        def recovered(self) -> None:
            type(self).recoveries += 1
            if type(self).recoveries > 1:
                raise ValueError("broken")

    async with owner(store) as one:
        held = one.ref(Breaking, "a")
        await held.ask(Write(text="1"))
        await store.claim("Owned-a")
        for error in (FencedError, RecoveryError):
            with pytest.raises(error):
                await held.ask(Write(text="2"))
            # Who has the reference has the cell until it is asked again.
            assert not hasattr(held._cell, "actor")
        assert one.stats().live == 0


async def test_when_the_lease_has_run_out_nothing_is_answered_from_memory(store: EventStore, other: EventStore):
    async with owner(store, lease_seconds=SECONDS) as one, owner(other, "two") as two:
        await one.ref(Owned, "a").ask(Write(text="1"))
        die(one)
        await asyncio.sleep(SECONDS)
        assert await two.ref(Owned, "a").ask(Write(text="2")) == 2
        with pytest.raises((FencedError, LeaseLost, OwnedElsewhere, TimeoutError)):
            async with asyncio.timeout(SECONDS / 2):
                await one.ref(Owned, "a").ask(Read())


async def test_a_lease_that_ran_out_and_is_renewed_brings_back_nothing(store: EventStore, other: EventStore):
    async with (
        owner(store, lease_seconds=SECONDS) as one,
        owner(other, "two", lease_seconds=5 * SECONDS) as two,
    ):
        await one.ref(Owned, "a").ask(Write(text="1"))
        keeper = one._runtime._ownership._keeper  # type: ignore[union-attr]
        renew = keeper._renew
        asleep = threading.Event()

        async def renew_when_awake() -> float:
            return await renew() if not asleep.is_set() else 0.01

        keeper._renew = renew_when_awake  # type: ignore[method-assign]
        asleep.set()
        assert await two.ref(Owned, "a").ask(Write(text="2")) == 2
        asleep.clear()
        await until(lambda: keeper.is_held)
        # On a busy machine it may be without a lease again, and then it owns nothing either.
        with pytest.raises((OwnedElsewhere, LeaseLost)):
            await one.ref(Owned, "a").ask(Read())


async def test_a_snapshot_of_an_owner_that_was_overtaken_is_refused(store: EventStore, other: EventStore):
    class Kept(Owned):
        snapshot_policy = SnapshotPolicy(on_passivation=True)

    async with owner(store, lease_seconds=SECONDS) as one, owner(other, "two") as two:
        await one.ref(Kept, "a").ask(Write(text="1"))
        die(one)
        await two.ref(Kept, "a").ask(Write(text="2"))
    assert [snapshot.version for snapshot in await store.snapshots("Kept-a")] == [2]


async def test_many_actors_are_claimed_in_few_trips(faults: Faults):
    claims: list[int] = []
    async with faults.store() as store, owner(store) as system:
        claim = faults.journal.claim

        async def counted(asked):
            claims.append(len(asked))
            return await claim(asked)

        store._calls.claims._call = counted  # type: ignore[union-attr]
        await asyncio.gather(*(system.ref(Owned, f"{n}").ask(Read()) for n in range(100)))
    assert sum(claims) == 100
    assert len(claims) <= 5


async def test_the_lease_is_renewed_while_the_loop_is_blocked(store: EventStore, other: EventStore):
    async with owner(store, lease_seconds=SECONDS) as one:
        await one.ref(Owned, "a").ask(Write(text="1"))
        before = (await store.owners())[0].renewals
        keeper = one._runtime._ownership._keeper  # type: ignore[union-attr]
        ended_at, began = keeper.ends_at, time.monotonic()
        # Not a turn for the loop until it has been renewed for longer than it lasts.
        while keeper.ends_at < ended_at + SECONDS:
            assert time.monotonic() < began + 20
            time.sleep(0.01)
        assert (await store.owners())[0].renewals > before


async def test_it_is_seen_who_holds_what(store: EventStore):
    async with owner(store, "web-1") as system:
        await system.ref(Owned, "a").ask(Write(text="1"))
        await system.ref(Owned, "b").ask(Read())
        (info,) = await store.owners()
        assert info.name == "web-1"
        assert 0 < info.remaining <= LONG
        assert [(held.stream_id, held.epoch, held.owner) async for held in store.holdings()] == [
            ("Owned-a", 1, info.id),
            ("Owned-b", 1, info.id),
        ]


async def test_the_system_says_it_for_classes_that_do_not(store: EventStore):
    async with owner(store, ownership="exclusive") as system:
        await system.ref(Notebook, "a").ask(Write(text="1"))
        await system.ref(Anybodys, "a").ask(Write(text="1"))
        assert [held.stream_id async for held in store.holdings()] == ["Notebook-a"]


async def test_an_async_handler_of_an_overtaken_owner_stores_nothing(store: EventStore, other: EventStore):
    going, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Owned):
        @command_handler
        async def wait(self, command: Wait) -> int:
            going.set()
            await go_on.wait()
            self.write(Write(text=command.text))
            return 1

    async with owner(store, lease_seconds=SECONDS) as one, owner(other, "two") as two:
        await one.ref(Slow, "a").ask(Write(text="1"))
        asked = asyncio.create_task(one.ref(Slow, "a").ask(Wait(text="late")))
        await going.wait()
        die(one)
        await two.ref(Slow, "a").ask(Write(text="2"))
        go_on.set()
        with pytest.raises(FencedError):
            await asked
    assert await texts(store, kind="Slow") == ["1", "2"]


async def test_without_a_lease_it_is_said_in_time_that_nothing_is_owned(faults: Faults):
    class Silent:
        async def renew(self, report: bytes) -> None:
            await asyncio.sleep(3600)

        async def end(self) -> None: ...

    faults.lease = lambda _: Silent()  # type: ignore[attr-defined]
    async with faults.store() as store, owner(store, lease_seconds=SECONDS) as system:
        began = time.monotonic()
        with pytest.raises(Exception, match="no lease"):
            await system.ref(Owned, "a").ask(Read())
        assert time.monotonic() - began < 20


class Failing:
    """A lease whose renewals fail so often, as they do when there are no file descriptors left."""

    def __init__(self, lease: Lease, *, renewals: int, has_end: bool = True) -> None:
        self._lease = lease
        self._failing = renewals
        self._has_end = has_end

    async def renew(self, report: bytes) -> None:
        if self._failing:
            self._failing -= 1
            raise OSError(24, "Too many open files")
        await self._lease.renew(report)

    async def end(self) -> None:
        if not self._has_end:
            raise OSError(24, "Too many open files")
        await self._lease.end()


async def test_a_renewal_may_fail_of_anything_and_the_next_is_tried(faults: Faults):
    faults.lease = lambda of: Failing(faults.journal.lease(of), renewals=2)  # type: ignore[attr-defined]
    async with faults.store() as store, owner(store, lease_seconds=6.0) as system:
        assert await system.ref(Owned, "a").ask(Write(text="1")) == 1


async def test_without_file_descriptors_a_lease_on_sqlite_is_renewed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipe = os.pipe
    failing = 1

    def pipe_at_last() -> tuple[int, int]:
        nonlocal failing
        if failing:
            failing -= 1
            raise OSError(24, "Too many open files")
        return pipe()

    async with EventStore.open(new_journal("sqlite", tmp_path)) as store, owner(store, lease_seconds=6.0) as system:
        monkeypatch.setattr(os, "pipe", pipe_at_last)
        assert await system.ref(Owned, "a").ask(Write(text="1")) == 1
        assert failing == 0


async def test_a_lease_that_can_be_neither_renewed_nor_ended_does_not_hinder_the_close(faults: Faults):
    faults.lease = lambda of: Failing(faults.journal.lease(of), renewals=10**6, has_end=False)  # type: ignore[attr-defined]
    async with faults.store() as store, owner(store, lease_seconds=SECONDS) as system:
        with pytest.raises(LeaseLost, match="Too many open files"):
            await system.ref(Owned, "a").ask(Read())
        keeper = system._runtime._ownership._keeper  # type: ignore[union-attr]
    assert not keeper._thread.is_alive()


async def test_a_thread_that_has_ended_does_not_hinder_the_close(faults: Faults):
    async with faults.store() as store, owner(store) as system:
        await system.ref(Owned, "a").ask(Read())
        keeper = system._runtime._ownership._keeper  # type: ignore[union-attr]
        keeper._stopping.set()
        keeper._wake()
        keeper._thread.join()


def test_ownership_is_one_of_two() -> None:
    with pytest.raises(DefinitionError, match="'shared'"):

        class Wrong(PersistentActor[list[str]]):
            ownership = "mine"  # type: ignore[assignment]

    with pytest.raises(DefinitionError, match="'shared'"):
        ActorSystem("memory://", ownership="mine")  # type: ignore[arg-type]


# Shared


async def test_a_fresh_ask_sees_what_another_process_has_stored(store: EventStore, other: EventStore):
    async with ActorSystem(store, catch_up_seconds=3600) as one, ActorSystem(other, catch_up_seconds=3600) as two:
        await one.ref(Notebook, "a").ask(Write(text="1"))
        assert await two.ref(Notebook, "a").ask(Read()) == ["1"]
        await one.ref(Notebook, "a").ask(Write(text="2"))
        assert await two.ref(Notebook, "a").ask(Read(), fresh=True) == ["1", "2"]
        assert await two.ref(Notebook, "a").ask(Read()) == ["1", "2"]


async def test_a_class_may_always_be_fresh(store: EventStore, other: EventStore):
    class Fresh(Notebook):
        always_fresh = True

    async with ActorSystem(store, catch_up_seconds=3600) as one, ActorSystem(other, catch_up_seconds=3600) as two:
        for number in range(5):
            await one.ref(Fresh, "a").ask(Write(text=f"{number}"))
            assert len(await two.ref(Fresh, "a").ask(Read())) == number + 1


async def test_fresh_asks_of_many_actors_share_their_trips(faults: Faults, faulty: ActorSystem):
    refs = [faulty.ref(Notebook, f"{n}") for n in range(60)]
    await asyncio.gather(*(ref.ask(Write(text="1")) for ref in refs))
    faults.loads_at_once = 0
    trips: list[int] = []
    load = faults.journal.load

    async def counted(loads):
        trips.append(len(loads))
        return await load(loads)

    faulty.store._calls.loads._call = counted  # type: ignore[union-attr]
    await asyncio.gather(*(ref.ask(Read(), fresh=True) for ref in refs))
    assert sum(trips) == 60
    assert len(trips) <= 3


async def test_a_live_actor_learns_what_others_stored(store: EventStore, other: EventStore):
    async with ActorSystem(store, catch_up_seconds=0.05) as one, ActorSystem(other, catch_up_seconds=0.05) as two:
        await two.ref(Notebook, "a").ask(Write(text="1"))
        assert await one.ref(Notebook, "a").ask(Read()) == ["1"]
        await asyncio.sleep(0.3)
        await two.ref(Notebook, "a").ask(Write(text="2"))
        async with asyncio.timeout(20):
            while await one.ref(Notebook, "a").ask(Read()) != ["1", "2"]:
                await asyncio.sleep(0.01)


async def test_who_is_overtaken_again_and_again_applies_only_what_is_new(store: EventStore, other: EventStore):
    class Long(Notebook):
        pass

    async with ActorSystem(store, catch_up_seconds=3600) as one, ActorSystem(other, catch_up_seconds=3600) as two:
        for start in range(0, 200, 50):
            await asyncio.gather(*(one.ref(Long, "a").ask(Write(text=f"{n}")) for n in range(start, start + 50)))
        await two.ref(Long, "a").ask(Read())
        loads: list[int] = []
        load = two.store._calls.loads._call  # type: ignore[union-attr]

        async def counted(asked):
            answers = await load(asked)
            loads.append(sum(len(answer.events) for answer in answers))
            return answers

        two.store._calls.loads._call = counted  # type: ignore[union-attr]
        for number in range(6):
            await one.ref(Long, "a").ask(Write(text=f"one {number}"))
            await two.ref(Long, "a").ask(Write(text=f"two {number}"))
        # The first conflict reads all of it; those behind it, what happened since. Before it, at most what the store
        # has told of at once.
        first = [count >= 200 for count in loads].index(True)
        assert sum(loads[:first]) <= 2
        assert sum(loads[first + 2 :]) <= 20
        assert await two.ref(Long, "a").ask(Read()) == await texts(store, kind="Long")


async def test_the_state_that_is_kept_for_conflicts_is_a_copy(store: EventStore, other: EventStore):
    async with ActorSystem(store, catch_up_seconds=3600) as one, ActorSystem(other, catch_up_seconds=3600) as two:
        for number in range(10):
            await one.ref(Notebook, "a").ask(Write(text=f"one {number}"))
            for _ in range(3):
                await two.ref(Notebook, "a").ask(Write(text=f"two {number}"))
        assert await two.ref(Notebook, "a").ask(Read(), fresh=True) == await texts(store)
        await store.truncate("Notebook-a", 10, reason="a test")


async def test_a_leases_report_is_what_the_system_says_of_itself(store: EventStore):
    import orjson

    async with owner(store) as system:
        await system.ref(Owned, "a").ask(Write(text="1"))
        (info,) = await store.owners()
        assert orjson.loads(info.report).keys() >= {"live", "restarts", "last_failure", "dead_letters"}


async def test_an_owner_is_for_one_run_of_a_process(store: EventStore):
    assert Owner(b"0" * 16, "name", 1.0).seconds == 1.0
    async with owner(store) as one, owner(store, "two") as two:
        await one.ref(Owned, "a").ask(Write(text="1"))
        await two.ref(Owned, "b").ask(Write(text="1"))
        assert len({info.id for info in await store.owners()}) == 2
