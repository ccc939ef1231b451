"""Replicas: what a replicated event is stored with comes back as it was given, and the others have nothing of it."""

from __future__ import annotations

import pytest

from backends.conformance.events import Happened, collect, outcome, write
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import Appended, Backend, EventFilter, Load, Loaded, ReplicaFields, StreamWrite
from eventstore.codec import encode_metadata, encoded_event, new_event_id
from eventstore.errors import ConcurrencyError, DuplicateEventError
from eventstore.events import Metadata, RecordedEvent
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore

REPLICA = ReplicaFields("eu", 7, b'{"clock":{"eu":7,"us":2},"time":1764000000000000}', concurrent=True)
ODD = (
    REPLICA,
    ReplicaFields("eu", 1, b'{"clock":{"eu":1},"time":1}', concurrent=False),
    ReplicaFields("\u00e9 '\"\\\U0001f600", 2**63 - 1, '{ "\u00e9" :\t1 }'.encode(), concurrent=True),
    ReplicaFields("x" * 64, 1, b'{"a":' + b"1" * 100_000 + b"}", concurrent=False),
)


def replicated(stream_id: str, expected: int, *replicas: ReplicaFields | None, epoch: int | None = None) -> StreamWrite:
    """One event for each of them, all of one batch."""
    payloads = (b'{"number":%d}' % number for number in range(len(replicas)))
    made = write(stream_id, *payloads, expected=expected, epoch=epoch)
    events = [event._replace(replica=replica) for event, replica in zip(made.events, replicas, strict=True)]
    return made._replace(events=events)


def fields(recorded: RecordedEvent) -> ReplicaFields | None:
    if recorded.origin is None or recorded.origin_sequence is None or recorded.clock is None:
        assert (recorded.origin, recorded.origin_sequence, recorded.clock, recorded.concurrent) == (None,) * 3 + (
            False,
        )
        return None
    return ReplicaFields(recorded.origin, recorded.origin_sequence, recorded.clock, recorded.concurrent)


async def stored(store: EventStore, stream_id: str) -> list[ReplicaFields | None]:
    return [fields(recorded) for recorded in await collect(store.read(stream_id))]


