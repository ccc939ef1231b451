"""A long stream is replayed page by page: the next is on its way while one is applied, and others get their turns."""

from __future__ import annotations

import asyncio
import gc
from typing import ClassVar

import pytest

from actors import ActorSystem, Command, PersistentActor, command_handler, event_handler
from actors.time_travel.folding import fold
from eventstore import BackendUnavailable, Event, EventStore, RecoveryError
from eventstore.backend import EncodedEvent, EventPage, Expected, Load, StreamWrite
from eventstore.codec import encoded_event, new_event_id
from tests.actors.faults import Faults


class Counted(Event, name="replay-pages.counted"):
    number: int


class Look(Command[int]):
    pass


class Counter(PersistentActor[int]):
    applied: ClassVar[int] = 0
    breaks_at: ClassVar[int] = 0

    @command_handler
    def look(self, command: Look) -> int:
        return self.state

    @event_handler
    def counted(self, event: Counted) -> None:
        if event.number == Counter.breaks_at:
            raise ValueError("broken on purpose")
        self.state += 1
        Counter.applied += 1


class Skipped(Event, name="replay-pages.skipped"):
    pass


class Skipper(Counter, kind="Counter"):
    @event_handler
    def skipped(self, event: Skipped) -> None:
        Counter.applied += 1


def altered(event: EncodedEvent) -> EncodedEvent:
    return event._replace(checksum=event.checksum ^ 1)


def stored(type_: str, payload: bytes, schema_version: int = 1, metadata: bytes | None = None) -> EncodedEvent:
    event_id = new_event_id()
    return encoded_event(event_id, type_, schema_version, payload, metadata, event_id)


COUNTED, SKIPPED = "replay-pages.counted", "replay-pages.skipped"


@pytest.fixture
def faults() -> Faults:
    Counter.applied = Counter.breaks_at = 0
    return Faults()


async def fill(store: EventStore, count: int) -> None:
    await store.append("Counter-a", [Counted(number=number) for number in range(1, count + 1)])


def pages_on_their_way() -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "eventstore-next-page"]


async def test_the_next_page_is_asked_for_before_the_one_at_hand_is_applied(faults: Faults):
    applied_when_asked: dict[int, int] = {}

    async def note(load: Load) -> None:
        applied_when_asked[load.after] = Counter.applied

    faults.before_load = note
    async with faults.store() as store, ActorSystem(store) as system:
        await fill(store, 6000)
        assert await system.ref(Counter, "a").ask(Look()) == 6000
    # The first page is too small: it is applied by the time that its successor is asked for.
    _, _, *large = sorted(applied_when_asked)
    assert len(large) >= 2
    assert all(applied_when_asked[after] < after - 1000 for after in large)
    # The end is known: nobody asks what is behind it.
    assert 6000 not in applied_when_asked


async def test_others_get_their_turns_while_a_large_page_is_applied(faults: Faults):
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            before = Counter.applied
            await asyncio.sleep(0)
            most = max(most, Counter.applied - before)

    async with faults.store() as store, ActorSystem(store) as system:
        await fill(store, 3000)
        watching = asyncio.create_task(watch())
        assert await system.ref(Counter, "a").ask(Look()) == 3000
        watching.cancel()
    assert 0 < most <= 200


async def test_a_handler_that_raises_leaves_no_page_on_its_way(faults: Faults):
    async def hang(load: Load) -> None:
        if load.after:
            await asyncio.sleep(60)

    faults.before_load = hang
    Counter.breaks_at = 150
    async with faults.store() as store:
        await fill(store, 1000)
        with pytest.raises(RecoveryError, match="broken on purpose"):
            await fold(store, Counter, "a")
        assert pages_on_their_way() == []


async def test_a_cancelled_replay_leaves_no_page_on_its_way(faults: Faults):
    is_waiting = asyncio.Event()

    async def hang(load: Load) -> None:
        if load.after:
            is_waiting.set()
            await asyncio.sleep(60)

    faults.before_load = hang
    async with faults.store() as store:
        await fill(store, 1000)
        folding = asyncio.create_task(fold(store, Counter, "a"))
        await is_waiting.wait()
        assert len(pages_on_their_way()) == 1
        folding.cancel()
        await asyncio.wait([folding])
        assert folding.cancelled()
        assert pages_on_their_way() == []


