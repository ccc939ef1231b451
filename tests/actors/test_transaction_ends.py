"""Whatever ends a transaction, its actors serve others, from the state that the journal has."""

from __future__ import annotations

import asyncio
import logging

import pytest

from actors import (
    ActorStopped,
    ActorSystem,
    FencedError,
    OwnedElsewhere,
    RecoveryError,
    Stop,
    TransactionExpired,
    command_handler,
)
from backends.conformance.cases import case
from eventstore import BackendUnavailable, EventStore, JournalCorrupt
from eventstore.backend import CommandLookup, CommandsFound, Load
from tests.actors.faults import Faults, refused
from tests.actors.notebook import Break, Notebook, Read, Wait, Write, Written, texts, until
from tests.actors.outside import outside
from tests.loop_clock import LoopClock

LONG = 20.0
"""What runs out when a test puts the clock forward, and not before. An ask waits a little longer than that."""

SHORT = 0.1


class Gated(Notebook, kind="Notebook"):
    """`Wait` persists, waits for the test's gate, and takes its time to be cancelled."""

    gate: asyncio.Event
    inside: asyncio.Event
    cancelled: int
    may_die: asyncio.Event
    swallows = False

    @command_handler
    async def wait(self, command: Wait) -> int:
        self.persist(Written(text=command.text))
        type(self).inside.set()
        try:
            await type(self).gate.wait()
        except asyncio.CancelledError:
            type(self).cancelled += 1
            await type(self).may_die.wait()
            if not type(self).swallows:
                raise
            self.persist(Written(text="after all"))
        return len(self.state.lines)


class Always(Notebook, kind="Notebook"):
    always_fresh = True


class Owned(Notebook):
    ownership = "exclusive"


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    gate, may_die = asyncio.Event(), asyncio.Event()
    may_die.set()
    for name, value in {"gate": gate, "inside": asyncio.Event(), "cancelled": 0, "may_die": may_die}.items():
        monkeypatch.setattr(Gated, name, value, raising=False)
    return gate


async def assert_free(system: ActorSystem, store: EventStore, *keys: str, cls: type[Notebook] = Notebook) -> None:
    """Every actor serves, from what is stored, and waits for nobody's time to be over."""
    for key in keys:
        ref = system.ref(cls, key)
        stored = await texts(store, key, cls.kind)
        assert await outside(ref.ask(Read())) == stored
        assert await outside(ref.ask(Write(text="next"))) == len(stored) + 1
        assert await texts(store, key, cls.kind) == [*stored, "next"]


# Time


@pytest.mark.parametrize("is_default", [True, False], ids=["by the system", "by itself"])
async def test_a_block_that_dawdles_holds_nobody_longer_than_it_may(
    store: EventStore, clock: LoopClock, is_default: bool
):
    options: dict[str, float] = {"transaction_timeout": LONG} if is_default else {}
    async with ActorSystem(store, **options) as system:  # type: ignore[arg-type]
        a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
        await asyncio.gather(a.ask(Read()), b.ask(Read()))
        with pytest.raises(TransactionExpired, match="20 s"):
            async with system.transaction(timeout=None if is_default else LONG) as tx:
                await tx.ask(a, Write(text="1"))
                await tx.ask(b, Read())
                waiting = [outside(ref.ask(Write(text="2"))) for ref in (a, b)]
                await clock.forward(LONG / 2)
                assert [task.done() for task in waiting] == [False, False]
                await clock.forward(LONG / 2)
                assert await asyncio.gather(*waiting) == [1, 1]
                # The block sleeps on: it is told by the next that it asks, and at its end.
                with pytest.raises(TransactionExpired):
                    await tx.ask(a, Write(text="3"))
                with pytest.raises(TransactionExpired):
                    tx.expect(a, version=0)
        assert (await texts(store, "a"), await texts(store, "b")) == (["2"], ["2"])


async def test_an_error_of_the_block_is_told_also_when_the_time_is_up(
    system: ActorSystem, store: EventStore, clock: LoopClock
):
    with pytest.raises(ZeroDivisionError):
        async with system.transaction(timeout=LONG) as tx:
            await tx.ask(system.ref(Notebook, "a"), Write(text="1"))
            await clock.forward(LONG)
            raise ZeroDivisionError
    await assert_free(system, store, "a")


