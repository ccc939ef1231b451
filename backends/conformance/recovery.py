"""Recovery: an actor on this backend comes back as it was, and shows nothing that is not stored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import pytest
from pydantic import BaseModel

from actors import (
    ActorSystem,
    Command,
    PersistentActor,
    RecoveryError,
    Restart,
    SnapshotPolicy,
    Stop,
    Supervision,
    command_handler,
    event_handler,
    fold,
)
from actors.actor import stream_id_of
from backends.conformance.cases import case
from backends.conformance.events import Happened, collect, happened, numbers
from backends.conformance.fixtures import StoreFixtures, reopened
from eventstore.backend import AppendOutcome, Backend, Batch
from eventstore.errors import ActorStopped, BackendUnavailable, ConcurrencyError, OutcomeUnknown
from eventstore.events import Snapshot
from eventstore.snapshots import new_snapshot
from eventstore.store import EventStore


class Add(Command[list[int]]):
    """Answered with all numbers."""

    numbers: tuple[int, ...]


class AddSlowly(Add):
    """Handled by an `async def` handler."""


class Show(Command[list[int]]):
    pass


class Numbers(BaseModel):
    numbers: list[int] = []


class Collector(PersistentActor[Numbers]):
    """Keeps the numbers it was sent, and notes how it came to them."""

    supervision: ClassVar[Supervision] = Restart(first_pause_seconds=0.0)
    notes: ClassVar[list[str]] = []

    @command_handler
    def add(self, command: Add) -> list[int]:
        self.persist(*happened(*command.numbers))
        return list(self.state.numbers)

    @command_handler
    async def add_slowly(self, command: AddSlowly) -> list[int]:
        self.notes.append(f"{command.numbers} starts")
        await self.persist(*happened(*command.numbers))
        self.notes.append(f"{command.numbers} is durable")
        return list(self.state.numbers)

    @command_handler
    def show(self, command: Show) -> list[int]:
        self.notes.append("shows")
        return list(self.state.numbers)

    @event_handler
    def happened(self, event: Happened) -> None:
        if event.number < 0:
            raise ValueError("a negative number")
        self.notes.append(f"{event.number} at {self.version}")
        self.state.numbers.append(event.number)

    def recovered(self) -> None:
        self.notes.append("recovered")


class Stopping(Collector, kind="Collector"):
    supervision: ClassVar[Supervision] = Stop()


class Snapshotting(Collector, kind="Collector"):
    snapshot_policy = SnapshotPolicy(every=3, keep=2)


STREAM = stream_id_of(Collector, "a")


class RecoveryContract(StoreFixtures):
    @pytest.fixture(autouse=True)
    def notes(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        notes: list[str] = []
        monkeypatch.setattr(Collector, "notes", notes)
        return notes

    # From the journal

    @case("C153")
    async def test_all_events_are_applied_in_order_then_the_actor_is_recovered_once_then_it_serves(
        self, store: EventStore, notes: list[str]
    ) -> None:
        await store.append(STREAM, happened(7, 8, 9))
        async with ActorSystem(store) as system:
            collector = system.ref(Collector, "a")
            asks = [collector.ask(Show()), collector.ask(Show())]
            assert await asyncio.gather(*asks) == [[7, 8, 9], [7, 8, 9]]
        assert notes == ["7 at 1", "8 at 2", "9 at 3", "recovered", "shows", "shows"]

    @case("C154")
    async def test_commands_sent_during_recovery_are_served_after_it_in_their_order(self, store: EventStore) -> None:
        await store.append(STREAM, happened(0))
        async with ActorSystem(store) as system:
            collector = system.ref(Collector, "a")
            asks = [collector.ask(Add(numbers=(number,))) for number in range(1, 20)]
            replies = await asyncio.gather(*asks)
        assert replies == [list(range(number + 1)) for number in range(1, 20)]
        assert await numbers(store.read(STREAM)) == list(range(20))

    @case("C155")
    async def test_an_event_that_cannot_be_applied_stops_the_actor_before_any_command(
        self, store: EventStore, notes: list[str]
    ) -> None:
        await store.append(STREAM, happened(1, -1, 2))
        async with ActorSystem(store) as system:
            collector = system.ref(Stopping, "a")
            asks = [collector.ask(command) for command in (Show(), Add(numbers=(3,)))]
            for outcome in await asyncio.gather(*asks, return_exceptions=True):
                assert isinstance(outcome, RecoveryError)
                assert all(part in str(outcome) for part in (STREAM, "version 2", Happened.__event_type__))
            with pytest.raises(ActorStopped):
                await collector.ask(Show())
        assert notes == ["1 at 1"]
        assert await numbers(store.read(STREAM)) == [1, -1, 2]

    async def test_a_state_is_there_after_the_store_was_closed_and_opened(self, store: EventStore) -> None:
        async with ActorSystem(store) as system:
            await system.ref(Collector, "a").ask(Add(numbers=(1, 2)))
        async with reopened(store) as again, ActorSystem(again) as system:
            assert await system.ref(Collector, "a").ask(Add(numbers=(3,))) == [1, 2, 3]

    async def test_many_actors_recover_at_once_each_from_its_own_events(self, store: EventStore) -> None:
        keys = [str(number) for number in range(60)]
        for key in keys:
            await store.append(stream_id_of(Collector, key), happened(*range(int(key))))
        async with ActorSystem(store) as system:
            replies = await asyncio.gather(*(system.ref(Collector, key).ask(Show()) for key in keys))
        assert replies == [list(range(number)) for number in range(60)]

    async def test_an_actor_of_many_pages_recovers_whole(self, store: EventStore) -> None:
        await store.append(STREAM, happened(*range(2500)))
        async with ActorSystem(store) as system:
            assert await system.ref(Collector, "a").ask(Show()) == list(range(2500))

    # From a snapshot

    @case("C139")
    async def test_recovery_from_a_snapshot_applies_only_the_events_after_it(
        self, store: EventStore, notes: list[str]
    ) -> None:
        await store.append(STREAM, happened(10, 20, 30, 40, 50))
        await _save(store, 3, [10, 20, 30])
        async with ActorSystem(store) as system:
            assert await system.ref(Collector, "a").ask(Show()) == [10, 20, 30, 40, 50]
        assert notes == ["40 at 4", "50 at 5", "recovered", "shows"]

    @case("C140")
    async def test_a_fold_without_snapshots_starts_at_the_first_event_and_gives_the_same_state(
        self, store: EventStore, notes: list[str]
    ) -> None:
        await store.append(STREAM, happened(10, 20, 30, 40, 50))
        await _save(store, 3, [10, 20, 30])
        resumed = await fold(store, Collector, "a")
        notes.clear()
        whole = await fold(store, Collector, "a", use_snapshots=False)
        assert notes == ["10 at 1", "20 at 2", "30 at 3", "40 at 4", "50 at 5"]
        assert (whole.state, whole.version, whole.snapshot_version) == (resumed.state, 5, 0)
        assert (resumed.version, resumed.snapshot_version) == (5, 3)

    async def test_every_snapshot_with_the_events_after_it_folds_to_the_same_state(self, store: EventStore) -> None:
        given = list(range(10, 16))
        await store.append(STREAM, happened(*given))
        for version in range(1, len(given) + 1):
            await _save(store, version, given[:version])
            for through in (None, *range(len(given) + 1)):
                folded = await fold(store, Collector, "a", through=through)
                whole = await fold(store, Collector, "a", through=through, use_snapshots=False)
                assert (folded.state, folded.version) == (whole.state, whole.version)
            await store.delete_snapshots(STREAM)

    @case("C142")
    async def test_with_all_events_removed_the_snapshot_is_the_state_and_the_next_event_follows_it(
        self, store: EventStore, notes: list[str]
    ) -> None:
        await store.append(STREAM, happened(1, 2, 3))
        await _save(store, 3, [1, 2, 3])
        await store.truncate(STREAM, 3, reason="the test")
        async with ActorSystem(store) as system:
            assert await system.ref(Collector, "a").ask(Add(numbers=(4,))) == [1, 2, 3, 4]
        assert notes == ["recovered", "4 at 4"]
        assert [record.version for record in await collect(store.read(STREAM))] == [4]

    async def test_events_that_are_gone_and_in_no_snapshot_are_missed(self, store: EventStore) -> None:
        await store.append(STREAM, happened(1, 2, 3))
        await store.truncate(STREAM, 2, reason="the test")
        async with ActorSystem(store) as system:
            with pytest.raises(RecoveryError):
                await system.ref(Stopping, "a").ask(Show())

    @case("C148")
    async def test_a_snapshot_is_taken_every_so_many_events_and_the_newest_are_kept(self, store: EventStore) -> None:
        async with ActorSystem(store) as system:
            for number in range(1, 14):
                await system.ref(Snapshotting, "a").ask(Add(numbers=(number,)))
                await _saved(store, number - number % 3)
        found = [snapshot for snapshot in await store.snapshots(STREAM) if isinstance(snapshot, Snapshot)]
        assert [snapshot.version for snapshot in found] == [12, 9]
        async with reopened(store) as again:
            folded = await fold(again, Snapshotting, "a")
        assert (folded.state.numbers, folded.snapshot_version) == (list(range(1, 14)), 12)

    # While an append is in flight

    @case("C159")
    async def test_no_reply_leaves_while_its_event_is_in_flight(self, store: EventStore, backend: Backend) -> None:
        line = _Line(backend)
        async with _system_over(line, store) as system:
            collector = system.ref(Collector, "a")
            await collector.ask(Show())
            line.hold()
            asks = [asyncio.create_task(collector.ask(command)) for command in (Add(numbers=(1,)), Show())]
            await line.held()
            await asyncio.sleep(0)
            assert not any(ask.done() for ask in asks)
            assert await numbers(store.read(STREAM)) == []
            line.release()
            assert await asyncio.gather(*asks) == [[1], [1]]

    @case("C159")
    async def test_no_other_command_is_handled_while_an_async_handler_waits_for_its_events(
        self, store: EventStore, notes: list[str]
    ) -> None:
        async with ActorSystem(store) as system:
            collector = system.ref(Collector, "a")
            await asyncio.gather(collector.ask(AddSlowly(numbers=(1,))), collector.ask(AddSlowly(numbers=(2,))))
        assert [note for note in notes if note.startswith("(")] == [
            "(1,) starts",
            "(1,) is durable",
            "(2,) starts",
            "(2,) is durable",
        ]

    @case("C160")
    async def test_a_failed_append_changes_no_state_and_loses_no_command_silently(
        self, store: EventStore, backend: Backend
    ) -> None:
        line = _Line(backend)
        async with _system_over(line, store) as system:
            collector = system.ref(Collector, "a")
            await collector.ask(Add(numbers=(1,)))
            line.failure = BackendUnavailable("cut")
            commands = (Add(numbers=(2,)), AddSlowly(numbers=(3,)), Add(numbers=(4,)), Show())
            outcomes = await asyncio.gather(*(collector.ask(each) for each in commands), return_exceptions=True)
            assert isinstance(outcomes[0], BackendUnavailable)
            assert outcomes[1:] == [[1, 3], [1, 3, 4], [1, 3, 4]]
        assert await numbers(store.read(STREAM)) == [1, 3, 4]

    @case("C171")
    async def test_a_system_that_closes_waits_for_the_append_in_flight(
        self, store: EventStore, backend: Backend
    ) -> None:
        line = _Line(backend)
        async with _system_over(line, store) as system:
            collector = system.ref(Collector, "a")
            await collector.ask(Show())
            line.hold()
            asking = asyncio.create_task(collector.ask(Add(numbers=(1,))))
            await line.held()
            closing = asyncio.create_task(system.close())
            await asyncio.sleep(0.01)
            assert not closing.done()
            line.release()
            await closing
            assert await asking == [1]
        assert await numbers(store.read(STREAM)) == [1]

    @case("C171")
    async def test_a_system_that_waits_no_longer_reports_the_append_in_flight_as_unknown(
        self, store: EventStore, backend: Backend
    ) -> None:
        line = _Line(backend)
        async with _system_over(line, store, shutdown_timeout=0.05) as system:
            collector = system.ref(Collector, "a")
            await collector.ask(Show())
            line.hold()
            asking = asyncio.create_task(collector.ask(Add(numbers=(1,))))
            await line.held()
            await system.close()
            with pytest.raises(OutcomeUnknown):
                await asking
            line.release()
        # The store waited for it all the same.
        assert await numbers(store.read(STREAM)) == [1]

    # Other writers

    async def test_an_actor_that_was_overtaken_decides_again_on_what_is_stored(self, store: EventStore) -> None:
        async with ActorSystem(store) as system:
            collector = system.ref(Collector, "a")
            await collector.ask(Add(numbers=(1,)))
            await store.append(STREAM, happened(2))
            asks = [collector.ask(command) for command in (Add(numbers=(3,)), Add(numbers=(4,)), Show())]
            assert await asyncio.gather(*asks) == [[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4]]
        assert await numbers(store.read(STREAM)) == [1, 2, 3, 4]

    async def test_two_systems_with_one_actor_interleave_no_history(self, store: EventStore, other: EventStore) -> None:
        async with ActorSystem(store) as left, ActorSystem(other) as right:

            async def add(system: ActorSystem, start: int) -> None:
                for number in range(start, start + 10):
                    # Who loses three times in a row is told so, and may try again.
                    while True:
                        with contextlib.suppress(ConcurrencyError):
                            await system.ref(Collector, "a").ask(Add(numbers=(number, number + 100)))
                            break

            await asyncio.gather(add(left, 0), add(right, 50))
            stored = await numbers(store.read(STREAM))
        assert sorted(stored) == sorted([*range(10), *range(50, 60), *range(100, 110), *range(150, 160)])
        assert [stored[index + 1] - stored[index] for index in range(0, len(stored), 2)] == [100] * 20
        assert (await fold(other, Collector, "a")).state.numbers == stored


class _Line:
    """The way to a backend: it can be held up, or cut once. It opens and closes nothing: the backend is in use."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._is_free = asyncio.Event()
        self._is_free.set()
        self._is_held = asyncio.Event()
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def hold(self) -> None:
        self._is_free.clear()

    def release(self) -> None:
        self._is_free.set()

    async def held(self) -> None:
        async with asyncio.timeout(20):
            await self._is_held.wait()

    async def append(self, batches: Sequence[Batch]) -> Sequence[AppendOutcome]:
        if not self._is_free.is_set():
            self._is_held.set()
            await self._is_free.wait()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return await self._backend.append(batches)

    async def open(self) -> None: ...

    async def close(self) -> None: ...


@asynccontextmanager
async def _system_over(
    line: _Line, store: EventStore, *, shutdown_timeout: float = 30.0
) -> AsyncGenerator[ActorSystem, None]:
    async with (
        EventStore(cast("Backend", line), url=store.url) as reached,
        ActorSystem(reached, shutdown_timeout=shutdown_timeout) as system,
    ):
        try:
            yield system
        finally:
            line.release()


async def _save(store: EventStore, version: int, state: list[int]) -> None:
    data = Collector.state_type.dump(Numbers(numbers=state))
    await store.save_snapshot(new_snapshot(STREAM, version, Collector.state_type.fingerprint, data))


async def _saved(store: EventStore, version: int) -> None:
    """Wait until the newest snapshot is of the version; 0: until there is none."""
    newest = -1
    async with asyncio.timeout(20):
        while newest != version:
            await asyncio.sleep(0.001)  # A backend may answer without giving the loop a turn.
            found = await store.snapshots(STREAM, limit=1)
            newest = max((snapshot.version for snapshot in found if isinstance(snapshot, Snapshot)), default=0)
