"""Snapshots are only an optimisation: whatever becomes of them, the state is what the events say, or an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import BaseModel, Field, PlainSerializer, StringConstraints

from actors import (
    ActorSystem,
    PersistentActor,
    RecoveryError,
    SnapshotPolicy,
    Stop,
    command_handler,
    event_handler,
    fold,
)
from actors.state import StateType
from actors.time_travel.blame import blame
from backends.conformance.cases import case
from eventstore import EventStore, SnapshotUnusable
from eventstore.backend import Load, StoredSnapshot
from eventstore.events import RecordedEvent, Snapshot
from eventstore.snapshots import new_snapshot, pack
from tests.actors.faults import Faults
from tests.actors.notebook import Notebook, Page, Read, Wait, Write, WriteAll, Written, texts, until

LIMIT = 1_000_000


class Every3(Notebook):
    snapshot_policy = SnapshotPolicy(every=3, keep=10)


async def versions(store: EventStore, cls: type[PersistentActor[Any]], key: str = "a") -> list[int]:
    found = await store.snapshots(f"{cls.kind}-{key}", limit=100)
    return [snapshot.version for snapshot in found if isinstance(snapshot, Snapshot)]


async def saved(system: ActorSystem) -> None:
    """Wait until no snapshot is on its way."""
    await until(lambda: not system._runtime._upkeep.saves)


async def write_one_by_one(system: ActorSystem, cls: type[Notebook], count: int, key: str = "a") -> None:
    for number in range(count):
        await system.ref(cls, key).ask(Write(text=str(number)))
        await saved(system)


# When one is taken


async def test_by_default_none_is_taken(system: ActorSystem):
    await write_one_by_one(system, Notebook, 10)
    assert await versions(system.store, Notebook) == []


@case("C148")
async def test_one_is_taken_whenever_so_many_events_were_stored(system: ActorSystem):
    await write_one_by_one(system, Every3, 10)
    assert await versions(system.store, Every3) == [9, 6, 3]


@case("C149")
@pytest.mark.parametrize(("counts", "taken"), [([5], [5]), ([7], [7]), ([2, 2], [4]), ([2, 1], [3]), ([3, 3], [6, 3])])
async def test_a_command_with_several_events_that_crosses_the_number_takes_one_at_its_end(
    system: ActorSystem, counts: list[int], taken: list[int]
):
    for count in counts:
        await system.ref(Every3, "a").ask(WriteAll(texts=("x",) * count))
        await saved(system)
    assert await versions(system.store, Every3) == taken


@case("C149")
async def test_commands_that_are_stored_together_take_one_of_what_is_stored(system: ActorSystem):
    replies = await asyncio.gather(*(system.ref(Every3, "a").ask(Write(text=str(number))) for number in range(8)))
    await saved(system)
    [version] = await versions(system.store, Every3)
    [snapshot] = await system.store.snapshots("Every3-a")
    assert isinstance(snapshot, Snapshot)
    assert replies == list(range(1, 9))
    assert version % 3 == 0
    assert Every3.state_type.load(snapshot.data).lines == [str(number) for number in range(version)]


async def test_a_predicate_of_the_users_own_decides_after_every_command_that_stored_events(system: ActorSystem):
    asked: list[tuple[int, int]] = []

    def when(state: Page, version: int) -> bool:
        asked.append((len(state.lines), version))
        return state.lines[-1] == "now"

    class When(Notebook):
        snapshot_policy = SnapshotPolicy(when=when, keep=10)

    for line in ("a", "now", "b", "now"):
        await system.ref(When, "a").ask(Write(text=line))
        await system.ref(When, "a").ask(Read())
        await saved(system)
    assert asked == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert await versions(system.store, When) == [4, 2]


async def test_a_predicate_that_raises_takes_no_snapshot_and_is_logged_and_changes_nothing_else(
    system: ActorSystem, caplog: pytest.LogCaptureFixture
):
    def when(state: Page, version: int) -> bool:
        raise KeyError("no such field")

    class When(Notebook):
        snapshot_policy = SnapshotPolicy(when=when)

    notebook = system.ref(When, "a")
    with caplog.at_level(logging.ERROR):
        assert await notebook.ask(Write(text="1")) == 1
        assert await asyncio.gather(notebook.ask(Write(text="2"), timeout=20), notebook.ask(Read(), timeout=20)) == [
            2,
            ["1", "2"],
        ]
    assert "no such field" in caplog.text
    assert system.stats().failures == {}


async def test_one_is_taken_on_passivation(url: str):
    class Leaving(Notebook):
        snapshot_policy = SnapshotPolicy(on_passivation=True)

    async with EventStore.open(url) as store:
        async with ActorSystem(store) as system:
            await system.ref(Leaving, "a").ask(WriteAll(texts=("x", "y")))
            await system.ref(Leaving, "b").ask(Read())
        assert await versions(store, Leaving, "a") == [2]
        assert await versions(store, Leaving, "b") == []


@case("C148")
async def test_only_the_newest_are_kept(system: ActorSystem):
    class Keep2(Notebook):
        snapshot_policy = SnapshotPolicy(every=1, keep=2)

    await write_one_by_one(system, Keep2, 6)
    assert await versions(system.store, Keep2) == [6, 5]


# What is in it


async def test_a_snapshot_is_of_what_is_durable_and_never_of_what_is_only_decided(faults: Faults, faulty: ActorSystem):
    class Every1(Notebook):
        snapshot_policy = SnapshotPolicy(every=1)

    notebook = faulty.ref(Every1, "a")
    await notebook.ask(Read())
    faults.hold()
    first = asyncio.create_task(notebook.ask(Write(text="1")))
    await faults.held()
    second = asyncio.create_task(notebook.ask(Write(text="2")))
    await asyncio.sleep(0.01)
    assert await versions(faulty.store, Every1) == []
    faults.release()
    await asyncio.gather(first, second)
    await saved(faulty)
    for snapshot in await faulty.store.snapshots("Every1-a"):
        assert isinstance(snapshot, Snapshot)
        lines = Every1.state_type.load(snapshot.data).lines
        assert lines == ["1", "2"][: snapshot.version]


async def test_a_snapshot_of_an_append_that_failed_is_never_saved(faults: Faults, faulty: ActorSystem):
    class Every1(Notebook):
        snapshot_policy = SnapshotPolicy(every=1)

    notebook = faulty.ref(Every1, "a")
    await notebook.ask(Read())
    await faults.direct.append("Every1-a", [Written(text="other")])
    assert await notebook.ask(Write(text="1")) == 2
    await saved(faulty)
    [snapshot] = await faulty.store.snapshots("Every1-a")
    assert isinstance(snapshot, Snapshot)
    assert (snapshot.version, Every1.state_type.load(snapshot.data).lines) == (2, ["other", "1"])


async def test_what_happens_to_the_state_later_does_not_reach_a_snapshot_on_its_way(
    faults: Faults, faulty: ActorSystem
):
    class Every2(Notebook):
        snapshot_policy = SnapshotPolicy(every=2)

    gate = asyncio.Event()

    async def wait(_: StoredSnapshot) -> None:
        await gate.wait()

    faults.before_snapshot = wait
    notebook = faulty.ref(Every2, "a")
    await notebook.ask(WriteAll(texts=("1", "2")))
    await notebook.ask(Write(text="later"))
    gate.set()
    await saved(faulty)
    [snapshot] = await faulty.store.snapshots("Every2-a")
    assert isinstance(snapshot, Snapshot)
    assert Every2.state_type.load(snapshot.data).lines == ["1", "2"]


async def test_a_snapshot_on_its_way_holds_up_no_command(faults: Faults, faulty: ActorSystem):
    class Every1(Notebook):
        snapshot_policy = SnapshotPolicy(every=1)

    gate = asyncio.Event()

    async def wait(_: StoredSnapshot) -> None:
        await gate.wait()

    faults.before_snapshot = wait
    notebook = faulty.ref(Every1, "a")
    for number in range(5):
        assert await notebook.ask(Write(text="x"), timeout=20) == number + 1
    gate.set()


async def test_a_snapshot_that_cannot_be_saved_stops_nobody_and_is_logged(
    faults: Faults, faulty: ActorSystem, caplog: pytest.LogCaptureFixture
):
    class Every1(Notebook):
        snapshot_policy = SnapshotPolicy(every=1)

    async def fail(_: StoredSnapshot) -> None:
        raise SnapshotUnusable("no room for it")

    faults.before_snapshot = fail
    notebook = faulty.ref(Every1, "a")
    with caplog.at_level(logging.ERROR):
        assert await notebook.ask(Write(text="1")) == 1
        await saved(faulty)
    assert "no room for it" in caplog.text
    faults.before_snapshot = None
    assert await notebook.ask(Write(text="2")) == 2
    await saved(faulty)
    assert await versions(faulty.store, Every1) == [2]
    assert faulty.stats().failures == {}


async def test_a_state_that_is_too_large_for_a_snapshot_stops_nobody(url: str):
    class Every1(Notebook):
        snapshot_policy = SnapshotPolicy(every=1)

    async with EventStore.open(url, max_payload_bytes=100) as store, ActorSystem(store) as system:
        for number in range(30):
            assert await system.ref(Every1, "a").ask(Write(text="x" * 80)) == number + 1
            await saved(system)
        assert 0 < max(await versions(store, Every1)) < 30


class Opaque:
    pass


def raising(value: object) -> str:
    raise AttributeError("not that one")


@pytest.mark.parametrize(
    "policy", [SnapshotPolicy(every=1), SnapshotPolicy(on_passivation=True)], ids=["every", "on_passivation"]
)
async def test_a_state_that_cannot_be_written_stops_nobody(
    url: str, caplog: pytest.LogCaptureFixture, policy: SnapshotPolicy
):
    class Unwritable(BaseModel):
        lines: list[str] = Field(default_factory=list[str])
        odd: Annotated[str, PlainSerializer(raising)] = ""

    class Odd(PersistentActor[Unwritable]):
        snapshot_policy = policy

        @command_handler
        def write(self, command: Write) -> int:
            self.persist(Written(text=command.text))
            return len(self.state.lines)

        @event_handler
        def written(self, event: Written) -> None:
            self.state.lines.append(event.text)

    with caplog.at_level(logging.ERROR):
        async with ActorSystem(url) as system:
            assert await system.ref(Odd, "a").ask(Write(text="1"), timeout=20) == 1
            assert await system.ref(Odd, "a").ask(Write(text="2"), timeout=20) == 2
    assert "no snapshot was taken" in caplog.text


# Recovery from it


async def snapshot_at(
    store: EventStore, cls: type[PersistentActor[Any]], version: int, **changes: Any
) -> StoredSnapshot:
    """A snapshot as the actor itself would have taken it then, saved."""
    folded = await fold(store, cls, "a", through=version, use_snapshots=False)
    data = cls.state_type.dump(folded.state)
    snapshot = pack(new_snapshot(f"{cls.kind}-a", version, cls.state_type.fingerprint, data), limit=LIMIT)
    snapshot = snapshot._replace(**changes)
    await store._backend.save_snapshot(snapshot, keep=10)
    return snapshot


async def write(store: EventStore, *lines: str, kind: str = "Seen") -> None:
    await store.append(f"{kind}-a", [Written(text=line) for line in lines])


class Seen(Notebook):
    """Notes which events its handler sees, and at which version."""

    supervision = Stop()
    seen: ClassVar[list[tuple[str, int]]] = []

    @event_handler
    def written(self, event: Written) -> None:
        self.seen.append((event.text, self.version))
        self.state.lines.append(event.text)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(Seen, "seen", seen)
    return seen


@case("C139")
async def test_recovery_from_a_snapshot_applies_only_the_events_after_it(
    system: ActorSystem, seen: list[tuple[str, int]]
):
    await write(system.store, "1", "2", "3", "4", "5")
    await snapshot_at(system.store, Seen, 3)
    seen.clear()
    assert await system.ref(Seen, "a").ask(Read()) == ["1", "2", "3", "4", "5"]
    assert seen == [("4", 4), ("5", 5)]


@case("C140")
async def test_without_snapshots_the_state_is_the_same_from_all_events(system: ActorSystem):
    await write(system.store, "1", "2", "3", "4", "5")
    await snapshot_at(system.store, Seen, 3)
    whole = await fold(system.store, Seen, "a", use_snapshots=False)
    assert (whole.state.lines, whole.version, whole.snapshot_version) == (["1", "2", "3", "4", "5"], 5, 0)
    assert await system.ref(Seen, "a").ask(Read()) == whole.state.lines


@case("C142")
async def test_with_all_events_removed_the_state_and_the_version_come_from_the_snapshot(
    system: ActorSystem, seen: list[tuple[str, int]]
):
    await write(system.store, "1", "2", "3")
    await snapshot_at(system.store, Seen, 3)
    await system.store.truncate("Seen-a", 3, reason="a test")
    seen.clear()
    notebook = system.ref(Seen, "a")
    assert await notebook.ask(Read()) == ["1", "2", "3"]
    assert seen == []
    assert await notebook.ask(Write(text="4")) == 4
    assert [record.version async for record in system.store.read("Seen-a")] == [4]


async def test_events_removed_below_a_snapshot_are_not_missed(system: ActorSystem):
    await write(system.store, "1", "2", "3", "4")
    await snapshot_at(system.store, Seen, 3)
    await system.store.truncate("Seen-a", 2, reason="a test")
    assert await system.ref(Seen, "a").ask(Read()) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("through", [2, 3, 4])
async def test_an_actor_in_memory_goes_on_over_events_of_others_that_were_removed(
    system: ActorSystem, other: EventStore, through: int
):
    notebook = system.ref(Seen, "a")
    assert await notebook.ask(Write(text="1")) == 1
    await write(other, "2", "3", "4")
    await snapshot_at(other, Seen, through)
    await other.truncate("Seen-a", through, reason="a test")
    assert await notebook.ask(Read(), fresh=True) == ["1", "2", "3", "4"]
    assert await notebook.ask(Write(text="5")) == 5


def remove_behind_the_first_page(system: ActorSystem, other: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a first page of events was read, nothing but a snapshot is there of all that was stored till then."""
    loads = system.store._open_calls.loads
    real = loads._call

    async def load(wanted: Sequence[Load]) -> Any:
        found = await real(wanted)
        monkeypatch.setattr(loads, "_call", real)
        end = await other.version("Seen-a")
        await snapshot_at(other, Seen, end)
        await other.truncate("Seen-a", end, reason="a test")
        return found

    monkeypatch.setattr(loads, "_call", load)