async def test_the_error_of_a_block_is_no_part_of_what_others_are_told(system: ActorSystem):
    a = system.ref(Notebook, "a")
    with pytest.raises(ZeroDivisionError):
        async with system.transaction() as tx:
            await tx.ask(a, Read())
            waiting = outside(a.ask(Break()))
            await asyncio.sleep(0)
            raise ZeroDivisionError
    with pytest.raises(ValueError, match="broken") as broken:
        await waiting
    assert broken.value.__context__ is None


async def test_the_time_is_up_while_it_waits_for_an_actor(
    system: ActorSystem, store: EventStore, clock: LoopClock, gate: asyncio.Event
):
    a, b = system.ref(Gated, "a"), system.ref(Gated, "b")
    handling = outside(b.ask(Wait(text="1")))
    await Gated.inside.wait()
    with pytest.raises(TransactionExpired):
        async with system.transaction(timeout=LONG) as tx:
            await tx.ask(a, Write(text="2"))
            passing = outside(clock.forward(LONG))
            try:
                await tx.ask(b, Write(text="3"))
            finally:
                await assert_free(system, store, "a", cls=Gated)
    await passing
    gate.set()
    assert await handling == 1
    assert await texts(store, "b") == ["1"]
    await assert_free(system, store, "b", cls=Gated)


@pytest.mark.parametrize("swallows", [False, True], ids=["ends", "goes on"])
async def test_the_time_is_up_in_an_async_handler_which_is_cancelled(
    system: ActorSystem, store: EventStore, clock: LoopClock, monkeypatch: pytest.MonkeyPatch, swallows: bool
):
    monkeypatch.setattr(Gated, "swallows", swallows)
    passing = outside(clock.forward_after(Gated.inside, LONG))
    with pytest.raises(TransactionExpired):
        async with system.transaction(timeout=LONG) as tx:
            await tx.ask(system.ref(Gated, "b"), Write(text="1"))
            await tx.ask(system.ref(Gated, "a"), Wait(text="2"))
    await passing
    assert Gated.cancelled == 1
    await assert_free(system, store, "a", "b", cls=Gated)
    assert system.stats().failures == {}


async def test_while_the_handler_is_being_cancelled_only_its_own_actor_waits(
    system: ActorSystem, store: EventStore, clock: LoopClock
):
    Gated.may_die.clear()
    a, b = system.ref(Gated, "a"), system.ref(Gated, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))

    async def work() -> None:
        async with system.transaction(timeout=LONG) as tx:
            await tx.ask(b, Write(text="1"))
            await tx.ask(a, Wait(text="2"))

    working = outside(work())
    await clock.forward_after(Gated.inside, LONG)
    assert Gated.cancelled == 1
    assert await b.ask(Read()) == []
    assert not working.done()
    # While its handler runs, it would see half of a state.
    waiting = outside(a.ask(Read()))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    Gated.may_die.set()
    with pytest.raises(TransactionExpired):
        await working
    assert await waiting == []


async def test_who_is_cancelled_while_the_time_runs_out_is_cancelled(
    system: ActorSystem, store: EventStore, clock: LoopClock
):
    Gated.may_die.clear()

    async def work() -> None:
        async with system.transaction(timeout=LONG) as tx:
            await tx.ask(system.ref(Gated, "a"), Wait(text="1"))

    working = outside(work())
    await Gated.inside.wait()
    working.cancel()
    await clock.forward(LONG)
    Gated.may_die.set()
    with pytest.raises(asyncio.CancelledError):
        await working
    await assert_free(system, store, "a", cls=Gated)


async def test_the_time_is_up_while_an_actor_catches_up(faults: Faults, clock: LoopClock):
    asked, gate = asyncio.Event(), asyncio.Event()

    async def silent(_: Load) -> None:
        asked.set()
        await gate.wait()

    async with faults.store() as store, ActorSystem(store) as system:
        a, b = system.ref(Always, "a"), system.ref(Always, "b")
        await asyncio.gather(a.ask(Write(text="before")), b.ask(Read()))
        await faults.direct.append("Notebook-a", [Written(text="other")])
        passing = outside(clock.forward_after(asked, LONG))
        with pytest.raises(TransactionExpired):
            async with system.transaction(timeout=LONG) as tx:
                await tx.ask(b, Write(text="1"))
                faults.before_load = silent
                await tx.ask(a, Write(text="2"))
        # The database is silent all the time: nobody waits for it longer than he must.
        await passing
        gate.set()
        faults.before_load = None
        assert await a.ask(Read()) == ["before", "other"]
        await assert_free(system, store, "a", "b", cls=Always)


