"""SQLTransactions: statements of the user's own, in one commit with a batch. For backends with that capability."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from sqlalchemy import Column, Integer, MetaData, Table, insert, select, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from backends.conformance.commands import found
from backends.conformance.events import collect, happened, numbers, outcome, write
from backends.conformance.fixtures import StoreFixtures, backend_of
from eventstore.backend import (
    Appended,
    AppendOutcome,
    Backend,
    Batch,
    CommandLookup,
    EventFilter,
    Expected,
    StoredCheckpoint,
    StreamWrite,
)
from eventstore.codec import new_event_id
from eventstore.contract.sql_transaction import SqlTransaction, Unread
from eventstore.errors import (
    CapabilityError,
    CommandForgotten,
    ConcurrencyError,
    DuplicateCommand,
    DuplicateEventError,
    FencedError,
    StoreClosed,
    TransactionConflict,
    TransactionExpired,
    TransactionRefused,
)
from eventstore.store import EventStore

TRANSFERS = Table(
    "conformance_transfers", MetaData(), Column("id", Integer, primary_key=True), Column("amount", Integer)
)

# Long enough for whatever a test does, and short enough that others wait.
SECONDS = 20.0
PATIENCE = 20.0

CHECKPOINT = StoredCheckpoint("reader", 1, 0, 7, 3, bytes(range(16)), b"{}")
AT_THE_START = CHECKPOINT._replace(position=0)


class SQLCapability(StoreFixtures):
    """For every backend: what it says it can do, it does."""

    async def test_a_transaction_for_sql_is_begun_or_refused_as_the_capabilities_say(self, store: EventStore) -> None:
        if store.capabilities.user_sql:
            assert isinstance(self, SQLTransactions), "inherit from backends.conformance.SQLTransactions too"
            transaction = await store.begin_sql(seconds=SECONDS)
            await transaction.rollback()
        else:
            with pytest.raises(CapabilityError):
                await store.begin_sql(seconds=SECONDS)
        await store.append("a", happened(1))


class SQLTransactions(StoreFixtures):
    @pytest_asyncio.fixture(autouse=True)
    async def transfers(self, store: EventStore) -> None:
        """The user's table."""
        async with transaction(store) as begun:
            await begun.connection.execute(CreateTable(TRANSFERS))
            assert await begun.commit([]) == Appended(0, ())

    async def test_statements_and_events_are_committed_together(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await transfer(begun, 1)
            appended = await begun.commit([write("a", b"1", b"2", expected=0), write("b", b"3", expected=0)])

        assert isinstance(appended, Appended)
        assert appended.versions == (2, 1)
        assert [record.payload for record in await collect(store.read_all())] == [b"1", b"2", b"3"]
        assert (await collect(store.read("b")))[-1].position == appended.position
        assert await transferred(store) == [1]

    async def test_nothing_is_seen_before_the_commit(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await transfer(begun, 1)
            assert await collect(store.read_all()) == []
            assert (await begun.connection.execute(select(TRANSFERS.c.id))).scalars().all() == [1]

    async def test_what_is_rolled_back_is_gone(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await transfer(begun, 1)
            await begun.rollback()
        assert await transferred(store) == []

    async def test_statements_without_events_are_committed(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await transfer(begun, 1)
            assert isinstance(await begun.commit([]), Appended)
        assert await transferred(store) == [1]

    async def test_events_without_statements_are_committed(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            assert isinstance(await begun.commit([write("a", b"1")]), Appended)
        assert await store.version("a") == 1

    async def test_a_refused_batch_rolls_the_statements_back(self, store: EventStore, backend: Backend) -> None:
        await store.append("a", happened(1))
        await store.claim("owned")
        await store.claim("owned")
        taken = new_event_id()
        await backend.append([[write("b", b"1", ids=[taken])], [write("c", commands=[outcome("known")])]])
        await backend.append([[write("old", commands=[outcome("gone", issued_at=1000)])]])
        await store.forget_commands("old")
        refused: list[tuple[StreamWrite, type[Exception]]] = [
            (write("a", b"2", expected=0), ConcurrencyError),
            (write("z", b"2", expected=Expected.STREAM_EXISTS), ConcurrencyError),
            (write("owned", b"2", epoch=1), FencedError),
            (write("d", b"2", ids=[taken]), DuplicateEventError),
            (write("c", b"2", commands=[outcome("known")]), DuplicateCommand),
            (write("old", b"2", commands=[outcome("late", issued_at=999)]), CommandForgotten),
        ]
        for number, (one, error) in enumerate(refused):
            async with transaction(store) as begun:
                await transfer(begun, number)
                assert isinstance(await begun.commit([write("fine", b"1"), one]), error)

        assert await transferred(store) == []
        assert await store.version("fine") == 0
        assert {info.stream_id for info in await collect(store.streams())} == {"a", "b"}

    async def test_an_asserted_version_decides_about_the_statements(self, store: EventStore) -> None:
        await store.append("read", happened(1, 2))
        for number, (expected, holds) in enumerate([(2, True), (1, False), (Expected.STREAM_EXISTS, True), (0, False)]):
            async with transaction(store) as begun:
                await transfer(begun, number)
                answer = await begun.commit([write("read", expected=expected)])
                assert isinstance(answer, Appended if holds else ConcurrencyError)
        assert await transferred(store) == [0, 2]

    async def test_what_is_asserted_of_truncated_and_owned_streams_decides_about_the_statements(
        self, store: EventStore
    ) -> None:
        await store.append("cut", happened(1, 2))
        await store.truncate("cut", 2, reason="test")
        earlier, current = await store.claim("owned"), await store.claim("owned")
        asserted: list[tuple[StreamWrite, type[object]]] = [
            (write("cut", expected=2), Appended),
            (write("cut", expected=Expected.STREAM_EXISTS), Appended),
            (write("cut", expected=0), ConcurrencyError),
            (write("owned", expected=0, epoch=current), Appended),
            (write("owned", expected=0, epoch=earlier), FencedError),
        ]
        for number, (one, answer) in enumerate(asserted):
            for batch in ([one], [write("b", b"1"), one]):
                async with transaction(store) as begun:
                    await transfer(begun, 2 * number + len(batch) - 1)
                    assert isinstance(await begun.commit(batch), answer)
        assert await transferred(store) == [0, 1, 2, 3, 6, 7]
        assert await store.version("b") == 3

    async def test_a_stream_that_is_asserted_not_to_be_there_is_not_made(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await transfer(begun, 1)
            assert isinstance(await begun.commit([write("absent", expected=0)]), Appended)
        async with transaction(store) as begun:
            await transfer(begun, 2)
            answer = await begun.commit([write("absent", expected=Expected.STREAM_EXISTS)])
            assert isinstance(answer, ConcurrencyError)
        assert await transferred(store) == [1]
        assert await collect(store.streams()) == []
        assert (await store.append("absent", happened(1), expected_version=0)).versions == (1,)

    async def test_outcomes_of_commands_are_remembered_with_the_statements(
        self, store: EventStore, backend: Backend
    ) -> None:
        await store.append("a", happened(1))
        batch = [write("a", commands=[outcome("c")]), write("new", commands=[outcome("d")])]
        async with transaction(store) as begun:
            await transfer(begun, 1)
            appended = await begun.commit(batch)
        assert isinstance(appended, Appended)
        assert appended.versions == (1, 0)
        answers = await found(backend, CommandLookup("a", "c"), CommandLookup("new", "d"))
        assert all(each.outcome is not None for each in answers)
        assert await transferred(store) == [1]

    async def test_a_batch_that_was_stored_before_takes_no_statements_with_it(self, store: EventStore) -> None:
        batch = [write("a", b"1", expected=0)]
        for number in (1, 2):
            async with transaction(store) as begun:
                await transfer(begun, number)
                appended = await begun.commit(batch)
                assert isinstance(appended, Appended)
                assert appended.is_duplicate is (number == 2)
        assert await transferred(store) == [1]
        assert await store.version("a") == 1

    async def test_appends_go_on_where_a_transaction_has_ended(self, store: EventStore) -> None:
        await store.append("a", happened(1), expected_version=0)
        for version in (1, 3):
            async with transaction(store) as begun:
                assert isinstance(await begun.commit([write("a", b'{"number":9}', expected=version)]), Appended)
            await store.append("a", happened(2), expected_version=version + 1)
        assert await numbers(store.read("a")) == [1, 9, 2, 9, 2]
        positions = [record.position for record in await collect(store.read_all())]
        assert positions == sorted(set(positions))

    async def test_who_waits_for_events_hears_of_the_commit(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        end = (await store.read_page()).end

        async def hear() -> None:
            # A wait may return early.
            while (await store.read_page()).end == end:
                await store.wait(end, PATIENCE)

        async with transaction(store) as begun:
            waiting = asyncio.create_task(hear())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            await begun.commit([write("a", b"2")])
            async with asyncio.timeout(PATIENCE / 2):
                await waiting
        # Who comes later need not wait either.
        async with asyncio.timeout(PATIENCE / 2):
            await store.wait(end, PATIENCE)

    async def test_a_statements_own_error_is_sqlalchemys(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await transfer(begun, 1)
            with pytest.raises(IntegrityError):
                await transfer(begun, 1)
        assert await transferred(store) == []

    async def test_a_savepoint_undoes_a_part(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await transfer(begun, 1)
            savepoint = await begun.connection.begin_nested()
            await transfer(begun, 2)
            with pytest.raises(IntegrityError):
                await transfer(begun, 1)
            await savepoint.rollback()
            async with begun.connection.begin_nested():
                await transfer(begun, 3)
            assert isinstance(await begun.commit([write("a", b"1")]), Appended)
        assert await transferred(store) == [1, 3]

    async def test_the_user_cannot_end_the_transaction_on_the_connection(self, store: EventStore) -> None:
        for number, end in enumerate(["commit", "rollback", "commit"]):
            async with transaction(store) as begun:
                await transfer(begun, number)
                with pytest.raises(CapabilityError):
                    await getattr(begun.connection, end)()
                if number < 2:
                    assert isinstance(await begun.commit([write("a", b"1")]), Appended)
        assert await transferred(store) == [0, 1]
        assert await store.version("a") == 2

    @pytest.mark.parametrize("end", ["ROLLBACK", "COMMIT", "end", "-- so\n /* be\nit */ Rollback"])
    async def test_no_statement_of_the_users_ends_the_transaction(self, store: EventStore, end: str) -> None:
        async with transaction(store) as begun:
            await begun.store([[write("a", b"1")]])
            await transfer(begun, 1)
            with pytest.raises(CapabilityError, match="not executed"):
                await begun.connection.exec_driver_sql(end)
            assert isinstance(await begun.commit([]), Appended)
        assert await transferred(store) == [1]
        assert await store.version("a") == 1

    async def test_a_connection_that_the_user_has_closed_commits_nothing(self, store: EventStore) -> None:
        begun = await store.begin_sql(seconds=SECONDS)
        await transfer(begun, 1)
        # To close it is to roll back, which is refused. Who does not listen closes it all the same.
        with pytest.raises(CapabilityError):
            await begun.connection.close()
        await begun.connection.close()
        with pytest.raises(TransactionRefused):
            await begun.commit([write("a", b"1")])
        await begun.rollback()
        assert await transferred(store) == []
        assert (await store.append("a", happened(1), expected_version=0)).versions == (1,)

    async def test_it_is_rolled_back_when_its_time_is_over(self, store: EventStore) -> None:
        begun = await store.begin_sql(seconds=1.0)
        await transfer(begun, 1)
        await asyncio.sleep(1.2)
        # Whoever waited for it is served, although nobody has ended it.
        async with asyncio.timeout(PATIENCE):
            await store.append("a", happened(1))
            assert await transferred(store) == []
        with pytest.raises(TransactionExpired, match="1 s"):
            await transfer(begun, 2)
        with pytest.raises(TransactionExpired):
            await begun.commit([write("a", b"2")])
        with pytest.raises(TransactionExpired):
            await begun.commit([write("a", b"2")])
        await begun.rollback()
        assert await transferred(store) == []
        assert await numbers(store.read_all()) == [1]

    async def test_after_its_end_it_does_nothing(self, store: EventStore) -> None:
        committed = await store.begin_sql(seconds=SECONDS)
        await committed.commit([write("a", b"1")])
        undone = await store.begin_sql(seconds=SECONDS)
        await undone.rollback()
        for ended in (committed, undone):
            with pytest.raises(StoreClosed):
                await ended.commit([write("a", b"2")])
            await ended.rollback()
            await ended.rollback()
            with pytest.raises(SQLAlchemyError):
                await transfer(ended, 1)
        assert await store.version("a") == 1

    async def test_a_cancelled_commit_is_finished(self, store: EventStore) -> None:
        cancelled = 0
        for turns in range(12):
            begun = await store.begin_sql(seconds=SECONDS)
            await transfer(begun, turns)
            committing = asyncio.create_task(begun.commit([write("a", b"1")]))
            for _ in range(turns):
                await asyncio.sleep(0)
            committing.cancel()
            await asyncio.wait([committing])
            # One that is quick was at its end before it was to be cancelled.
            assert committing.cancelled() or isinstance(committing.result(), Appended)
            cancelled += committing.cancelled()
            # Where it was cancelled before it began, it was never asked for.
            await begun.rollback()
            assert len(await transferred(store)) == await store.version("a")
        assert cancelled >= 2
        assert await store.version("a") >= 8

    async def test_a_cancelled_begin_leaves_nothing_open(self, store: EventStore) -> None:
        for turns in range(40):
            beginning = asyncio.create_task(store.begin_sql(seconds=SECONDS))
            for _ in range(turns):
                await asyncio.sleep(0)
            beginning.cancel()
            await asyncio.wait([beginning])
            if not beginning.cancelled():
                await beginning.result().rollback()
        async with asyncio.timeout(SECONDS):
            await store.append("a", happened(1))
            async with transaction(store) as begun:
                await begun.commit([write("a", b"2")])
        assert await store.version("a") == 2

    async def test_a_cancelled_statement_leaves_nothing_open(self, store: EventStore) -> None:
        for turns in range(12):
            begun = await store.begin_sql(seconds=SECONDS)
            executing = asyncio.create_task(transfer(begun, turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            executing.cancel()
            await asyncio.wait([executing])
            await begun.rollback()
        async with asyncio.timeout(SECONDS):
            await store.append("a", happened(1))
        assert await transferred(store) == []

    async def test_closing_the_store_rolls_back_what_is_open(self, store: EventStore) -> None:
        begun = await store.begin_sql(seconds=SECONDS)
        await transfer(begun, 1)
        async with asyncio.timeout(PATIENCE):
            await store.close()
        with pytest.raises(StoreClosed):
            await begun.commit([write("a", b"1")])
        await begun.rollback()
        async with EventStore.open(store.url.raw) as again:
            assert await transferred(again) == []
            assert await again.version("a") == 0

    async def test_a_closing_store_finishes_the_commit_that_is_under_way(self, store: EventStore) -> None:
        begun = await store.begin_sql(seconds=SECONDS)
        await transfer(begun, 1)
        committing = asyncio.create_task(begun.commit([write("a", b"1")]))
        await asyncio.sleep(0)
        await store.close()
        assert isinstance(await committing, Appended)
        async with EventStore.open(store.url.raw) as again:
            assert (await transferred(again), await again.version("a")) == ([1], 1)

    async def test_others_are_served_while_it_is_open_or_soon_after(self, store: EventStore, other: EventStore) -> None:
        begun = await store.begin_sql(seconds=1.0)
        await transfer(begun, 1)
        async with asyncio.timeout(PATIENCE):
            appends = [one.append(f"s-{number}", happened(number)) for number in range(5) for one in (store, other)]
            await asyncio.gather(*appends)
        await begun.rollback()
        assert len(await collect(store.read_all())) == 10

    async def test_many_at_once_are_all_served(self, store: EventStore, other: EventStore) -> None:
        async def one(number: int) -> AppendOutcome:
            async with transaction((store, other)[number % 2]) as begun:
                await transfer(begun, number)
                return await begun.commit([write("a", b"1"), write(f"s-{number % 3}", b"2")])

        outcomes = await asyncio.gather(*(one(number) for number in range(20)))
        assert [type(each) for each in outcomes] == [Appended] * 20
        assert await transferred(store) == list(range(20))
        assert await store.version("a") == 20

    async def test_a_checkpoint_is_stored_with_the_users_statements_or_not_at_all(self, store: EventStore) -> None:
        begun = await store.begin_sql(seconds=SECONDS)
        await begun.connection.execute(insert(TRANSFERS).values(id=1, amount=1))
        assert await begun.save_checkpoint(CHECKPOINT)
        assert not await begun.save_checkpoint(CHECKPOINT)
        await begun.rollback()
        assert (await backend_of(store).checkpoints(), await transferred(store)) == ([], [])

        begun = await store.begin_sql(seconds=SECONDS)
        await begun.connection.execute(insert(TRANSFERS).values(id=1, amount=1))
        assert await begun.save_checkpoint(CHECKPOINT)
        assert isinstance(await begun.commit(()), Appended)
        assert list(await backend_of(store).checkpoints()) == [CHECKPOINT._replace(revision=1)]
        assert await transferred(store) == [1]

    async def test_batches_that_are_stored_first_are_committed_with_the_statements_behind_them(
        self, store: EventStore, backend: Backend
    ) -> None:
        await backend.change_checkpoints([AT_THE_START])
        await store.append("a", happened(1))
        async with transaction(store) as begun:
            late = write("a", b"9", expected=5)
            batches = [[write("a", b'{"number":2}', expected=1)], [late], [write("b", b'{"number":3}', expected=0)]]
            outcomes, ((checkpoint, page),) = await begun.store(batches, [unread()])
            assert [type(each) for each in outcomes] == [Appended, ConcurrencyError, Appended]
            assert checkpoint == AT_THE_START._replace(revision=1)
            assert [recorded.json()["number"] for recorded in page.events] == [1, 2, 3]
            assert page.is_end
            last = outcomes[2]
            assert isinstance(last, Appended)
            assert page.position == page.events[-1].position == last.position
            await transfer(begun, 1)
            assert isinstance(await begun.commit(()), Appended)
        assert (await transferred(store), await numbers(store.read_all())) == ([1], [1, 2, 3])
        assert [info.stream_id async for info in store.streams()] == ["a", "b"]
        # What goes by the usual way finds it, and goes on behind it.
        assert (await store.append("b", happened(4), expected_version=1)).versions == (2,)

    async def test_batches_that_are_stored_and_rolled_back_are_not_there(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await begun.store([[write("a", b"1", b"2")]])
            await transfer(begun, 1)
        assert (await transferred(store), await collect(store.read_all())) == ([], [])
        await store.append("a", happened(1), expected_version=0)

    async def test_batches_that_were_stored_before_are_not_stored_again(self, store: EventStore) -> None:
        batch, command = [write("a", b"1")], [write("b", commands=[outcome("once")])]
        for is_duplicate in (False, True):
            async with transaction(store) as begun:
                outcomes, _ = await begun.store([batch, command])
                assert [isinstance(each, Appended) and each.is_duplicate for each in outcomes] == [is_duplicate] * 2
                await begun.commit(())
        assert len(await collect(store.read_all())) == 1

    async def test_nobody_appends_between_what_is_stored_first_and_the_commit(
        self, store: EventStore, other: EventStore
    ) -> None:
        await backend_of(store).change_checkpoints([AT_THE_START])
        await other.append("c", happened(0))
        async with transaction(store) as begun:
            asked = unread(kinds=("a", "c", "d"))
            _, ((_, page),) = await begun.store([[write("a", b'{"number":1}')]], [asked])
            late = [asyncio.create_task(other.append(stream_id, happened(2))) for stream_id in ("c", "d")]
            await asyncio.sleep(0.1)
            assert not any(task.done() for task in late)
            assert [recorded.stream_id for recorded in page.events] == ["c", "a"]
            await begun.commit(())
        await asyncio.gather(*late)
        assert await numbers(store.read_all()) == [0, 1, 2, 2]

    async def test_what_is_stored_first_is_read_from_each_checkpoint_by_its_filter(self, store: EventStore) -> None:
        first = await store.append("a", happened(0))
        await store.append("b", happened(9))
        for name, position in (("begins", 0), ("goes on", first.position)):
            await backend_of(store).change_checkpoints([CHECKPOINT._replace(name=name, position=position)])
        batches = [[write("a", *(b'{"number":%d}' % n for n in range(1, 5)))], [write("b", b'{"number":9}')]]
        asked = [
            unread("begins", limit=3, kinds=("a",)),
            unread("goes on", kinds=("a",)),
            unread("goes on", tags=("x",)),
        ]
        async with transaction(store) as begun:
            _, found = await begun.store(batches, asked)
            assert [checkpoint.name for checkpoint, _ in found] == ["begins", "goes on", "goes on"]
            full, rest, nothing = (page for _, page in found)
            assert ([recorded.json()["number"] for recorded in full.events], full.is_end) == ([0, 1, 2], False)
            assert ([recorded.json()["number"] for recorded in rest.events], rest.is_end) == ([1, 2, 3, 4], True)
            assert [page.position for page in (full, rest)] == [page.events[-1].position for page in (full, rest)]
            assert (list(nothing.events), nothing.position, nothing.is_end) == ([], first.position, True)

    async def test_nothing_is_stored_where_a_checkpoint_is_not_there(self, store: EventStore) -> None:
        await backend_of(store).change_checkpoints([CHECKPOINT])
        for asked in ([unread(version=2)], [unread(), unread("nobody")]):
            async with transaction(store) as begun:
                with pytest.raises(TransactionConflict):
                    await begun.store([[write("a", b"1")]], asked)
        assert await collect(store.read_all()) == []
        await store.append("a", happened(1), expected_version=0)

    async def test_checkpoints_are_committed_with_the_batches_and_the_statements_or_none_of_it(
        self, store: EventStore, other: EventStore
    ) -> None:
        backend, second = backend_of(store), CHECKPOINT._replace(name="second")
        await backend.change_checkpoints([second])
        seen = second._replace(revision=1)
        async with transaction(store) as begun:
            await transfer(begun, 1)
            assert isinstance(await begun.commit([write("a", b"1")], [CHECKPOINT, seen]), Appended)
        stored = [CHECKPOINT._replace(revision=1), seen._replace(revision=2)]
        assert list(await backend.checkpoints()) == stored
        async with transaction(other) as begun:
            await transfer(begun, 2)
            with pytest.raises(TransactionConflict):
                await begun.commit([write("a", b"2")], [stored[0]._replace(position=9), seen])
        assert (await transferred(store), await store.version("a")) == ([1], 1)
        assert list(await backend.checkpoints()) == stored

    async def test_a_checkpoint_that_is_locked_is_changed_by_nobody_else(
        self, store: EventStore, other: EventStore
    ) -> None:
        await backend_of(store).change_checkpoints([CHECKPOINT])
        seen = CHECKPOINT._replace(revision=1)
        async with transaction(store) as begun:
            assert await begun.lock_checkpoint("nobody", 1) is None
            assert await begun.lock_checkpoint("reader", 2) is None
            assert await begun.lock_checkpoint("reader", 1) == seen
            late = asyncio.create_task(backend_of(other).change_checkpoints([seen._replace(position=2)]))
            await asyncio.sleep(0.1)
            assert not late.done()
            assert await begun.save_checkpoint(seen._replace(position=1))
            await begun.commit(())
        assert not await late
        assert list(await backend_of(store).checkpoints()) == [seen._replace(revision=2, position=1)]

    async def test_who_saves_over_one_that_is_being_saved_waits_and_fails(
        self, store: EventStore, other: EventStore
    ) -> None:
        await backend_of(store).change_checkpoints([CHECKPOINT])
        seen = CHECKPOINT._replace(revision=1)
        begun = await store.begin_sql(seconds=SECONDS)
        assert await begun.save_checkpoint(seen._replace(position=1))
        late = asyncio.create_task(backend_of(other).change_checkpoints([seen._replace(position=2)]))
        await asyncio.sleep(0.1)
        assert not late.done()
        await begun.commit(())
        assert not await late
        assert list(await backend_of(store).checkpoints()) == [seen._replace(revision=2, position=1)]


@asynccontextmanager
async def transaction(store: EventStore, seconds: float = SECONDS) -> AsyncGenerator[SqlTransaction, None]:
    """One that is rolled back at the end of the block, unless it was committed in it."""
    begun = await store.begin_sql(seconds=seconds)
    try:
        yield begun
    finally:
        await begun.rollback()


def unread(name: str = CHECKPOINT.name, version: int = 1, limit: int = 10, **fields: tuple[str, ...]) -> Unread:
    return Unread(name, version, EventFilter(**fields), limit)


async def transfer(begun: SqlTransaction, number: int) -> None:
    await begun.connection.execute(insert(TRANSFERS).values(id=number, amount=10 * number))


async def transferred(store: EventStore) -> Sequence[int]:
    """The numbers of what was transferred, as a transaction that comes later sees it."""
    async with transaction(store) as begun:
        return (await begun.connection.execute(select(TRANSFERS.c.id).order_by(TRANSFERS.c.id))).scalars().all()


async def commit(store: EventStore, batch: Batch, *statements: str) -> AppendOutcome:
    """Execute statements, and commit them with a batch."""
    async with transaction(store) as begun:
        for statement in statements:
            await begun.connection.execute(text(statement))
        return await begun.commit(batch)
