"""The comparison of a projection with the journal finds any event that was passed over, and names the first."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import asyncpg
import pytest

from eventstore import EventStore, ProjectionRunner
from eventstore.contract.checkpoint import Checkpoint, added
from eventstore.events import RecordedEvent
from eventstore.read_models.completeness import Place, check_completeness, first_missing
from eventstore.read_models.projection_control import live_checkpoint

from .ledger import PlainLedger, pay


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    PlainLedger.got.clear()


async def passed_over(store: EventStore, *positions: int) -> None:
    """Let the projection have run, and these events not have reached it: what a defect of a reader would do."""
    events = [recorded async for recorded in store.read_all(where=PlainLedger.where())]
    checkpoint = Checkpoint("plain", 1, kinds=PlainLedger.kinds)
    for start in range(0, len(events), 4):
        part = events[start : start + 4]
        ids = [recorded.event_id for recorded in part if recorded.position not in positions]
        checkpoint = checkpoint.advanced(part[-1].position, ids)
    assert await store.save_checkpoint(checkpoint)


async def test_a_projection_that_got_everything_is_complete_also_while_events_come(store: EventStore):
    await pay(store, *range(21))
    await pay(store, 1, account="other-b")
    await ProjectionRunner(store, PlainLedger).run(follow=False)
    await pay(store, 1)
    found = await check_completeness(store, PlainLedger)
    assert (found.is_complete, found.applied, found.expected) == (True, 21, 21)


@pytest.mark.parametrize("lost", [[0], [11], [20], [3, 4], [2, 14], [4, 5, 6, 7], [0, 1, 2, 3], list(range(8, 21))])
async def test_the_first_event_that_is_missing_is_named(store: EventStore, lost: list[int]):
    positions = [await pay(store, amount) for amount in range(21)]
    await passed_over(store, *(positions[number] for number in lost))
    found = await check_completeness(store, PlainLedger)
    assert (found.is_complete, found.applied, found.expected) == (False, 21 - len(lost), 21)
    assert found.first is not None
    assert (found.first.position, found.first.stream_id, found.first.version) == (
        positions[lost[0]],
        "account-a",
        lost[0] + 1,
    )


async def test_an_event_in_the_place_of_another_is_no_completeness(store: EventStore):
    await pay(store, 1, 2, 3)
    await ProjectionRunner(store, PlainLedger).run(follow=False)
    checkpoint = await live_checkpoint(store, "plain")
    wrong = replace(checkpoint, checksum=added(checkpoint.checksum, [uuid4()]), marks=())
    assert await store.save_checkpoint(wrong)
    found = await check_completeness(store, PlainLedger)
    assert (found.is_complete, found.applied, found.expected, found.first) == (False, 3, 3, None)
    assert (found.after, found.through) == (0, checkpoint.position)


async def test_removed_events_cannot_be_compared_and_that_is_said(store: EventStore):
    await pay(store, 1, 2, 3)
    await ProjectionRunner(store, PlainLedger).run(follow=False)
    await store.truncate("account-a", 2, reason="test")
    found = await check_completeness(store, PlainLedger)
    assert (found.is_complete, found.truncated) == (False, True)


def test_more_than_two_that_do_not_follow_each_other_are_told_by_their_range_alone():
    part = [Place(number, "a", number, uuid4().int, "") for number in range(50)]
    missing = [part[3], part[9], part[30]]
    difference = missing[0].event_id ^ missing[1].event_id ^ missing[2].event_id
    assert first_missing(part, 3, difference) is None


def test_the_marks_are_bounded_and_end_where_the_sums_are():
    generator = random.Random(5)
    checkpoint = Checkpoint("x", 1)
    position, sums = 0, bytes(16)
    for _ in range(3000):
        ids = [UUID(int=generator.getrandbits(128)) for _ in range(generator.randrange(6))]
        position += 1 + len(ids)
        sums = added(sums, ids)
        checkpoint = checkpoint.advanced(position, ids)
    assert len(checkpoint.marks) <= 65
    assert [mark.position for mark in checkpoint.marks] == sorted({mark.position for mark in checkpoint.marks})
    assert checkpoint.checksum == sums
    assert checkpoint.events - checkpoint.marks[-1].events <= checkpoint.events // 32
    again = Checkpoint.of(checkpoint.stored())
    assert again == replace(checkpoint, updated_at=again.updated_at)


@pytest.mark.parametrize("lost", [1, 3, 5])
async def test_an_event_that_the_journal_itself_has_lost_is_named(emptied_postgres_url: str, lost: int):
    async with EventStore.open(emptied_postgres_url) as store:
        await pay(store, 1, 2, 3, 4, 5)
        await pay(store, 1, account="account-b")
        await ProjectionRunner(store, PlainLedger).run(follow=False)
        await lose(emptied_postgres_url, "account-a", lost)
        found = await check_completeness(store, PlainLedger)
    assert (found.is_complete, found.applied, found.expected, found.first) == (False, 6, 5, None)
    assert found.gone == ("account-a", lost, "")


async def lose(url: str, stream_id: str, version: int) -> None:
    """Remove an event past all that keeps it there, as a superuser can."""
    connection = await asyncpg.connect(urlsplit(url)._replace(query="").geturl())
    try:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute(
            "DELETE FROM journal_events WHERE version = $2 "
            "AND stream = (SELECT id FROM journal_streams WHERE stream_id = $1)",
            stream_id,
            version,
        )
    finally:
        await connection.close()


@pytest.mark.parametrize("through", [3, 5])
async def test_what_is_truncated_while_the_journal_is_looked_through_is_not_lost(
    store: EventStore, monkeypatch: pytest.MonkeyPatch, through: int
):
    await pay(store, *range(5))
    await ProjectionRunner(store, PlainLedger).run(follow=False)
    await store.truncate("account-a", 1, reason="a test")
    read_all, reads = store.read_all, 0

    async def read_after_more_was_removed(**options: Any) -> AsyncGenerator[RecordedEvent]:
        nonlocal reads
        reads += 1
        if reads == 2:
            await store.truncate("account-a", through, reason="a test")
        async for recorded in read_all(**options):
            yield recorded

    monkeypatch.setattr(store, "read_all", read_after_more_was_removed)
    found = await check_completeness(store, PlainLedger)
    assert (found.is_complete, found.truncated, found.gone, reads) == (False, True, None, 2)