async def test_the_time_is_up_while_it_is_asked_what_is_remembered(faults: Faults, clock: LoopClock):
    asked, gate = asyncio.Event(), asyncio.Event()

    async def find_commands(lookups: list[CommandLookup]) -> list[CommandsFound]:
        asked.set()
        await gate.wait()
        found: list[CommandsFound] = await faults.journal.find_commands(lookups)
        return found

    faults.find_commands = find_commands  # type: ignore[attr-defined]
    async with faults.store() as store, ActorSystem(store) as system:
        await system.ref(Notebook, "a").ask(Read())
        passing = outside(clock.forward_after(asked, LONG))
        with pytest.raises(TransactionExpired):
            async with system.transaction(timeout=LONG, command_id="x") as tx:
                await tx.ask(system.ref(Notebook, "a"), Write(text="1"))
        await passing
        await assert_free(system, store, "a")
        gate.set()


async def test_what_is_being_stored_is_not_ended_by_its_time(faults: Faults, faulty: ActorSystem, clock: LoopClock):
    a = faulty.ref(Notebook, "a")
    await a.ask(Read())
    faults.hold()

    async def work() -> None:
        async with faulty.transaction(timeout=LONG) as tx:
            await tx.ask(a, Write(text="1"))

    working = outside(work())
    await faults.held()
    await clock.forward(2 * LONG)
    assert not working.done()
    # Its actor serves nobody else as long as it is not known what will be in the journal.
    reading = outside(a.ask(Read(), timeout=10 * LONG))
    await clock.forward(0.1)
    assert not reading.done()
    assert len(faults.loads) == 1
    faults.release()
    await working
    assert await reading == await a.ask(Read()) == await texts(faulty.store) == ["1"]