async def test_events_that_are_removed_while_they_are_read_are_not_missed(
    system: ActorSystem, other: EventStore, monkeypatch: pytest.MonkeyPatch
):
    lines = [*map(str, range(500))]
    await write(system.store, *lines)
    remove_behind_the_first_page(system, other, monkeypatch)
    notebook = system.ref(Seen, "a")
    assert await notebook.ask(Read()) == lines
    assert await notebook.ask(Write(text="one more")) == 501


@pytest.mark.parametrize("is_live", [True, False])
async def test_events_that_are_removed_behind_an_older_snapshot_are_not_missed(
    system: ActorSystem, other: EventStore, monkeypatch: pytest.MonkeyPatch, is_live: bool
):
    await write(system.store, "1", "2", "3", "4")
    await snapshot_at(system.store, Seen, 2)
    await snapshot_at(system.store, Seen, 4, fingerprint="another")
    loads = system.store._open_calls.loads
    real = loads._call

    async def load(wanted: Sequence[Load]) -> Any:
        if not wanted[0].use_snapshot:
            # The older one was adopted, and what is behind it is asked for.
            monkeypatch.setattr(loads, "_call", real)
            await snapshot_at(other, Seen, 3)
            await other.truncate("Seen-a", 3, reason="a test")
        return await real(wanted)

    monkeypatch.setattr(loads, "_call", load)
    if is_live:
        assert await system.ref(Seen, "a").ask(Read()) == ["1", "2", "3", "4"]
    else:
        assert (await fold(system.store, Seen, "a")).state.lines == ["1", "2", "3", "4"]


