"""Replicated actors over stores of their own: what each journal holds, and what every replica comes to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors import ActorSystem, CommandRejected, DefinitionError, fold, with_metadata
from actors.replicas.peer import Peer, Pull, Pulled, StorePeer
from actors.replicas.replicated_recovery import Found, read_history
from backends.conformance.cases import case
from eventstore import (
    AskTimeout,
    EventStore,
    Metadata,
    NotReplicated,
    ReplicaRefused,
    ReplicationError,
    Snapshot,
    StorageFull,
    TruncationRefused,
)
from eventstore.backend import AppendOutcome, Backend, Batch
from eventstore.stamp import Stamp
from eventstore.vector_clock import VectorClock
from tests.actors.journals import new_journal
from tests.replication.ledger import (
    Accounts,
    Balance,
    BeBusy,
    Busy,
    Deposit,
    KeptLedger,
    Ledger,
    Note,
    OverdraftFound,
    Read,
    Ruled,
    Withdraw,
)
from tests.replication.replicas import Replicas, journaled


async def lines(system: ActorSystem, actor: type[Ledger] = Ledger, key: str = "x") -> list[str]:
    return await system.ref(actor, key).ask(Read())


async def note(system: ActorSystem, text: str, actor: type[Ledger] = Ledger, key: str = "x") -> None:
    await system.ref(actor, key).ask(Note(text=text))


def reading(replicas: Replicas, name: str, *others: str) -> dict[str, dict[str, Peer]]:
    """One replica that reads others which were started without it."""
    return {name: {other: StorePeer(other, replicas.stores[other]) for other in others}}


@case("C245", "C249")
async def test_two_replicas_come_to_the_union_and_a_third_gets_all(replicas: Replicas) -> None:
    # What the third could get from either comes once.
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(eu, "a")
    await note(us, "b")
    assert await lines(eu) == ["a"]
    await replicas.sync_all()
    assert await lines(eu) == await lines(us) == ["a", "b"]
    (ap,) = await replicas.start("ap", actors=[Ledger], peers=reading(replicas, "ap", "eu", "us"))
    await replicas.sync(("ap", "eu"), ("ap", "us"), ("ap", "eu"))
    assert await lines(ap) == ["a", "b"]
    assert len(await journaled(replicas.stores["ap"], "Ledger-x")) == 2


@case("C246")
async def test_each_journal_says_what_was_concurrent_there(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(eu, "a")
    await replicas.sync_all()
    await note(eu, "b")
    await note(us, "c")
    await replicas.sync_all()
    await note(us, "d")
    await replicas.sync_all()
    clock = VectorClock
    assert await journaled(replicas.stores["eu"], "Ledger-x") == [
        ("eu", 1, clock({"eu": 1}), False),
        ("eu", 2, clock({"eu": 2}), False),
        ("us", 1, clock({"eu": 1, "us": 1}), True),
        ("us", 2, clock({"eu": 2, "us": 2}), False),
    ]
    assert await journaled(replicas.stores["us"], "Ledger-x") == [
        ("eu", 1, clock({"eu": 1}), False),
        ("us", 1, clock({"eu": 1, "us": 1}), False),
        ("eu", 2, clock({"eu": 2}), True),
        ("us", 2, clock({"eu": 2, "us": 2}), False),
    ]


async def test_a_remote_event_is_the_same_event(replicas: Replicas) -> None:
    eu, _us = await replicas.start("eu", "us", actors=[Ledger])
    await eu.ref(Ledger, "x").ask(Note(text="a+b"), command_id="id-1")
    await replicas.sync_all()
    here, there = [[event async for event in replicas.stores[name].read("Ledger-x")] for name in ("eu", "us")]
    for one, other in zip(here, there, strict=True):
        assert one._replace(position=0, recorded_at=other.recorded_at) == other._replace(position=0)
    assert here[0].batch_id == here[1].batch_id
    assert here[0].metadata is not None
    assert here[0].metadata.command_id == "id-1"


@case("C248")
async def test_a_batch_stays_together(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    for system in (eu, us):
        # At one time, so that they would mingle if each event had a time of its own.
        system.replication.wall = lambda: 1_700_000_000_000_000
    await asyncio.gather(note(eu, "a+b+c"), note(us, "d+e+f"))
    await replicas.sync_all()
    assert await lines(eu) == await lines(us) == ["d", "e", "f", "a", "b", "c"]


@pytest.mark.parametrize("actor", [Ledger, KeptLedger])
@case("C247", "C256", "C264")
async def test_live_replay_and_snapshot_with_tail_agree(replicas: Replicas, actor: type[Ledger]) -> None:
    eu, us, ap = await replicas.start("eu", "us", "ap", actors=[actor])
    for number in range(30):
        await note(eu, f"eu{number}", actor)
        await note(us, f"us{number}", actor)
        if number % 7 == 0:
            await replicas.sync_all(1)
        if number % 11 == 0:
            await note(ap, f"ap{number}", actor)
    await replicas.sync_all()
    expected = await lines(eu, actor)
    assert len(expected) == 63
    clocks = [await system.ref(actor, "x").clock() for system in (eu, us, ap)]
    assert clocks == [VectorClock({"eu": 30, "us": 30, "ap": 3})] * 3
    for system in (eu, us, ap):
        assert await lines(system, actor) == expected
    for name, system in replicas.systems.items():
        store = replicas.stores[name]
        folded = await fold(store, actor, "x")
        assert folded.state.lines == expected
        assert (await fold(store, actor, "x", use_snapshots=False)).state.lines == expected
        await system.close()
        snapshots = await store.snapshots(f"{actor.kind}-x")
        assert bool(snapshots) == (actor is KeptLedger)
        if actor is KeptLedger:
            assert (await fold(store, actor, "x")).snapshot_version > 0
    (again,) = await replicas.start("eu", actors=[actor])
    assert await lines(again, actor) == expected
    assert await again.ref(actor, "x").clock() == clocks[0]
    await note(again, "last", actor)
    assert await lines(again, actor) == [*expected, "last"]


async def test_a_state_as_of_an_earlier_version(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(us, "b")
    await note(eu, "a")
    await note(eu, "c")
    await replicas.sync_all()
    assert await lines(eu) == ["b", "a", "c"]
    assert (await fold(replicas.stores["eu"], Ledger, "x", through=2)).state.lines == ["a", "c"]


async def test_an_event_from_before_the_snapshot_is_put_in_its_place(replicas: Replicas) -> None:
    (us,) = await replicas.start("us", actors=[KeptLedger])
    (eu,) = await replicas.start("eu", actors=[KeptLedger])
    await note(us, "from before", KeptLedger)
    # Nobody has told this replica of the other yet, so it thinks that all it has is stable.
    for number in range(20):
        await note(eu, f"{number}", KeptLedger)
    await eu.close()
    assert await replicas.stores["eu"].snapshots("KeptLedger-x")
    (eu,) = await replicas.start("eu", actors=[KeptLedger], peers=reading(replicas, "eu", "us"))
    assert (await fold(replicas.stores["eu"], KeptLedger, "x")).snapshot_version > 0
    await replicas.sync(("eu", "us"))
    expected = ["from before", *(str(number) for number in range(20))]
    assert await lines(eu, KeptLedger) == expected
    assert (await fold(replicas.stores["eu"], KeptLedger, "x")).state.lines == expected


async def test_an_overdraft_is_noticed_by_one_replica(replicas: Replicas) -> None:
    eu, us, ap = await replicas.start("eu", "us", "ap", actors=[Accounts])
    await eu.ref(Accounts, "a").ask(Deposit(amount=100))
    await replicas.sync_all()
    for system in (eu, us, ap):
        await system.ref(Accounts, "a").ask(Withdraw(amount=80))
    with pytest.raises(CommandRejected):
        await eu.ref(Accounts, "a").ask(Withdraw(amount=80))
    await replicas.sync_all(3)
    for system in (eu, us, ap):
        assert await system.ref(Accounts, "a").ask(Balance()) == -140
    for store in replicas.stores.values():
        found = [event async for event in store.read("account-a") if event.type == OverdraftFound.__event_type__]
        # The first by name writes of it, as often as it became worse, and nobody else does.
        assert {event.origin for event in found} == {"ap"}
        assert found[-1].json() == {"amount": 140}


async def test_what_a_merge_leads_to_is_stored_with_it(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Accounts])
    await us.ref(Accounts, "a").ask(Deposit(amount=100))
    await replicas.sync_all()
    await asyncio.gather(*(system.ref(Accounts, "a").ask(Withdraw(amount=80)) for system in (eu, us)))
    await replicas.sync(("eu", "us"))
    events = [event async for event in replicas.stores["eu"].read("account-a")]
    assert [event.type for event in events[-2:]] == ["Withdrawn", "OverdraftFound"]
    assert events[-1].recorded_at == events[-2].recorded_at


# Waiting for others


async def test_a_reply_waits_for_other_replicas(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger], replication_seconds=0.02)
    ref = eu.ref(Ledger, "x")
    assert await ref.ask(Note(text="a"), replicated=2) == 1
    assert len(await journaled(replicas.stores["us"], "Ledger-x")) == 1
    assert await ref.ask(Note(text="b"), replicated="all") == 2
    assert len(await journaled(replicas.stores["us"], "Ledger-x")) == 2
    with pytest.raises(DefinitionError, match="only 2 replicas take part"):
        await ref.ask(Note(text="c"), replicated=3)
    await us.close()
    with pytest.raises(NotReplicated) as error:
        await ref.ask(Note(text="d"), replicated="all", timeout=1.0)
    assert (error.value.known, error.value.missing, error.value.reply) == (("eu",), ("us",), 4)
    assert error.value.clock == VectorClock({"eu": 4})
    assert await lines(eu) == ["a", "b", "c", "d"]
    # Who has left for good is not waited for.
    await eu.replication.remove("us")
    assert await ref.ask(Note(text="e"), replicated="all", timeout=20) == 5


async def test_a_read_waits_for_what_was_seen_elsewhere(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(eu, "a")
    seen = await eu.ref(Ledger, "x").clock()
    with pytest.raises(AskTimeout, match="did not come to {eu:1} within 0.5 s"):
        await us.ref(Ledger, "x").ask(Read(), after=seen, timeout=0.5)
    reading = asyncio.create_task(us.ref(Ledger, "x").ask(Read(), after=seen))
    await asyncio.sleep(0.01)
    assert not reading.done()
    await replicas.sync(("us", "eu"))
    assert await reading == ["a"]
    assert await us.ref(Ledger, "x").ask(Read(), after=seen) == ["a"]


# What is refused


async def test_a_journal_keeps_its_name(replicas: Replicas) -> None:
    (eu,) = await replicas.start("eu", actors=[Ledger])
    await eu.close()
    with pytest.raises(ReplicaRefused, match="this is the journal of 'eu'"):
        async with ActorSystem(replicas.stores["eu"], replica="us"):
            pass


async def test_a_name_is_not_given_to_another_journal(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(us, "a")
    await replicas.sync_all()
    await eu.close()
    await us.close()
    replicas.stores["us"] = await Replicas.store(replicas, "another")
    other = ActorSystem(replicas.stores["us"], replica="us", replicated=[Ledger], replication_seconds=None)
    async with other:
        await note(other, "b")
        (eu,) = await replicas.start("eu", actors=[Ledger], peers=reading(replicas, "eu", "us"))
        with pytest.raises(ReplicaRefused, match="the name was that of another journal"):
            await replicas.sync(("eu", "us"))
    assert await lines(eu) == ["a"]


async def test_a_replica_that_left_does_not_come_back(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(us, "a")
    await replicas.sync_all()
    await eu.replication.remove("us")
    assert list(eu.replication.others) == []
    await note(us, "b")
    with pytest.raises(ReplicaRefused, match="left for good"):
        await replicas.sync(("eu", "us"))
    assert await lines(eu) == ["a"]
    await eu.close()
    (eu,) = await replicas.start("eu", actors=[Ledger], peers=reading(replicas, "eu", "us"))
    with pytest.raises(ReplicaRefused, match="left for good"):
        await replicas.sync(("eu", "us"))
    with pytest.raises(ReplicationError, match="is this replica"):
        await eu.replication.remove("eu")


async def test_a_database_that_is_no_replica_is_waited_for(replicas: Replicas) -> None:
    store = await replicas.store("empty")
    (eu,) = await replicas.start("eu", actors=[Ledger], peers={"eu": {"us": StorePeer("us", store)}})
    with pytest.raises(ReplicationError, match="no replica's yet"):
        await replicas.sync(("eu", "us"))
    async with ActorSystem(store, replica="us", replicated=[Ledger], replication_seconds=None) as us:
        await note(us, "a")
        await replicas.sync(("eu", "us"))
    assert await lines(eu) == ["a"]


async def test_events_of_a_replicated_actor_are_not_truncated(replicas: Replicas) -> None:
    (eu,) = await replicas.start("eu", actors=[Ledger])
    await note(eu, "a")
    with pytest.raises(TruncationRefused):
        await replicas.stores["eu"].truncate("Ledger-x", 1, reason="to save space")
    assert len(await journaled(replicas.stores["eu"], "Ledger-x")) == 1


async def test_a_replicated_actor_needs_a_named_replica() -> None:
    async with ActorSystem("memory://") as system:
        with pytest.raises(DefinitionError, match="no replica"):
            system.ref(Ledger, "x")
    with pytest.raises(DefinitionError, match="need a name"):
        ActorSystem("memory://", peers={"us": "memory://"})


class Altered:
    """A peer on the way from which something happens to what it says."""

    def __init__(self, store: EventStore, alter: Any) -> None:
        self._peer = StorePeer("us", store)
        self._alter = alter
        self.journal = self._peer.journal
        self.wait = self._peer.wait

    async def pull(self, wish: Pull) -> Pulled:
        return self._alter(await self._peer.pull(wish))  # type: ignore[no-any-return]


async def test_what_is_lost_on_the_way_is_fetched_again(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    for text in "abc":
        await note(us, text)
    lost = [True]

    def alter(pulled: Pulled) -> Pulled:
        if lost.pop() if lost else False:
            return pulled._replace(events=[pulled.events[0], pulled.events[2]])
        return pulled._replace(events=[*reversed(pulled.events), *pulled.events])

    await eu.close()
    (eu,) = await replicas.start("eu", actors=[Ledger], peers={"eu": {"us": Altered(replicas.stores["us"], alter)}})
    with pytest.raises(ReplicationError, match="2 events of 3 came"):
        await replicas.sync(("eu", "us"))
    assert await lines(eu) == []
    await replicas.sync(("eu", "us"))
    assert await lines(eu) == ["a", "b", "c"]


async def test_an_answer_to_another_question_is_not_taken(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(us, "a")

    def alter(pulled: Pulled) -> Pulled:
        # It came late, and was about something of which there is nothing.
        return pulled._replace(wish=pulled.wish._replace(kind="Other"), events=[], size=0)

    await eu.close()
    (eu,) = await replicas.start("eu", actors=[Ledger], peers={"eu": {"us": Altered(replicas.stores["us"], alter)}})
    with pytest.raises(ReplicationError, match="it is asked again"):
        await replicas.sync(("eu", "us"))


async def test_what_comes_before_its_cause_is_not_applied(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    for text in "abc":
        await note(us, text)

    def alter(pulled: Pulled) -> Pulled:
        return pulled._replace(events=pulled.events[1:], size=2)

    await eu.close()
    (eu,) = await replicas.start("eu", actors=[Ledger], peers={"eu": {"us": Altered(replicas.stores["us"], alter)}})
    with pytest.raises(ReplicationError, match="event 2 of 'us' was written after"):
        await replicas.sync(("eu", "us"))
    assert await journaled(replicas.stores["eu"], "Ledger-x") == []
    await note(eu, "still serving")


async def test_what_comes_before_a_cause_that_a_third_replica_wrote_is_not_applied(replicas: Replicas) -> None:
    us, ap = await replicas.start("us", "ap", actors=[Ledger])
    await note(ap, "a")
    await replicas.sync(("us", "ap"))
    await note(us, "b")
    is_whole = [False]

    def alter(pulled: Pulled) -> Pulled:
        # The next one that "us" wrote, and not what it had read before.
        own = [event for event in pulled.events if event.origin == "us"]
        return pulled if is_whole[0] else pulled._replace(events=own, size=len(own))

    (eu,) = await replicas.start("eu", actors=[Ledger], peers={"eu": {"us": Altered(replicas.stores["us"], alter)}})
    with pytest.raises(ReplicationError, match="event 1 of 'us' was written after"):
        await replicas.sync(("eu", "us"))
    assert await journaled(replicas.stores["eu"], "Ledger-x") == []
    is_whole[0] = True
    await replicas.sync(("eu", "us"))
    assert await lines(eu) == ["a", "b"]


async def test_a_rule_is_shown_what_a_snapshot_holds_already(replicas: Replicas) -> None:
    # While it was alone everything was stable at once. Another one that joins now has written without knowing it.
    (eu,) = await replicas.start("eu", actors=[Ruled])
    (ap,) = await replicas.start("ap", actors=[Ruled])
    for text in "abcdefgh":
        await note(eu, text, Ruled)
    await note(ap, "z", Ruled)
    await eu.close()
    await ap.close()
    eu, ap = await replicas.start("eu", "ap", actors=[Ruled])
    assert await lines(eu, Ruled) == list("abcdefgh")
    await replicas.sync_all()
    assert await lines(eu, Ruled) == await lines(ap, Ruled) == [*"abcdefgh", "z|a,b,c,d,e,f,g,h"]


async def test_the_events_of_a_command_come_together_whatever_the_pages_are(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    await note(us, "x")
    await note(us, "a+b+c+d")
    await note(us, "y")
    counts = [0]
    while counts[-1] < 6:
        await eu.replication.pull_from("us", limit=2)
        counts.append(len(await journaled(replicas.stores["eu"], "Ledger-x")))
    assert set(counts) <= {0, 1, 5, 6}


async def test_no_ask_of_a_replicated_actor_lasts_longer_than_its_timeout(replicas: Replicas) -> None:
    (eu,) = await replicas.start("eu", actors=[Busy])
    ref = eu.ref(Busy, "x")
    seen = await ref.clock()
    Busy.is_busy, Busy.may_end = asyncio.Event(), asyncio.Event()
    busy = asyncio.create_task(ref.ask(BeBusy(), timeout=60))
    await Busy.is_busy.wait()
    async with asyncio.timeout(30):
        with pytest.raises(AskTimeout, match="not accepted"):
            await ref.ask(Note(text="never"), after=seen, timeout=0.02)
        with pytest.raises(AskTimeout, match="was not done with what it was asked before"):
            await ref.clock(timeout=0.02)
        assert not busy.done()
    Busy.may_end.set()
    await busy
    assert await lines(eu, Busy) == []


class Stall:
    """Holds up what is appended to a store, and fails so many groups when they may go on."""

    def __init__(self, store: EventStore, failing: Sequence[bool]) -> None:
        self.is_under_way = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self._failing = iter(failing)
        store.append_through(self._append)

    async def _append(self, backend: Backend, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        is_failing = next(self._failing, False)
        self.is_under_way.set()
        await self.may_go_on.wait()
        if is_failing:
            raise StorageFull("there is no room: nothing was stored")
        return await backend.append(batches)


async def test_what_is_being_merged_does_not_count_as_known(replicas: Replicas) -> None:
    eu, _us = await replicas.start("eu", "us", actors=[Ledger])
    arrived = asyncio.Event()

    def alter(pulled: Pulled) -> Pulled:
        arrived.set()
        return pulled

    peers: dict[str, Peer] = {
        "eu": StorePeer("eu", replicas.stores["eu"]),
        "us": Altered(replicas.stores["us"], alter),
    }
    (ap,) = await replicas.start("ap", actors=[Ledger], peers={"ap": peers})
    await replicas.sync(("ap", "eu"), ("ap", "us"))
    assert await lines(ap) == []
    await note(eu, "a")
    await replicas.sync(("us", "eu"))
    arrived.clear()
    stall = Stall(replicas.stores["ap"], failing=[True])
    from_eu = asyncio.create_task(ap.replication.pull_from("eu"))
    await stall.is_under_way.wait()
    # It is in the actor's history now, and not in the journal, where it will never come from this side.
    from_us = asyncio.create_task(ap.replication.pull_from("us"))
    await arrived.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    stall.may_go_on.set()
    with pytest.raises(StorageFull):
        await from_eu
    await from_us
    await replicas.sync(("ap", "us"))
    assert [origin for origin, *_ in await journaled(replicas.stores["ap"], "Ledger-x")] == ["eu"]


async def test_a_snapshot_holds_nothing_that_is_not_stored(replicas: Replicas) -> None:
    # Alone it knows that nobody can write what belongs before: all it has is stable at once.
    (eu,) = await replicas.start("eu", actors=[KeptLedger])
    await note(eu, "a", KeptLedger)
    stall = Stall(replicas.stores["eu"], failing=[False, True])
    first = asyncio.create_task(note(eu, "b+c+d+e+f", KeptLedger))
    await stall.is_under_way.wait()
    second = asyncio.create_task(note(eu, "g", KeptLedger))
    for _ in range(20):
        await asyncio.sleep(0)
    stall.may_go_on.set()
    await first
    with pytest.raises(StorageFull):
        await second
    await eu.close()
    (eu,) = await replicas.start("eu", actors=[KeptLedger])
    assert await lines(eu, KeptLedger) == list("abcdef")
    found = await replicas.stores["eu"].snapshots("KeptLedger-x")
    assert [snapshot.version for snapshot in found if isinstance(snapshot, Snapshot)] == [6]


async def test_what_another_process_overtook_is_merged_again(tmp_path: Path) -> None:
    url = new_journal("sqlite", tmp_path)
    async with EventStore.open(url) as store, ActorSystem("memory://", replica="us", replicated=[Ledger]) as us:
        peers = {"us": us.store}
        one = ActorSystem(store, replica="eu", peers=peers, replicated=[Ledger], replication_seconds=None, name="one")
        other = ActorSystem(url, replica="eu", replicated=[Ledger], replication_seconds=None, name="other")
        async with one, other:
            await note(us, "a")
            overtakings = iter([True, True])

            async def append(backend: Backend, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
                if next(overtakings, False):
                    await note(other, "b")
                return await backend.append(batches)

            assert await lines(one) == []
            store.append_through(append)
            while await one.replication.pull_from("us"):
                pass
            assert sorted(await lines(one)) == ["a", "b", "b"]


async def test_what_another_process_has_merged_meanwhile_is_not_taken_for_ones_own_append(tmp_path: Path) -> None:
    url = new_journal("sqlite", tmp_path)
    async with EventStore.open(url) as store, ActorSystem("memory://", replica="us", replicated=[Ledger]) as us:
        options: dict[str, Any] = {"peers": {"us": us.store}, "replicated": [Ledger], "replication_seconds": None}
        one = ActorSystem(store, replica="eu", name="one", **options)
        other = ActorSystem(url, replica="eu", name="other", **options)
        async with one, other:
            await note(us, "a")
            overtakings = iter([True])

            async def append(backend: Backend, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
                is_of_actor = any(write.stream_id == "Ledger-x" for batch in batches for write in batch)
                if is_of_actor and next(overtakings, False):
                    # Behind an event of its own, it stores the very same events.
                    await note(other, "b")
                    await other.replication.pull_from("us")
                return await backend.append(batches)

            assert await lines(one) == []
            store.append_through(append)
            while await one.replication.pull_from("us"):
                pass
            assert await one.ref(Ledger, "x").ask(Read(), fresh=True) == await lines(other) == ["a", "b"]
            await note(one, "c")
            assert [(origin, sequence) for origin, sequence, *_ in await journaled(store, "Ledger-x")] == [
                ("eu", 1),
                ("us", 1),
                ("eu", 2),
            ]
            assert (await fold(store, Ledger, "x")).state.lines == await lines(one) == ["a", "b", "c"]


async def test_what_another_process_has_merged_during_a_rebuild_is_not_merged_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_journal("sqlite", tmp_path)
    async with EventStore.open(url) as store, ActorSystem("memory://", replica="us", replicated=[KeptLedger]) as us:
        options: dict[str, Any] = {"peers": {"us": us.store}, "replicated": [KeptLedger], "replication_seconds": None}
        await note(us, "early", KeptLedger)
        async with ActorSystem(store, replica="eu", replicated=[KeptLedger]) as eu:
            # Alone, it takes all that it has for stable.
            for text in "abcde":
                await note(eu, text, KeptLedger)
        one = ActorSystem(store, replica="eu", name="one", **options)
        other = ActorSystem(url, replica="eu", name="other", **options)
        async with one, other:
            assert await lines(one, KeptLedger) == list("abcde")
            reads: list[bool] = []

            async def overtaken(*arguments: Any, reaching: Sequence[Stamp] = (), **named: Any) -> Found:
                if reaching and not reads:
                    reads.append(True)
                    await other.replication.pull_from("us")
                return await read_history(*arguments, reaching=reaching, **named)

            monkeypatch.setattr("actors.replicas.replicated_cell.read_history", overtaken)
            await one.replication.pull_from("us")
            assert reads
            wanted = ["early", *"abcde"]
            assert await lines(one, KeptLedger) == await lines(other, KeptLedger) == wanted
            await note(one, "f", KeptLedger)
            assert (await fold(store, KeptLedger, "x")).state.lines == [*wanted, "f"]


async def test_what_is_set_around_an_ask_is_stored_with_its_events(replicas: Replicas) -> None:
    eu, us = await replicas.start("eu", "us", actors=[Ledger])
    with with_metadata(Metadata(user="ann")):
        await note(eu, "a")
    await note(eu, "b")
    await replicas.sync_all()
    assert await lines(us) == ["a", "b"]
    for store in replicas.stores.values():
        assert [event.metadata async for event in store.read("Ledger-x")] == [Metadata(user="ann"), None]