async def test_a_page_that_cannot_be_read_fails_the_replay_with_its_error(faults: Faults):
    async def fail(load: Load) -> None:
        if load.after:
            raise BackendUnavailable("gone")

    faults.before_load = fail
    async with faults.store() as store:
        await fill(store, 1000)
        with pytest.raises(BackendUnavailable, match="gone"):
            await fold(store, Counter, "a")
    assert Counter.applied == 200


async def test_a_handler_that_raises_is_told_and_not_the_page_that_failed_meanwhile(
    faults: Faults, caplog: pytest.LogCaptureFixture
):
    async def fail(load: Load) -> None:
        if load.after > 200:
            raise BackendUnavailable("gone")

    faults.before_load = fail
    Counter.breaks_at = 2100
    async with faults.store() as store:
        await fill(store, 6000)
        with pytest.raises(RecoveryError, match="broken on purpose"):
            await fold(store, Counter, "a")
        assert faults.loads[-1].after > 200
    gc.collect()
    assert "never retrieved" not in caplog.text


@pytest.mark.parametrize("neighbours", [[COUNTED], [COUNTED, SKIPPED]], ids=["of one type", "of two types"])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (altered(stored(COUNTED, b'{"number":0}')), "do not match its checksum"),
        (stored(COUNTED, b'{"number":0}')._replace(schema_version=2), "do not match its checksum"),
        (stored("replay-pages.unheard-of", b"{}"), "unheard-of"),
        (stored(COUNTED, b'{"number":0}', schema_version=2), "schema version 2"),
        (stored(COUNTED, b'{"number":"none"}'), "number: Input should be a valid integer"),
        (stored(COUNTED, b'{"number":0},{"number":0}'), "Invalid JSON"),
        (stored(COUNTED, b""), "Invalid JSON"),
    ],
    ids=[
        "damaged",
        "of another schema by damage",
        "of an unknown type",
        "of a newer schema",
        "not valid",
        "two in one",
        "empty",
    ],
)
async def test_the_events_before_one_that_cannot_be_read_are_applied_and_no_others(
    faults: Faults, neighbours: list[str], wrong: EncodedEvent, reason: str
):
    payloads = {COUNTED: b'{"number":7}', SKIPPED: b"{}"}
    before = [stored(type_, payloads[type_]) for type_ in (neighbours * 60)[:60]]
    behind = [stored(type_, payloads[type_]) for type_ in (neighbours * 60)[:60]]
    async with faults.store() as store:
        await faults.journal.append([[StreamWrite("Counter-a", Expected.ANY, [*before, wrong, *behind])]])
        with pytest.raises(RecoveryError, match=reason) as raised:
            await fold(store, Skipper, "a")
    assert Counter.applied == 60
    assert "version 61" in str(raised.value) or getattr(raised.value.__cause__, "version", None) == 61


async def test_a_damaged_event_far_behind_the_first_of_its_page_is_told_with_its_version(faults: Faults):
    events = [stored(COUNTED, b'{"number":7}') for _ in range(3000)]
    events[1500] = altered(events[1500])
    async with faults.store() as store:
        await faults.journal.append([[StreamWrite("Counter-a", Expected.ANY, events)]])
        with pytest.raises(RecoveryError, match="version 1501 is damaged"):
            await fold(store, Counter, "a")
    assert Counter.applied == 1500


async def test_fields_that_only_some_events_of_a_page_have_are_kept(faults: Faults):
    class Curious(Counter, kind="Counter"):
        @event_handler
        def counted(self, event: Counted) -> None:
            self.state += len(event.model_extra)

    events = [stored(COUNTED, b'{"number":7,"colour":"red"}' if n % 3 == 0 else b'{"number":7}') for n in range(900)]
    async with faults.store() as store:
        await faults.journal.append([[StreamWrite("Counter-a", Expected.ANY, events)]])
        assert (await fold(store, Curious, "a")).state == 300


async def test_events_with_and_without_metadata_are_neighbours(faults: Faults):
    events = [stored(COUNTED, b'{"number":1}', metadata=b'{"user":"x"}' if n % 2 else None) for n in range(100)]
    async with faults.store() as store:
        await faults.journal.append([[StreamWrite("Counter-a", Expected.ANY, events)]])
        assert (await fold(store, Counter, "a")).state == 100


def test_columns_of_a_page_are_of_one_length():
    with pytest.raises(ValueError, match="length"):
        EventPage([1, 2], ["a", "a"], [1, 1], [b"{}"], [0, 0])