class ReplicatedEvents(StoreFixtures):
    @pytest.mark.parametrize("replica", ODD, ids=["usual", "first", "odd", "long"])
    async def test_what_a_replica_says_comes_back(
        self, store: EventStore, backend: Backend, replica: ReplicaFields
    ) -> None:
        await backend.append([[replicated("a-1", 0, replica)]])
        [found] = await collect(store.read("a-1"))
        assert fields(found) == replica
        assert found.json() == {"number": 0}
        assert [fields(each) for each in await collect(store.read_all())] == [replica]
        assert [fields(each) for each in await collect(store.read_all(where=EventFilter(kinds=("a",))))] == [replica]
        assert [fields(each) for each in await collect(store.read("a-1", backwards=True))] == [replica]

    async def test_it_survives(self, store: EventStore, backend: Backend) -> None:
        await backend.append([[replicated("a", 0, *ODD)]])
        async with reopened(store) as again:
            assert await stored(again, "a") == list(ODD)

    async def test_others_have_nothing_of_it(self, store: EventStore, backend: Backend) -> None:
        await store.append("a", [Happened(number=1)])
        [outcome_of] = await backend.append([[replicated("a", 1, REPLICA, None, ODD[1])]])
        await store.append("a", [Happened(number=2)])
        assert isinstance(outcome_of, Appended)
        assert await stored(store, "a") == [None, REPLICA, None, ODD[1], None]

    async def test_groups_may_hold_both(self, store: EventStore, backend: Backend) -> None:
        for first in range(0, 60, 20):
            # The second time around the streams, and the statements, are known.
            batches = [
                [replicated(f"s-{number}", first // 20, REPLICA if number % 3 else None)] for number in range(20)
            ]
            assert all(isinstance(each, Appended) for each in await backend.append(batches))
        for number in range(20):
            assert await stored(store, f"s-{number}") == [REPLICA if number % 3 else None] * 3

    async def test_a_loser_takes_nothing_with_it(self, store: EventStore, backend: Backend) -> None:
        await store.append("b", [Happened(number=1)])
        first, lost, last = await backend.append(
            [
                [replicated("a", 0, REPLICA)],
                [replicated("c", 0, ODD[1]), replicated("b", 0, ODD[1])],
                [replicated("b", 1, None, ODD[2])],
            ]
        )
        assert isinstance(first, Appended)
        assert isinstance(lost, ConcurrencyError)
        assert isinstance(last, Appended)
        assert await stored(store, "a") == [REPLICA]
        assert await stored(store, "b") == [None, None, ODD[2]]
        assert await store.version("c") == 0

    async def test_with_metadata_and_a_batch_of_several_streams(self, store: EventStore, backend: Backend) -> None:
        first = new_event_id()
        notes = Metadata(user="ann", tags=("x",))
        events = [
            encoded_event(event_id, "placed", 2, b'{"a":1}', encode_metadata(notes), first)._replace(replica=REPLICA)
            for event_id in (first, new_event_id(), new_event_id())
        ]
        await backend.append([[StreamWrite("a", 0, events[:2]), StreamWrite("b", 0, events[2:])]])
        found = [*await collect(store.read("a")), *await collect(store.read("b"))]
        assert [(each.metadata, each.batch_id.bytes, each.type) for each in found] == [(notes, first, "placed")] * 3
        assert [fields(each) for each in found] == [REPLICA] * 3
        where = EventFilter(tags=("x",), types=("placed",))
        assert [fields(each) for each in await collect(store.read_all(where=where))] == [REPLICA] * 3

    async def test_with_outcomes_of_commands_and_with_an_epoch(self, store: EventStore, backend: Backend) -> None:
        epoch = await store.claim("a")
        for version, command_id in enumerate(("first", "second")):
            told = replicated("a", version, REPLICA, epoch=epoch)._replace(commands=[outcome(command_id)])
            [stored_as] = await backend.append([[told]])
            assert isinstance(stored_as, Appended)
        await backend.append([[replicated("a", 2, ODD[1], epoch=epoch)]])
        assert await stored(store, "a") == [REPLICA, REPLICA, ODD[1]]
        assert [each.epoch for each in await collect(store.read("a"))] == [epoch] * 3

    async def test_again_it_is_known(self, store: EventStore, backend: Backend) -> None:
        batch = [replicated("a", 0, REPLICA, ODD[1])]
        [first] = await backend.append([batch])
        [again] = await backend.append([batch])
        assert isinstance(first, Appended)
        assert again == first._replace(is_duplicate=True)
        [part] = await backend.append([[batch[0]._replace(events=batch[0].events[1:]), replicated("b", 0, REPLICA)]])
        assert isinstance(part, DuplicateEventError)
        assert await stored(store, "a") == [REPLICA, ODD[1]]

    async def test_replay_gets_the_events(self, store: EventStore, backend: Backend) -> None:
        made = replicated("a", 0, REPLICA, None, ODD[2], ODD[1], REPLICA)
        await backend.append([[made]])
        loaded = await store.load(Load("a"))
        assert list(loaded.events) == [
            (version, event.type, event.schema_version, event.payload, event.checksum)
            for version, event in enumerate(made.events, 1)
        ]

    async def test_a_load_tells_whether_its_first_event_is_a_replicas(
        self, store: EventStore, backend: Backend
    ) -> None:
        await backend.append([[replicated("a", 0, REPLICA, None, ODD[2])], [replicated("b", 0, None, REPLICA)]])
        wanted = {
            Load("a"): True,
            Load("a", after=1): False,
            Load("a", after=2): True,
            Load("a", after=3): False,
            Load("a", limit=1): True,
            Load("a", limit=0): False,
            Load("b"): False,
            Load("b", after=1): True,
            Load("c"): False,
        }
        for load, is_stamped in wanted.items():
            assert (await store.load(load)).is_stamped == is_stamped
        together = [each for each in await backend.load(list(wanted)) if isinstance(each, Loaded)]
        assert [each.is_stamped for each in together] == list(wanted.values())

    async def test_with_a_snapshot_that_is_the_first_event_behind_it(self, store: EventStore, backend: Backend) -> None:
        await backend.append([[replicated("a", 0, REPLICA, None, ODD[2])]])
        for version, is_stamped in ((1, False), (2, True), (3, False)):
            await store.save_snapshot(new_snapshot("a", version, "schema", b"{}"))
            assert (await store.load(Load("a"))).is_stamped == is_stamped
            assert (await store.load(Load("a", use_snapshot=False))).is_stamped

    async def test_a_large_group(self, store: EventStore, backend: Backend) -> None:
        replicas = [ODD[1]._replace(origin_sequence=number) for number in range(1, 701)]
        await backend.append([[replicated("a", 0, *replicas)]])
        assert await stored(store, "a") == replicas
