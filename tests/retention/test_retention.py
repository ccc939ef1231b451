"""Old events go where nobody needs them any more, and stay where somebody does, on every backend."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from backends.conformance.events import collect, happened, versions
from backends.conformance.replicas import REPLICA, replicated
from eventstore import DeadLetterWaits, EventStore, ProjectionBehind, RetentionRefused, StoreFenced, TruncationRefused
from eventstore.contract.checkpoint import Checkpoint, DeadLetter
from eventstore.events import Snapshot
from eventstore.retention import Cut, Policy, Retention
from eventstore.snapshots import new_snapshot, pack

FINGERPRINTS = {"a": "f"}


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "memory":
            return f"memory://{uuid4()}"
        case "sqlite":
            return f"sqlite:///{tmp_path}/a.db"
        case kind:
            # In a fixture that is not asynchronous: a database is made in an event loop of its own.
            found: str = request.getfixturevalue(f"{kind}_url")
            return found


@pytest_asyncio.fixture
async def store(url: str) -> AsyncGenerator[EventStore, None]:
    async with EventStore.open(url) as store:
        yield store


def keeping(count: int, **fields: object) -> Policy:
    return Policy(keep_versions=count, **{"fingerprints": FINGERPRINTS, **fields})  # type: ignore[arg-type]


async def cuts(store: EventStore, policy: Policy) -> list[Cut]:
    return await collect(Retention(store, policy).plan())


async def snapshot(store: EventStore, stream_id: str, version: int, fingerprint: str = "f") -> None:
    await store.save_snapshot(new_snapshot(stream_id, version, fingerprint, b'{"state":1}'))


async def test_a_stream_is_cut_at_the_policy_where_a_snapshot_is_newer(store: EventStore) -> None:
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 9)
    (planned,) = await cuts(store, keeping(4))
    assert planned == Cut("a-1", 10, 6, 6, len(b'{"number":1}') * 6, 1)
    assert await versions(store.read("a-1")) == list(range(1, 11))
    assert await collect(Retention(store, keeping(4)).apply(reason="test")) == [planned]
    assert await versions(store.read("a-1")) == [7, 8, 9, 10]
    assert await cuts(store, keeping(4)) == []
    assert [each.version for each in await store.snapshots("a-1")] == [9]


async def test_it_is_cut_at_the_snapshot_where_that_is_older(store: EventStore) -> None:
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 3)
    (planned,) = await collect(Retention(store, keeping(2)).apply(reason="test"))
    assert (planned.through, planned.events, planned.replay, planned.refusal) == (3, 3, 7, None)
    assert await versions(store.read("a-1")) == [4, 5, 6, 7, 8, 9, 10]


async def test_without_a_snapshot_nothing_goes(store: EventStore) -> None:
    await store.append("a-1", happened(1, 2, 3))
    (kept,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert isinstance(kept.refusal, RetentionRefused)
    assert "no snapshot" in str(kept.refusal)
    assert (kept.through, kept.events, kept.replay) == (2, 2, 3)
    assert await store.version("a-1") == len(await versions(store.read("a-1"))) == 3


async def test_a_snapshot_of_another_schema_is_none(store: EventStore) -> None:
    await store.append("a-1", happened(1, 2, 3, 4))
    await snapshot(store, "a-1", 2)
    await snapshot(store, "a-1", 4, "other")
    (planned,) = await cuts(store, keeping(1))
    assert (planned.through, planned.replay) == (2, 2)
    await store.delete_snapshots("a-1", through=3)
    (planned,) = await cuts(store, keeping(1))
    assert isinstance(planned.refusal, RetentionRefused)
    assert "another schema" in str(planned.refusal)


async def test_a_snapshot_that_was_truncated_beyond_is_none(store: EventStore) -> None:
    await store.append("a-1", happened(*range(1, 7)))
    await snapshot(store, "a-1", 2)
    await store.truncate("a-1", 3, reason="test")
    (planned,) = await cuts(store, keeping(1))
    assert isinstance(planned.refusal, RetentionRefused)


class Others:
    """Other code, which saves snapshots of another schema just before a step that writes. The process ends at a step:
    before it is done, or behind it. Steps are counted from 1; 0 is none."""

    def __init__(self, store: EventStore, *, come_at: int = 0, ends_at: int = 0, is_done: bool = False) -> None:
        self._store = store
        self._come_at = come_at
        self._ends_at = ends_at
        self._is_done = is_done
        self.steps: list[str] = []

    def disturb(self, store: EventStore, patches: pytest.MonkeyPatch) -> None:
        for name in ("truncate", "save_snapshot", "delete_snapshots"):
            patches.setattr(store._backend, name, self._step(name, getattr(store._backend, name)))

    def _step(self, name: str, work: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def run(*arguments: object, **named: object) -> object:
            self.steps.append(name)
            step = len(self.steps)
            if step == self._come_at:
                for version in (9, 10):
                    await snapshot(self._store, "a-1", version, "other")
            if step == self._ends_at and not self._is_done:
                raise KeyboardInterrupt
            answer = await work(*arguments, **named)
            if step == self._ends_at:
                raise KeyboardInterrupt
            return answer

        return run


@pytest_asyncio.fixture
async def others(url: str, store: EventStore) -> AsyncGenerator[EventStore, None]:
    async with EventStore.open(url) as others:
        yield others


@pytest.mark.parametrize("is_done", [False, True], ids=["before it", "behind it"])
@pytest.mark.parametrize("ends_at", [1, 2, 3])
@pytest.mark.parametrize("come_at", [1, 2, 3])
async def test_wherever_it_is_ended_a_state_can_be_rebuilt(
    store: EventStore, others: EventStore, monkeypatch: pytest.MonkeyPatch, come_at: int, ends_at: int, is_done: bool
) -> None:
    monkeypatch.setattr("eventstore.retention._REMOVED_AT_ONCE", 3)
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 8)
    with monkeypatch.context() as patches, suppress(KeyboardInterrupt):
        Others(others, come_at=come_at, ends_at=ends_at, is_done=is_done).disturb(store, patches)
        await collect(Retention(store, keeping(1)).apply(reason="test"))
    (info,) = await collect(store.streams())
    found = [each for each in await store.snapshots("a-1") if isinstance(each, Snapshot)]
    assert info.truncated == 0 or any(each.fingerprint == "f" and each.version >= info.truncated for each in found)
    assert await versions(store.read("a-1")) == list(range(info.truncated + 1, 11))


async def test_a_snapshot_that_other_code_takes_away_in_between_keeps_the_events(
    store: EventStore, others: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 8)
    come = Others(others, come_at=1)
    come.disturb(store, monkeypatch)
    (kept,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert come.steps == ["truncate"]
    assert isinstance(kept.refusal, RetentionRefused)
    assert "eventstore rebuild snapshots" in str(kept.refusal)
    assert len(await versions(store.read("a-1"))) == 10


async def test_from_the_first_removal_on_other_code_does_not_take_the_snapshot_away(
    store: EventStore, others: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.retention._REMOVED_AT_ONCE", 3)
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 8)
    Others(others, come_at=2).disturb(store, monkeypatch)
    (done,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert (done.through, done.refusal) == (8, None)
    assert await versions(store.read("a-1")) == [9, 10]
    found = [each for each in await store.snapshots("a-1") if isinstance(each, Snapshot)]
    assert [(each.version, each.fingerprint) for each in found] == [(10, "other"), (9, "other"), (8, "f")]


async def plan_before(
    change: Callable[[], Awaitable[object]], retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> list[Cut]:
    """Let something happen after it was planned what goes, and before anything does."""
    planned = await collect(retention.plan())

    async def plan() -> AsyncGenerator[Cut, None]:
        await change()
        for cut in planned:
            yield cut

    monkeypatch.setattr(retention, "plan", plan)
    return planned


async def test_a_damaged_snapshot_above_a_sound_one_keeps_the_events(store: EventStore, others: EventStore) -> None:
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 6)
    damaged = pack(new_snapshot("a-1", 8, "f", b"{}"), limit=100)._replace(checksum=bytes(16))
    await store._open.save_snapshot(damaged, keep=2)
    (kept,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    # Of each schema the newest stays, sound or not.
    for version in (9, 10):
        await snapshot(others, "a-1", version, "other")
    (info,) = await collect(store.streams())
    found = [each for each in await store.snapshots("a-1") if isinstance(each, Snapshot)]
    assert info.truncated == 0 or any(each.fingerprint == "f" and each.version >= info.truncated for each in found)
    assert isinstance(kept.refusal, RetentionRefused)
    assert "its snapshot at version 8 cannot be used" in str(kept.refusal)
    # Taken anew, as the message says, it is no obstacle any more.
    await snapshot(store, "a-1", 10)
    (done,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert (done.through, done.refusal) == (9, None)


async def test_a_snapshot_that_goes_before_anything_is_removed_keeps_the_events(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 8)
    retention = Retention(store, keeping(1))
    await plan_before(lambda: store.delete_snapshots("a-1"), retention, monkeypatch)
    (kept,) = await collect(retention.apply(reason="test"))
    assert isinstance(kept.refusal, RetentionRefused)
    assert len(await versions(store.read("a-1"))) == 10


async def test_a_snapshot_for_which_there_are_newer_ones_in_between_need_not_come_back(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append("a-1", happened(*range(1, 11)))
    await snapshot(store, "a-1", 8)
    retention = Retention(store, keeping(1))

    async def go_on() -> None:
        await store.append("a-1", happened(11, 12))
        for version in (11, 12):
            await snapshot(store, "a-1", version)

    planned = await plan_before(go_on, retention, monkeypatch)
    assert await collect(retention.apply(reason="test")) == planned
    assert [each.version for each in await store.snapshots("a-1")] == [12, 11]


async def test_an_unknown_class_keeps_everything(store: EventStore) -> None:
    await store.append("b-1", happened(1, 2))
    await snapshot(store, "b-1", 2)
    (planned,) = await cuts(store, keeping(0))
    assert isinstance(planned.refusal, RetentionRefused)
    assert "--actor" in str(planned.refusal)


async def test_streams_that_nobody_folds_need_no_snapshot(store: EventStore) -> None:
    await store.append("b-1", happened(1, 2, 3))
    await store.append("a-1", happened(1, 2, 3))
    policy = keeping(1, kinds=("b",), needs_snapshots=False)
    (done,) = await collect(Retention(store, policy).apply(reason="test"))
    assert (done.stream_id, done.through, done.replay) == ("b-1", 2, 1)
    assert (await versions(store.read("a-1")), await versions(store.read("b-1"))) == ([1, 2, 3], [3])


async def test_only_what_is_old_goes(store: EventStore) -> None:
    await store.append("a-1", happened(1, 2))
    (newest,) = await collect(store.read("a-1", limit=1, backwards=True))
    await store.append("a-1", happened(3))
    await snapshot(store, "a-1", 3)
    before = newest.recorded_at + timedelta(microseconds=1)
    (third,) = await collect(store.read("a-1", limit=1, backwards=True))
    expected = 2 if third.recorded_at >= before else 3
    (planned,) = await cuts(store, Policy(before=before, fingerprints=FINGERPRINTS))
    assert planned.through == expected
    (both,) = await cuts(store, Policy(before=before, keep_versions=2, fingerprints=FINGERPRINTS))
    assert both.through == 1
    assert await cuts(store, Policy(before=datetime.now(UTC) - timedelta(days=1), fingerprints=FINGERPRINTS)) == []


async def test_a_projection_that_has_not_come_so_far_keeps_it(store: EventStore) -> None:
    await store.append("a-1", happened(1, 2, 3, 4))
    await snapshot(store, "a-1", 4)
    await store.save_checkpoint(Checkpoint("totals", 1, position=2, kinds=("a",)))
    await store.save_checkpoint(Checkpoint("others", 1, position=0, kinds=("b",)))
    (planned,) = await cuts(store, keeping(1))
    assert isinstance(planned.refusal, ProjectionBehind)
    (planned,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert isinstance(planned.refusal, ProjectionBehind)
    assert (planned.refusal.projection, planned.refusal.position, planned.refusal.wanted) == ("totals", 2, 3)
    assert await versions(store.read("a-1")) == [1, 2, 3, 4]
    (planned,) = await cuts(store, keeping(2))
    assert planned.refusal is None


async def test_a_dead_letter_keeps_its_event(store: EventStore) -> None:
    await store.append("a-1", happened(1, 2, 3, 4))
    await snapshot(store, "a-1", 4)
    letter = DeadLetter(2, "a-1", 2, "happened", "ValueError", 1, "")
    await store.save_checkpoint(Checkpoint("totals", 1, position=4, letters=(letter,)))
    for cuts_of in (Retention(store, keeping(1)).plan(), Retention(store, keeping(1)).apply(reason="test")):
        (kept,) = await collect(cuts_of)
        assert isinstance(kept.refusal, DeadLetterWaits)
        assert (kept.refusal.projection, kept.refusal.stream_id, kept.refusal.version) == ("totals", "a-1", 2)
    assert await versions(store.read("a-1")) == [1, 2, 3, 4]
    (planned,) = await cuts(store, keeping(3))
    assert planned.refusal is None


async def test_the_plan_for_a_tenant_knows_the_projections_of_the_store_without_one(
    store: EventStore, url: str
) -> None:
    async with EventStore.open(url, tenant="acme") as acme:
        await acme.append("a-1", happened(1, 2, 3, 4))
        await snapshot(acme, "a-1", 4)
        await store.save_checkpoint(Checkpoint("totals", 1, position=2, tenants=("acme",)))
        await store.save_checkpoint(Checkpoint("theirs", 1, position=0, tenants=("bolt",)))
        (planned,) = await cuts(acme, keeping(1))
        assert isinstance(planned.refusal, ProjectionBehind)
        assert planned.refusal.projection == "totals"
        (planned,) = await cuts(acme, keeping(2))
        assert planned.refusal is None


async def test_only_a_projection_that_gets_its_events_keeps_a_stream(store: EventStore) -> None:
    await store.append("a-1", happened(1, 2, 3, 4))
    await snapshot(store, "a-1", 4)
    parts = [Checkpoint("totals", 1, partition=number, partitions=2) for number in range(2)]
    for part in parts:
        await store.save_checkpoint(replace(part, position=4 if part.has("a-1") else 0))
    await store.save_checkpoint(Checkpoint("theirs", 1, position=0, tenants=("somebody",)))
    (planned,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert planned.refusal is None
    assert await versions(store.read("a-1")) == [4]


async def test_replicated_events_stay_and_what_replicas_keep_too(store: EventStore) -> None:
    await store._backend.append([[replicated("a-1", 0, REPLICA, REPLICA._replace(origin_sequence=8))]])
    await snapshot(store, "a-1", 2)
    await store.append("replication.members", happened(1, 2))
    first, second = await cuts(store, keeping(0, needs_snapshots=False))
    assert isinstance(first.refusal, TruncationRefused)
    assert isinstance(second.refusal, RetentionRefused)


async def test_large_streams_go_in_parts_and_can_be_taken_up(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstore.retention._REMOVED_AT_ONCE", 3)
    await store.append("a-1", happened(*range(1, 12)))
    await snapshot(store, "a-1", 11)
    calls: list[int] = []
    truncate = store.truncate

    async def interrupted(stream_id: str, through: int, *, reason: str, fingerprint: str | None = None) -> int:
        calls.append(through)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return await truncate(stream_id, through, reason=reason, fingerprint=fingerprint)

    monkeypatch.setattr(store, "truncate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert await versions(store.read("a-1")) == [7, 8, 9, 10, 11]
    (done,) = await collect(Retention(store, keeping(1)).apply(reason="test"))
    assert calls == [3, 6, 9, 9, 10]
    assert (done.events, done.through) == (4, 10)
    assert await versions(store.read("a-1")) == [11]


async def test_behind_a_fence_nothing_goes(store: EventStore) -> None:
    await store.append("a-1", happened(1, 2))
    await snapshot(store, "a-1", 2)
    await store.archive().fence("test")
    with pytest.raises(StoreFenced):
        await collect(Retention(store, keeping(0)).apply(reason="test"))
    assert await versions(store.read("a-1")) == [1, 2]


def test_a_policy_says_something() -> None:
    with pytest.raises(ValueError, match="how old"):
        Retention(EventStore.open("memory://"), Policy())