async def test_the_time_is_up_while_the_queue_of_the_store_is_full(
    faults: Faults, faulty: ActorSystem, clock: LoopClock, monkeypatch: pytest.MonkeyPatch
):
    a, b = faulty.ref(Notebook, "a"), faulty.ref(Notebook, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    faults.hold()
    others = [outside(b.ask(Write(text="x"), timeout=10 * LONG))]
    await faults.held()
    others.append(outside(b.ask(Write(text="x"), timeout=10 * LONG)))
    await asyncio.sleep(0)
    monkeypatch.setattr("eventstore.calls.group_commit.MAX_WAITING_BYTES", 1)
    assert faulty.store.commits.is_full

    async def work() -> None:
        async with faulty.transaction(timeout=LONG) as tx:
            await tx.ask(a, Write(text="1"))

    working = outside(work())
    await clock.forward(2 * LONG)
    faults.release()
    with pytest.raises(TransactionExpired):
        await working
    await asyncio.gather(*others)
    assert await a.ask(Read()) == await texts(faulty.store) == []


# Failures


async def test_a_catch_up_that_fails_lets_go_of_the_actor(faults: Faults, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL, "actors")

    async def damaged(load: Load) -> None:
        raise JournalCorrupt("damaged", stream_id=load.stream_id)

    async with faults.store() as store, ActorSystem(store) as system:
        a, b = system.ref(Always, "a"), system.ref(Always, "b")
        await asyncio.gather(a.ask(Read()), b.ask(Read()))
        async with system.transaction() as tx:
            await tx.ask(b, Write(text="1"))
            faults.before_load = damaged
            with pytest.raises(RecoveryError):
                await tx.ask(a, Write(text="2"))
            faults.before_load = None
        assert await texts(store, "b") == ["1"]
        async with asyncio.timeout(LONG):
            while True:
                try:
                    assert await a.ask(Write(text="3")) == 1
                    break
                except RecoveryError:
                    await asyncio.sleep(0.05)
        assert await texts(store, "a") == ["3"]


async def test_an_actor_that_cannot_recover_is_left_out(faults: Faults, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL, "actors")

    async def damaged(load: Load) -> None:
        if load.stream_id == "Notebook-a":
            raise JournalCorrupt("damaged", stream_id=load.stream_id)

    faults.before_load = damaged
    async with faults.store() as store, ActorSystem(store) as system:
        async with system.transaction() as tx:
            with pytest.raises(RecoveryError):
                await tx.ask(system.ref(Notebook, "a"), Write(text="1"))
            await tx.ask(system.ref(Notebook, "b"), Write(text="2"))
        assert await texts(store, "b") == ["2"]


async def test_an_actor_that_is_stopped_while_it_is_wanted_says_so(
    system: ActorSystem, store: EventStore, gate: asyncio.Event, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL, "actors")

    class Stopping(Gated, kind="Notebook"):
        supervision = Stop()

        @command_handler
        async def break_down(self, command: Break) -> None:
            self.persist(Written(text="x"))
            type(self).inside.set()
            await type(self).gate.wait()
            raise ValueError("broken")

    a, b = system.ref(Stopping, "a"), system.ref(Stopping, "b")
    await asyncio.gather(a.ask(Read()), b.ask(Read()))
    breaking = outside(a.ask(Break()))
    await Gated.inside.wait()
    async with system.transaction() as tx:
        await tx.ask(b, Write(text="1"))
        asyncio.get_running_loop().call_later(0.02, gate.set)
        with pytest.raises(ActorStopped, match="broken"):
            await tx.ask(a, Write(text="2"))
        await tx.ask(b, Write(text="3"))
    with pytest.raises(ValueError, match="broken"):
        await breaking
    assert (await texts(store, "a"), await texts(store, "b")) == ([], ["1", "3"])
    a.restart()
    await assert_free(system, store, "a", "b", cls=Stopping)


async def test_a_database_that_does_not_serve_spoils_no_actor(faults: Faults):
    async with faults.store() as store, ActorSystem(store) as system:
        a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
        await asyncio.gather(a.ask(Write(text="before")), b.ask(Read()))
        faults.next.append(refused(BackendUnavailable("away")))
        with pytest.raises(BackendUnavailable):
            async with system.transaction() as tx:
                await tx.ask(a, Write(text="1"))
                await tx.ask(b, Write(text="2"))
        await assert_free(system, store, "a", "b")
        assert system.stats().failures == {}


# Leaving memory


async def test_an_actor_does_not_leave_memory_while_a_transaction_has_it(store: EventStore):
    async with ActorSystem(store, idle_seconds=0.03, transaction_timeout=60) as system:
        a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
        async with system.transaction() as tx:
            await tx.ask(a, Write(text="1"))
            await b.ask(Read())
            await outside(until(lambda: system.stats().live == 1))
            await asyncio.sleep(0.1)
            await tx.ask(a, Write(text="2"))
            assert await tx.ask(b, Write(text="3")) == 1
        await until(lambda: system.stats().live == 0)
        assert await a.ask(Read()) == await texts(store, "a") == ["1", "2"]


async def test_a_transaction_over_more_actors_than_may_live_gets_through(store: EventStore):
    async with ActorSystem(store, max_live=2) as system:
        async with system.transaction() as tx:
            for key in "abcde":
                await tx.ask(system.ref(Notebook, key), Write(text="1"))
            waiting = [outside(system.ref(Notebook, key).ask(Write(text="2"))) for key in "abcdefg"]
            await asyncio.sleep(0.02)
        assert await asyncio.gather(*waiting) == [2, 2, 2, 2, 2, 1, 1]
        for key in "abcde":
            assert await texts(store, key) == ["1", "2"]


# The system's end


@case("C155")
async def test_closing_lets_a_block_finish(store: EventStore):
    async with ActorSystem(store) as system:
        a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")

        async def work() -> None:
            async with system.transaction() as tx:
                await tx.ask(a, Write(text="1"))
                has_a.set()
                await asyncio.sleep(0.1)
                await tx.ask(b, Write(text="2"))

        has_a = asyncio.Event()
        working = outside(work())
        await has_a.wait()
        await system.close()
        await working
    assert (await texts(store, "a"), await texts(store, "b")) == (["1"], ["2"])


async def test_a_block_that_outlasts_the_close_is_told_and_stores_nothing(
    store: EventStore, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL, "actors")
    async with ActorSystem(store, shutdown_timeout=SHORT) as system:
        a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
        with pytest.raises(ActorStopped, match="closed"):
            async with system.transaction() as tx:
                await tx.ask(a, Write(text="1"))
                await outside(system.close())
                with pytest.raises(ActorStopped):
                    await tx.ask(b, Write(text="2"))
        with pytest.raises(ActorStopped):
            async with system.transaction() as tx:
                pass
    assert (await texts(store, "a"), await texts(store, "b")) == ([], [])


async def test_a_handler_that_outlasts_the_close_is_cancelled(store: EventStore, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.CRITICAL, "actors")

    async def work() -> None:
        async with system.transaction() as tx:
            await tx.ask(system.ref(Gated, "b"), Write(text="1"))
            await tx.ask(system.ref(Gated, "a"), Wait(text="2"))

    async with ActorSystem(store, shutdown_timeout=SHORT) as system:
        working = outside(work())
        await Gated.inside.wait()
        await system.close()
        with pytest.raises(ActorStopped):
            await working
    assert Gated.cancelled == 1
    assert (await texts(store, "a"), await texts(store, "b")) == ([], [])


@pytest.mark.parametrize("is_in_time", [True, False])
async def test_what_is_being_stored_at_the_close_is_stored(
    faults: Faults, is_in_time: bool, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL, "actors")
    async with faults.store() as store:
        async with ActorSystem(store, shutdown_timeout=SHORT) as system:
            a, b = system.ref(Notebook, "a"), system.ref(Notebook, "b")
            await asyncio.gather(a.ask(Read()), b.ask(Read()))
            faults.hold()

            async def work() -> None:
                async with system.transaction() as tx:
                    await tx.ask(a, Write(text="1"))
                    await tx.ask(b, Write(text="2"))

            working = outside(work())
            await faults.held()
            closing = outside(system.close())
            await asyncio.sleep(SHORT / 2 if is_in_time else 2 * SHORT)
            faults.release()
            await asyncio.gather(working, closing)
        assert (await texts(store, "a"), await texts(store, "b")) == (["1"], ["2"])


# Ownership


async def test_an_owner_that_is_fenced_under_way_stores_nothing_and_the_others_serve_on(
    store: EventStore, other: EventStore
):
    async with ActorSystem(store) as system:
        a, b, c = system.ref(Owned, "a"), system.ref(Notebook, "b"), system.ref(Owned, "c")
        for only_reads in (False, True):
            with pytest.raises(FencedError, match="Owned-a"):
                async with system.transaction() as tx:
                    await tx.ask(a, Read() if only_reads else Write(text="1"))  # type: ignore[arg-type]
                    await tx.ask(b, Write(text="2"))
                    await tx.ask(c, Write(text="3"))
                    waiting = outside(a.ask(Write(text="late")))
                    await asyncio.sleep(0)
                    await other.claim("Owned-a")
            # As after an append of its own: what waited there is the new owner's to answer.
            with pytest.raises(FencedError):
                await waiting
            assert [recorded.stream_id async for recorded in store.read_all() if b"next" not in recorded.payload] == []
            await assert_free(system, store, "b")
            await assert_free(system, store, "c", cls=Owned)
        assert system.stats().failures == {}


async def test_a_transaction_over_owned_actors_carries_their_epochs(store: EventStore):
    async with ActorSystem(store) as system:
        async with system.transaction() as tx:
            await tx.ask(system.ref(Owned, "a"), Write(text="1"))
            await tx.ask(system.ref(Notebook, "b"), Write(text="2"))
        assert [recorded.epoch async for recorded in store.read_all()] == [1, 0]


async def test_an_actor_that_is_owned_elsewhere_cannot_take_part(store: EventStore, other: EventStore):
    # The other is seen to be alive when it renews: a third of that later.
    async with (
        ActorSystem(store, name="one", lease_seconds=3.0) as one,
        ActorSystem(other, name="two") as two,
    ):
        await one.ref(Owned, "a").ask(Write(text="1"))
        with pytest.raises(OwnedElsewhere, match="one"):
            async with two.transaction() as tx:
                await tx.ask(two.ref(Notebook, "b"), Write(text="2"))
                await tx.ask(two.ref(Owned, "a"), Write(text="3"))
        await assert_free(two, store, "b")
        await assert_free(one, store, "a", cls=Owned)
