"""Recovery: permit, snapshot, events, hook, commands; and anything that does not fit is an error that names it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from actors import (
    ActorSystem,
    PersistentActor,
    RecoveryError,
    ReplicatedActor,
    Restart,
    Stop,
    command_handler,
    event_handler,
    fold,
)
from backends.conformance.cases import case
from eventstore import (
    ActorStopped,
    BackendUnavailable,
    DefinitionError,
    Event,
    EventDecodeError,
    EventStore,
    JournalCorrupt,
    UnknownEventType,
    upcaster,
)
from eventstore.backend import EventPage, Expected, Load, StreamWrite
from eventstore.codec import checksum_of, encoded_event, new_event_id
from eventstore.events import Snapshot
from eventstore.snapshots import new_snapshot
from tests.actors.faults import Faults
from tests.actors.notebook import Notebook, Page, Read, Refuse, Unhandled, Wait, Write, Written, served, texts, until
from tests.loop_clock import LoopClock


async def write(store: EventStore, *lines: str, kind: str = "Notebook", key: str = "a") -> None:
    await store.append(f"{kind}-{key}", [Written(text=line) for line in lines])


async def write_raw(store: EventStore, type: str, payload: bytes, *, schema_version: int = 1) -> None:
    """An event as other code could have written it."""
    event_id = new_event_id()
    event = encoded_event(event_id, type, schema_version, payload, None, event_id)
    await store._backend.append([[StreamWrite("Notebook-a", Expected.ANY, [event])]])


class Quick(Notebook, kind="Notebook"):
    supervision = Restart(first_pause_seconds=0.0)


async def test_an_actor_without_events_starts_in_its_initial_state(system: ActorSystem):
    class Prepared(Notebook):
        def initial_state(self) -> Page:
            return Page(lines=["prepared"])

    assert await system.ref(Notebook, "a").ask(Read()) == []
    assert await system.ref(Prepared, "a").ask(Read()) == ["prepared"]


async def test_asking_an_actor_that_has_no_events_writes_nothing(system: ActorSystem):
    await system.ref(Notebook, "a").ask(Read())
    assert (await system.store.statistics()).streams == 0


async def test_the_state_is_there_after_the_store_was_closed_and_opened(url: str):
    async with ActorSystem(url) as system:
        await system.ref(Notebook, "a").ask(Write(text="1"))
    async with ActorSystem(url) as system:
        assert await system.ref(Notebook, "a").ask(Write(text="2")) == 2
        assert await system.ref(Notebook, "a").ask(Read()) == ["1", "2"]


@case("C153")
async def test_all_events_are_replayed_in_order_then_the_hook_is_called_once_then_commands_are_served(
    system: ActorSystem,
):
    happened: list[str] = []

    class Telling(Notebook):
        def recovered(self) -> None:
            happened.append(f"recovered with {len(self.state.lines)} at {self.version}")

        @command_handler
        def read(self, command: Read) -> list[str]:
            happened.append("reads")
            return list(self.state.lines)

        @event_handler
        def written(self, event: Written) -> None:
            happened.append(event.text)
            self.state.lines.append(event.text)

    await write(system.store, "1", "2", "3", kind="Telling")
    telling = system.ref(Telling, "a")
    await asyncio.gather(telling.ask(Read()), telling.ask(Read()))
    assert happened == ["1", "2", "3", "recovered with 3 at 3", "reads", "reads"]


@case("C153")
async def test_the_hook_is_called_for_an_actor_without_events_too(system: ActorSystem):
    called: list[int] = []

    class Telling(Notebook):
        def recovered(self) -> None:
            called.append(self.version)

    await system.ref(Telling, "a").ask(Read())
    assert called == [0]


@case("C153")
async def test_an_async_hook_is_awaited_before_the_first_command(system: ActorSystem):
    happened: list[str] = []

    class Slow(Notebook):
        async def recovered(self) -> None:
            await asyncio.sleep(0.01)
            happened.append("recovered")

        @command_handler
        def read(self, command: Read) -> list[str]:
            happened.append("reads")
            return []

    await system.ref(Slow, "a").ask(Read())
    assert happened == ["recovered", "reads"]


async def test_the_hook_cannot_persist(system: ActorSystem):
    class Writing(Notebook):
        supervision = Stop()

        def recovered(self) -> None:
            self.persist(Written(text="x"))

    with pytest.raises(Exception, match="only while a command handler"):
        await system.ref(Writing, "a").ask(Read())
    assert await system.store.version("Writing-a") == 0


async def test_a_hook_that_raises_fails_the_recovery_and_no_command_is_served(system: ActorSystem):
    class Failing(Notebook):
        supervision = Stop()

        def recovered(self) -> None:
            raise OSError("no such thing")

    with pytest.raises(RecoveryError, match="OSError: no such thing"):
        await system.ref(Failing, "a").ask(Read())


async def test_a_hook_that_times_out_is_not_mistaken_for_a_slow_journal(system: ActorSystem):
    class Failing(Notebook):
        supervision = Stop()

        async def recovered(self) -> None:
            raise TimeoutError("the other service")

    with pytest.raises(RecoveryError, match="the other service"):
        await system.ref(Failing, "a").ask(Read())


@case("C154")
async def test_commands_sent_during_recovery_are_served_after_it_in_their_order(faults: Faults, faulty: ActorSystem):
    gate = asyncio.Event()

    async def wait(_: Load) -> None:
        await gate.wait()

    faults.before_load = wait
    await faults.direct.append("Notebook-a", [Written(text="0")])
    notebook = faulty.ref(Notebook, "a")
    asks = [asyncio.create_task(notebook.ask(Write(text=str(number)))) for number in range(1, 20)]
    await until(lambda: bool(faults.loads))
    assert not any(ask.done() for ask in asks)
    gate.set()
    assert await asyncio.gather(*asks) == list(range(2, 21))
    assert await texts(faulty.store) == [str(number) for number in range(20)]


async def test_an_actor_that_is_asked_by_many_at_once_recovers_once(faults: Faults, faulty: ActorSystem):
    await faults.direct.append("Notebook-a", [Written(text="0")])
    await asyncio.gather(*(faulty.ref(Notebook, "a").ask(Read()) for _ in range(50)))
    assert len(faults.loads) == 1


async def test_many_cold_actors_share_the_trips_to_the_database(faults: Faults, faulty: ActorSystem):
    trips = 0
    real = faults.load

    async def counting(loads):
        nonlocal trips
        trips += 1
        return await real(loads)

    faulty.store._calls.loads._call = counting
    await asyncio.gather(*(faulty.ref(Notebook, str(number)).ask(Read()) for number in range(50)))
    assert trips <= 3


async def test_only_so_many_recover_at_once(faults: Faults):
    recovering = most = 0

    class Slow(Notebook):
        def initial_state(self) -> Page:
            nonlocal recovering, most
            recovering += 1
            most = max(most, recovering)
            return Page()

        def recovered(self) -> None:
            nonlocal recovering
            recovering -= 1

    async def take_time(_: Load) -> None:
        await asyncio.sleep(0)

    faults.before_load = take_time
    async with faults.store() as store, ActorSystem(store, recoveries_at_once=5) as system:
        await asyncio.gather(*(system.ref(Slow, str(number)).ask(Read()) for number in range(30)))
    assert most == 5


async def test_hooks_that_ask_other_cold_actors_do_not_keep_them_from_recovering(url: str):
    async with ActorSystem(url, recoveries_at_once=2, ask_timeout=20.0) as system:

        class Leading(Notebook):
            async def recovered(self) -> None:
                await system.ref(Notebook, self.key).ask(Write(text=self.key))

        await asyncio.gather(*(system.ref(Leading, str(number)).ask(Read()) for number in range(6)))


async def test_a_stream_of_many_pages_is_replayed_whole(system: ActorSystem):
    await write(system.store, *(str(number) for number in range(3000)))
    assert await system.ref(Notebook, "a").ask(Read()) == [str(number) for number in range(3000)]


async def test_events_of_very_different_sizes_are_replayed_whole(system: ActorSystem):
    lines = [str(number) + "x" * (100_000 if number % 40 == 0 else 0) for number in range(500)]
    await write(system.store, *lines)
    assert await system.ref(Notebook, "a").ask(Read()) == lines


# Timeouts


@case("C157")
async def test_a_recovery_that_gets_no_events_in_time_fails_and_that_is_not_the_actors_failure(faults: Faults):
    class Strict(Notebook):
        supervision = Stop()

    answers = asyncio.Event()

    async def hang(_: Load) -> None:
        await answers.wait()

    faults.before_load = hang
    async with faults.store() as store, ActorSystem(store, recovery_timeout=0.05) as system:
        for _ in range(3):
            with pytest.raises(BackendUnavailable, match=r"no events came for 0\.05 s: try again"):
                await system.ref(Strict, "a").ask(Read())
        assert (system.stats().stopped, system.stats().failures) == (0, {})
        answers.set()
        assert await served(system.ref(Strict, "a").ask, Read()) == []


async def test_nor_is_it_a_replicated_actors(faults: Faults):
    class Replicated(ReplicatedActor[list[str]]):
        supervision = Stop()

        @command_handler
        def read(self, command: Read) -> list[str]:
            return self.state

    is_slow = True

    async def read_stream(*where: Any, **how: Any) -> Any:
        await asyncio.sleep(60 if is_slow else 0)
        return await faults.journal.read_stream(*where, **how)

    async with (
        faults.store() as store,
        ActorSystem(store, replica="eu", replication_seconds=None, recovery_timeout=0.05) as system,
    ):
        faults.read_stream = read_stream  # type: ignore[attr-defined]
        with pytest.raises(BackendUnavailable, match=r"no events came for 0\.05 s: try again"):
            await system.ref(Replicated, "a").ask(Read())
        assert (system.stats().stopped, system.stats().failures) == (0, {})
        is_slow = False
        assert await served(system.ref(Replicated, "a").ask, Read()) == []


@case("C157")
async def test_a_slow_recovery_that_makes_progress_goes_on(faults: Faults, clock: LoopClock):
    async def take_time(_: Load) -> None:
        await clock.forward(20)

    faults.before_load = take_time
    async with faults.store() as store, ActorSystem(store, recovery_timeout=40, ask_timeout=3600) as system:
        await write(store, *["x" * 1000] * 4000)
        assert len(await system.ref(Notebook, "a").ask(Read())) == 4000
    assert len(faults.loads) * 20 > 40


@case("C157")
async def test_after_a_recovery_that_timed_out_the_actor_serves_when_the_database_answers(
    faults: Faults, clock: LoopClock
):
    asked, answers = asyncio.Event(), asyncio.Event()

    async def hang(_: Load) -> None:
        asked.set()
        await answers.wait()

    faults.before_load = hang
    async with faults.store() as store, ActorSystem(store, recovery_timeout=20, ask_timeout=3600) as system:
        await write(store, "1")
        asking = asyncio.create_task(system.ref(Quick, "a").ask(Read()))
        await clock.forward_after(asked, 20)
        with pytest.raises(BackendUnavailable):
            await asking
        answers.set()
        assert await system.ref(Quick, "a").ask(Read()) == ["1"]


async def test_a_database_that_is_down_at_recovery_is_told_as_it_is(faults: Faults, faulty: ActorSystem):
    async def down(_: Load) -> None:
        raise BackendUnavailable("gone")

    faults.before_load = down
    with pytest.raises(BackendUnavailable, match="gone"):
        await faulty.ref(Quick, "a").ask(Read())
    faults.before_load = None
    assert await faulty.ref(Quick, "a").ask(Read()) == []


# What does not fit


class Fragile(PersistentActor[Page], kind="Notebook"):
    supervision = Stop()
    fails_at = 0
    served = 0

    @command_handler
    def read(self, command: Read) -> list[str]:
        type(self).served += 1
        return list(self.state.lines)

    @event_handler
    def written(self, event: Written) -> None:
        if len(self.state.lines) + 1 == self.fails_at:
            raise ValueError("cannot be applied")
        self.state.lines.append(event.text)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> type[Fragile]:
    monkeypatch.setattr(Fragile, "fails_at", 0)
    monkeypatch.setattr(Fragile, "served", 0)
    return Fragile


@case("C155")
async def test_an_event_handler_that_raises_at_replay_stops_the_recovery_with_stream_version_and_type(
    system: ActorSystem, fragile: type[Fragile]
):
    fragile.fails_at = 2
    await write(system.store, "1", "2", "3")
    with pytest.raises(RecoveryError, match=r"'Notebook-a'.*'tests\.written' raised ValueError at version 2") as raised:
        await system.ref(fragile, "a").ask(Read())
    assert isinstance(raised.value.__cause__, ValueError)
    assert raised.value.stream_id == "Notebook-a"


@case("C155")
async def test_no_command_is_served_by_an_actor_that_could_not_recover(system: ActorSystem, fragile: type[Fragile]):
    fragile.fails_at = 2
    await write(system.store, "1", "2", "3")
    notebook = system.ref(fragile, "a")
    replies = await asyncio.gather(*(notebook.ask(Read()) for _ in range(5)), return_exceptions=True)
    assert [type(reply) for reply in replies] == [RecoveryError] * 5
    with pytest.raises(ActorStopped, match="was stopped after RecoveryError"):
        await notebook.ask(Read())
    assert fragile.served == 0


async def test_an_unknown_event_type_stops_the_recovery_with_stream_version_and_type(
    system: ActorSystem, fragile: type[Fragile]
):
    await write(system.store, "1")
    await write_raw(system.store, "tests.from-newer-code", b"{}")
    with pytest.raises(RecoveryError, match=r"'tests\.from-newer-code' \(stream 'Notebook-a', version 2\)") as raised:
        await system.ref(fragile, "a").ask(Read())
    assert isinstance(raised.value.__cause__, UnknownEventType)


async def test_a_known_event_without_a_handler_stops_the_recovery_with_class_type_and_version(
    system: ActorSystem, fragile: type[Fragile]
):
    await system.store.append("Notebook-a", [Unhandled()])
    with pytest.raises(RecoveryError, match=r"Fragile has no @event_handler for Unhandled .*version 1") as raised:
        await system.ref(fragile, "a").ask(Read())
    assert isinstance(raised.value.__cause__, DefinitionError)
    assert raised.value.version == 1


@pytest.mark.parametrize("payload", [b"{}", b'{"text":1}', b"[]"], ids=["a field is missing", "a wrong type", "a list"])
async def test_an_event_that_cannot_be_decoded_stops_the_recovery_with_stream_version_and_type(
    system: ActorSystem, fragile: type[Fragile], payload: bytes
):
    await write(system.store, "1")
    await write_raw(system.store, "tests.written", payload)
    with pytest.raises(RecoveryError, match=r"'tests\.written' \(stream 'Notebook-a', version 2\)") as raised:
        await system.ref(fragile, "a").ask(Read())
    assert isinstance(raised.value.__cause__, EventDecodeError)


async def test_an_event_of_a_newer_schema_stops_the_recovery_and_says_so(system: ActorSystem, fragile: type[Fragile]):
    await write_raw(system.store, "tests.written", b'{"text":"1"}', schema_version=2)
    with pytest.raises(RecoveryError, match="schema version 2 and the class has 1: it was written by newer code"):
        await system.ref(fragile, "a").ask(Read())


async def test_fields_that_newer_code_added_are_kept_at_replay(system: ActorSystem):
    class Curious(Notebook, kind="Notebook"):
        @event_handler
        def written(self, event: Written) -> None:
            self.state.lines.append(f"{event.text} {event.model_extra}")

    await write_raw(system.store, "tests.written", b'{"text":"1","colour":"red"}')
    assert await system.ref(Curious, "a").ask(Read()) == ["1 {'colour': 'red'}"]


async def test_an_initial_state_that_raises_fails_the_recovery(system: ActorSystem):
    class Unprepared(Notebook):
        supervision = Stop()

        def initial_state(self) -> Page:
            raise KeyError("no")

    with pytest.raises(RecoveryError, match="KeyError"):
        await system.ref(Unprepared, "a").ask(Read())


@pytest.mark.parametrize("versions", [[1, 3], [1, 1], [2, 3], [1, 2, 4]], ids=str)
async def test_a_hole_or_a_repeat_in_the_versions_stops_the_recovery(
    faults: Faults, faulty: ActorSystem, fragile: type[Fragile], versions: list[int]
):
    real = faults.journal.load

    async def damaged(loads):
        [loaded] = await real(loads)
        checksum = checksum_of("tests.written", 1, b'{"text":"x"}', None)
        events = EventPage.of((version, "tests.written", 1, b'{"text":"x"}', checksum) for version in versions)
        return [loaded._replace(events=events, version=versions[-1])]

    faulty.store._calls.loads._call = damaged
    with pytest.raises(RecoveryError, match=r"'Notebook-a'.*versions have a hole or a repeat") as raised:
        await faulty.ref(fragile, "a").ask(Read())
    assert isinstance(raised.value.__cause__, JournalCorrupt)


async def test_a_hole_around_the_version_that_is_asked_for_stops_the_fold(faults: Faults, faulty: ActorSystem):
    real = faults.journal.load

    async def damaged(loads):
        [loaded] = await real(loads)
        checksum = checksum_of("tests.written", 1, b'{"text":"x"}', None)
        events = (
            (version, "tests.written", 1, b'{"text":"x"}', checksum)
            for version in (1, 2, 7, 8)
            if version > loads[0].after
        )
        return [loaded._replace(events=EventPage.of(events), version=8)]

    faulty.store._calls.loads._call = damaged
    async with asyncio.timeout(5):
        with pytest.raises(RecoveryError, match="the event at version 3 is missing"):
            await fold(faulty.store, Notebook, "a", through=5)


async def test_events_that_are_missing_at_the_end_stop_the_recovery(
    faults: Faults, faulty: ActorSystem, fragile: type[Fragile]
):
    await faults.direct.append("Notebook-a", [Written(text="1")])
    real = faults.journal.load

    async def damaged(loads):
        return [loaded._replace(version=3) for loaded in await real(loads)]

    faulty.store._calls.loads._call = damaged
    with pytest.raises(RecoveryError, match="the event at version 2 is missing: the stream is at version 3"):
        await faulty.ref(fragile, "a").ask(Read())


async def test_a_recovery_that_failed_fails_tells_too_and_logs_them(
    system: ActorSystem, fragile: type[Fragile], caplog: pytest.LogCaptureFixture
):
    fragile.fails_at = 1
    await write(system.store, "1")
    with caplog.at_level(logging.ERROR):
        await system.ref(fragile, "a").tell(Read())
        await until(lambda: "telling 'Notebook-a' a Read failed: RecoveryError" in caplog.text)


# Looking at an actor without making it live


async def test_fold_gives_the_state_as_of_any_version(system: ActorSystem):
    await write(system.store, "1", "2", "3")
    for version in range(4):
        folded = await fold(system.store, Notebook, "a", through=version)
        assert (folded.state.lines, folded.version) == ([str(number + 1) for number in range(version)], version)
    assert (await fold(system.store, Notebook, "a")).state.lines == ["1", "2", "3"]
    assert (await fold(system.store, Notebook, "a", through=99)).version == 3


@pytest.mark.parametrize("taken_at", [0, 1, 2, 3, 4])
async def test_fold_from_a_snapshot_and_the_events_after_it_equals_fold_from_all_events(
    system: ActorSystem, taken_at: int
):
    await write(system.store, "1", "2", "3", "4")
    if taken_at:
        state = (await fold(system.store, Notebook, "a", through=taken_at, use_snapshots=False)).state
        await system.store.save_snapshot(
            new_snapshot("Notebook-a", taken_at, Notebook.state_type.fingerprint, Notebook.state_type.dump(state))
        )
    for through in (None, 1, 2, 3, 4):
        whole = await fold(system.store, Notebook, "a", through=through, use_snapshots=False)
        folded = await fold(system.store, Notebook, "a", through=through)
        assert folded.state == whole.state
        assert folded.version == whole.version
        usable = taken_at if taken_at <= (4 if through is None else through) else 0
        assert (folded.snapshot_version, whole.snapshot_version) == (usable, 0)


async def test_fold_writes_nothing_and_makes_no_actor_live(system: ActorSystem):
    await write(system.store, "1")
    before = await system.store.statistics()
    await fold(system.store, Notebook, "a")
    await fold(system.store, Notebook, "b")
    assert await system.store.statistics() == before
    assert system.stats().live == 0


async def test_fold_raises_what_a_recovery_would(system: ActorSystem):
    await write_raw(system.store, "tests.written", b"{}")
    with pytest.raises(RecoveryError):
        await fold(system.store, Notebook, "a")


async def test_a_refusal_during_recovery_is_answered_after_it(system: ActorSystem):
    with pytest.raises(Exception, match=r"^no$"):
        await system.ref(Notebook, "a").ask(Refuse())


class Later(Event, name="tests.later", version=2):
    text: str


async def test_an_event_of_an_older_schema_stops_the_recovery_and_says_so(system: ActorSystem):
    class Reader(PersistentActor[Page], kind="Notebook"):
        supervision = Stop()

        @command_handler
        def wait(self, command: Wait) -> int: ...

        @event_handler
        def later(self, event: Later) -> None: ...

    await write_raw(system.store, "tests.later", b'{"text":"1"}', schema_version=1)
    with pytest.raises(RecoveryError, match="schema version 1, the class has 2, and no upcaster leads on from there"):
        await system.ref(Reader, "a").ask(Wait())


def is_snapshot(found: object) -> bool:
    return isinstance(found, Snapshot)


class Renamed(Event, name="tests.renamed", aliases=("tests.former",), version=2):
    text: str


async def test_an_event_under_a_former_name_is_replayed_by_the_class_that_has_it_as_an_alias(system: ActorSystem):
    class Reader(PersistentActor[Page], kind="Notebook"):
        @command_handler
        def read(self, command: Read) -> list[str]:
            return list(self.state.lines)

        @event_handler
        def renamed(self, event: Renamed) -> None:
            self.state.lines.append(event.text)

    await write_raw(system.store, "tests.former", b'{"text":"1"}', schema_version=2)
    await write_raw(system.store, "tests.renamed", b'{"text":"2"}', schema_version=2)
    assert await system.ref(Reader, "a").ask(Read()) == ["1", "2"]


async def test_an_older_event_that_becomes_one_without_a_handler_stops_the_recovery_before_any_part_is_applied(
    system: ActorSystem,
):
    applied: list[str] = []

    @upcaster("tests.halved", from_version=1, into={"tests.written": 1, "tests.renamed": 2})
    def halve(data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        return [("tests.written", data), ("tests.renamed", data)]

    class Half(PersistentActor[Page], kind="Notebook"):
        supervision = Stop()

        @command_handler
        def wait(self, command: Wait) -> int: ...

        @event_handler
        def written(self, event: Written) -> None:
            applied.append(event.text)

    await write_raw(system.store, "tests.halved", b'{"text":"1"}')
    with pytest.raises(RecoveryError, match=r"no @event_handler for Renamed \(stored as 'tests.halved', version 1\)"):
        await system.ref(Half, "a").ask(Wait())
    assert applied == []