async def test_events_that_are_removed_while_they_are_folded_are_not_missed(
    system: ActorSystem, other: EventStore, monkeypatch: pytest.MonkeyPatch
):
    lines = [*map(str, range(500))]
    await write(system.store, *lines)
    remove_behind_the_first_page(system, other, monkeypatch)
    folded = await fold(system.store, Seen, "a")
    assert (folded.state.lines, folded.version, folded.snapshot_version) == (lines, 500, 500)


async def test_a_fold_that_is_to_use_no_snapshot_says_that_events_were_removed_meanwhile(
    system: ActorSystem, other: EventStore, monkeypatch: pytest.MonkeyPatch
):
    await write(system.store, *map(str, range(500)))
    remove_behind_the_first_page(system, other, monkeypatch)
    with pytest.raises(RecoveryError, match=r"Seen-a.*up to version 500 were removed"):
        await fold(system.store, Seen, "a", use_snapshots=False)


@pytest.mark.parametrize("through", [3, 4, 5])
async def test_blame_says_that_the_event_it_found_was_removed_meanwhile(
    system: ActorSystem, monkeypatch: pytest.MonkeyPatch, through: int
):
    await write(system.store, "1", "2", "3", "4", "5")
    read = EventStore.read

    async def read_what_is_left(store: EventStore, stream_id: str, **options: Any) -> AsyncGenerator[RecordedEvent]:
        await store.truncate(stream_id, through, reason="a test")
        async for recorded in read(store, stream_id, **options):
            yield recorded

    monkeypatch.setattr(EventStore, "read", read_what_is_left)
    with pytest.raises(RecoveryError, match=rf"Seen-a.*up to version {through} were removed"):
        await blame(system.store, Seen, "a", pointer="/lines/1")


async def test_events_removed_above_every_snapshot_are_an_error(system: ActorSystem):
    await write(system.store, "1", "2", "3", "4")
    await snapshot_at(system.store, Seen, 2)
    await system.store.truncate("Seen-a", 3, reason="a test")
    with pytest.raises(RecoveryError, match=r"Seen-a"):
        await system.ref(Seen, "a").ask(Read())


@pytest.mark.parametrize("is_all", [False, True])
async def test_events_removed_without_any_snapshot_are_an_error(system: ActorSystem, is_all: bool):
    await write(system.store, "1", "2", "3")
    await system.store.truncate("Seen-a", 3 if is_all else 2, reason="a test")
    with pytest.raises(RecoveryError, match=r"Seen-a.*were removed, and no snapshot"):
        await system.ref(Seen, "a").ask(Read())


async def test_events_removed_below_a_snapshot_that_cannot_be_used_are_an_error(system: ActorSystem):
    await write(system.store, "1", "2", "3")
    await snapshot_at(system.store, Seen, 3, fingerprint="another")
    await system.store.truncate("Seen-a", 3, reason="a test")
    with pytest.raises(RecoveryError, match=r"Seen-a.*were removed, and no snapshot"):
        await system.ref(Seen, "a").ask(Read())


async def test_one_that_stands_for_removed_events_is_found_below_many_of_another_schema(system: ActorSystem):
    await write(system.store, *map(str, range(30)))
    await snapshot_at(system.store, Seen, 3)
    await system.store.truncate("Seen-a", 3, reason="a test")
    for version in range(4, 30):
        await system.store.save_snapshot(new_snapshot("Seen-a", version, "of newer code", b"{}"), keep=25)
    assert await system.ref(Seen, "a").ask(Read()) == [*map(str, range(30))]


async def test_a_snapshot_ahead_of_the_journal_is_an_error(system: ActorSystem):
    await write(system.store, "1", "2", "3")
    await system.store.save_snapshot(new_snapshot("Seen-a", 4, Seen.state_type.fingerprint, b'{"lines":[]}'))
    with pytest.raises(RecoveryError, match=r"Seen-a.*snapshot is of version 4, ahead of the journal at 3"):
        await system.ref(Seen, "a").ask(Read())


async def test_a_snapshot_without_any_event_is_an_error(system: ActorSystem):
    await system.store.save_snapshot(new_snapshot("Seen-a", 4, Seen.state_type.fingerprint, b'{"lines":[]}'))
    with pytest.raises(RecoveryError, match=r"Seen-a.*snapshot is of version 4, ahead of the journal at 0"):
        await system.ref(Seen, "a").ask(Read())


DAMAGES = {
    "a flipped bit": lambda stored: {"payload": bytes([stored.payload[0] ^ 1]) + stored.payload[1:]},
    "an empty payload": lambda stored: {"payload": b""},
    "an encoding of newer code": lambda stored: {"encoding": "newer/1"},
    "the checksum of another": lambda stored: {"checksum": bytes(16)},
    "another fingerprint, unsigned": lambda stored: {"fingerprint": "another"},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("older", [None, 2], ids=["no older one", "an older one"])
async def test_a_damaged_snapshot_is_passed_over_for_an_older_one_or_all_events(
    system: ActorSystem, seen: list[tuple[str, int]], caplog: pytest.LogCaptureFixture, damage: Any, older: int | None
):
    await write(system.store, "1", "2", "3", "4")
    if older is not None:
        await snapshot_at(system.store, Seen, older)
    stored = await snapshot_at(system.store, Seen, 3)
    await system.store._backend.save_snapshot(stored._replace(**damage(stored)), keep=10)
    seen.clear()
    with caplog.at_level(logging.WARNING):
        assert await system.ref(Seen, "a").ask(Read()) == ["1", "2", "3", "4"]
    assert [version for _, version in seen] == list(range((older or 0) + 1, 5))
    assert caplog.text.count("going to an older snapshot or to the first event") == 1


async def test_a_snapshot_of_another_schema_is_passed_over(system: ActorSystem, seen: list[tuple[str, int]]):
    class Before(BaseModel):
        rows: int = 0

    class Older(PersistentActor[Before], kind="Seen"): ...

    await write(system.store, "1", "2", "3")
    data = Older.state_type.dump(Before(rows=3))
    await system.store.save_snapshot(new_snapshot("Seen-a", 3, Older.state_type.fingerprint, data))
    assert await system.ref(Seen, "a").ask(Read()) == ["1", "2", "3"]
    assert [version for _, version in seen] == [1, 2, 3]


def test_a_snapshot_serves_whatever_is_written_about_the_state():
    def described(words: str) -> type[BaseModel]:
        class Inner(BaseModel):
            __doc__ = words
            title: str = "a"

        class Described(BaseModel):
            __doc__ = words
            description: list[Inner] = Field(default=[], title=words, description=words, examples=[[words]])

        return Described

    before, after = (StateType(described(words), place="here", revision=0) for words in ("before", "after"))
    assert before.fingerprint == after.fingerprint


@pytest.mark.parametrize("change", ["field", "type", "default", "constraint"])
def test_a_state_that_has_changed_is_another_schema(change: str):
    class Before(BaseModel):
        title: str = "a"

    class Field_(BaseModel):
        description: str = "a"

    class Type_(BaseModel):
        title: bytes = b"a"

    class Default(BaseModel):
        title: str = "b"

    class Constraint(BaseModel):
        title: str = Field(default="a", max_length=9)

    after = {"field": Field_, "type": Type_, "default": Default, "constraint": Constraint}[change]
    before, now = (StateType(each, place="here", revision=0).fingerprint for each in (Before, after))
    assert before != now


def test_what_is_under_a_pattern_that_is_such_a_word_is_part_of_the_schema():
    pattern = Annotated[str, StringConstraints(pattern="title")]
    before, now = (
        StateType(dict[pattern, value], place="here", revision=0).fingerprint  # type: ignore[valid-type]
        for value in (int, bool)
    )
    assert before != now


async def test_a_snapshot_of_another_revision_is_passed_over(system: ActorSystem, seen: list[tuple[str, int]]):
    class Revised(Seen, kind="Seen"):
        snapshot_policy = SnapshotPolicy(revision=1)

    await write(system.store, "1", "2", "3")
    await snapshot_at(system.store, Seen, 3)
    seen.clear()
    assert await system.ref(Revised, "a").ask(Read()) == ["1", "2", "3"]
    assert [version for _, version in seen] == [1, 2, 3]


async def test_a_snapshot_whose_json_does_not_fit_the_state_is_passed_over(
    system: ActorSystem, seen: list[tuple[str, int]]
):
    await write(system.store, "1", "2", "3")
    await snapshot_at(system.store, Seen, 2)
    await system.store.save_snapshot(new_snapshot("Seen-a", 3, Seen.state_type.fingerprint, b'{"lines":7}'))
    seen.clear()
    assert await system.ref(Seen, "a").ask(Read()) == ["1", "2", "3"]
    assert [version for _, version in seen] == [3]


async def test_an_actor_that_recovered_past_a_bad_snapshot_takes_a_good_one_again(system: ActorSystem):
    await write(system.store, "1", "2", kind="Every3")
    await system.store.save_snapshot(new_snapshot("Every3-a", 2, "another", b"{}"))
    await system.ref(Every3, "a").ask(Write(text="3"))
    await saved(system)
    folded = await fold(system.store, Every3, "a")
    assert (folded.state.lines, folded.snapshot_version) == (["1", "2", "3"], 3)


async def test_a_state_with_fields_of_every_sort_comes_back_from_a_snapshot(url: str):
    from datetime import UTC, datetime
    from decimal import Decimal
    from uuid import UUID

    class Rich(BaseModel):
        amounts: dict[str, Decimal] = {}
        at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
        id: UUID = UUID(int=7)
        names: set[str] = set()
        pair: tuple[int, float] = (1, 0.5)
        lines: list[str] = []

    class Wealthy(PersistentActor[Rich]):
        snapshot_policy = SnapshotPolicy(on_passivation=True)

        @command_handler
        def write(self, command: Write) -> int:
            self.persist(Written(text=command.text))
            return len(self.state.names)

        @command_handler
        def wait(self, command: Wait) -> int:
            expected = Rich(amounts={"x": Decimal("1.10")}, names={"x"}, lines=["x"])
            return int(self.state == expected and isinstance(self.state.names, set))

        @event_handler
        def written(self, event: Written) -> None:
            self.state.names.add(event.text)
            self.state.amounts[event.text] = Decimal("1.10")
            self.state.lines.append(event.text)

    async with EventStore.open(url) as store:
        async with ActorSystem(store) as system:
            await system.ref(Wealthy, "a").ask(Write(text="x"))
        assert (await fold(store, Wealthy, "a")).snapshot_version == 1
        async with ActorSystem(store) as system:
            assert await system.ref(Wealthy, "a").ask(Wait()) == 1


async def test_the_actor_of_a_snapshot_goes_on_with_the_next_version(url: str):
    async with EventStore.open(url) as store:
        async with ActorSystem(store) as system:
            await system.ref(Every3, "a").ask(WriteAll(texts=("1", "2", "3")))
            await saved(system)
        async with ActorSystem(store) as system:
            assert await system.ref(Every3, "a").ask(Write(text="4")) == 4
        assert await texts(store, kind="Every3") == ["1", "2", "3", "4"]
