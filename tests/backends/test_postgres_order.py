"""No reader of the log ever passes an event that is still to come, and none waits for what is no append."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import pytest

from backends.conformance.events import collect, happened, numbers, outcome, write
from backends.postgres_session import PostgresSession
from eventstore import BackendUnavailable, EventStore, EventStoreError, JournalLost, schema
from eventstore.audit import find, totals
from eventstore.backend import EventFilter
from eventstore.contract.audit_query import AuditQuery
from eventstore.url import parse_store_url
from tests.patience import opened_patiently, patiently

from .postgres_help import (
    PATIENCE,
    backend_of,
    connected,
    fetch,
    unfinished_append,
    waiting_for_locks,
    with_parameters,
)

EVERYTHING = EventFilter()


async def positions(url: str, after: int = 0) -> list[int]:
    """What a reader sees who asks for everything behind the last position he knows."""
    return [
        row[0] for row in await fetch(url, "SELECT position FROM journal_events WHERE position > $1 ORDER BY 1", after)
    ]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_reader_does_not_pass_an_append_that_may_still_store_below(postgres_url: str, end: str) -> None:
    async with EventStore.open(postgres_url) as writer, EventStore.open(postgres_url) as reader:
        await writer.append("before", happened(1))
        async with unfinished_append(postgres_url, "held") as held:
            later = await writer.append("later", happened(2))
            reading = asyncio.create_task(collect(reader.read_all()))
            await asyncio.wait([reading], timeout=0.3)
            assert not reading.done()
            # The naive reader has passed it by now, and will never see it.
            assert await positions(postgres_url) == [1, later.position]
            await held.execute(end)
            async with asyncio.timeout(PATIENCE):
                seen = [recorded.stream_id for recorded in await reading]
    assert seen == (["before", "held", "later"] if end == "COMMIT" else ["before", "later"])


@pytest.mark.parametrize("sort", ["plain", "owned", "with commands"])
@pytest.mark.parametrize("is_careful", [False, True])
async def test_whichever_way_an_append_goes_readers_wait_for_it(
    postgres_url: str, sort: str, *, is_careful: bool
) -> None:
    async with EventStore.open(postgres_url) as writer, EventStore.open(postgres_url) as other:
        appending = backend_of(writer)
        epoch = await writer.claim("held") if sort == "owned" else None
        await appending.append([[write("held", b"1", epoch=epoch)]])
        await other.append("later", happened(2))
        appending._open.append._is_careful_until = math.inf if is_careful else 0.0
        async with connected(postgres_url) as holder:
            await holder.execute(
                "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'; "
                "CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON journal_events DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW WHEN (NEW.payload = '3') EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
            )
            commands = [outcome("c")] if sort == "with commands" else []
            held = appending.append([[write("held", b"3", epoch=epoch, commands=commands)]])
            await waiting_for_locks(postgres_url, 1)
            later = await other.append("later", happened(4))
            reading = asyncio.create_task(collect(other.read_all()))
            await asyncio.wait([reading], timeout=0.3)
            assert not reading.done()
            # It has taken the position below.
            assert await positions(postgres_url) == [1, 2, 4]
            assert later.position == 4
            await holder.execute("SELECT pg_advisory_unlock(7)")
            await held
            async with asyncio.timeout(PATIENCE):
                assert [recorded.position for recorded in await reading] == [1, 2, 3, 4]


async def test_a_subscriber_gets_what_was_held_back_before_what_came_later(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as writer, EventStore.open(postgres_url) as reader:
        seen: list[str] = []

        async def follow() -> None:
            async for recorded in reader.subscribe(poll_seconds=0.05):
                seen.append(recorded.stream_id)  # noqa: PERF401  (it is looked at while it grows)

        following = asyncio.create_task(follow())
        async with unfinished_append(postgres_url, "held") as held:
            await writer.append("later", happened(2))
            await asyncio.sleep(0.3)
            assert seen == []
            await held.execute("COMMIT")
            async with asyncio.timeout(PATIENCE):
                while len(seen) < 2:
                    await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.wait([following])
    assert seen == ["held", "later"]


async def test_an_append_that_never_ends_stops_readers_with_an_error_and_not_for_ever(postgres_url: str) -> None:
    async with opened_patiently(with_parameters(postgres_url, command_timeout=1.5)) as store:
        await store.append("a", happened(1, 2, 3))
        assert await patiently(lambda: numbers(store.read_all())) == [1, 2, 3]
        async with unfinished_append(postgres_url, "held"):
            await store.append("a", happened(4))
            began = time.monotonic()
            with pytest.raises(BackendUnavailable, match="an append has been under way for 1.5 s"):
                await collect(store.read_all())
            assert time.monotonic() - began < PATIENCE
            # What is final is served all the same.
            page = await patiently(lambda: store.read_page(limit=3))
            assert [recorded.version for recorded in page.events] == [1, 2, 3]
            assert not page.is_end
        assert await patiently(lambda: numbers(store.read_all())) == [1, 2, 3, 4]


async def test_a_long_transaction_of_somebody_else_holds_no_reader_up(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, connected(postgres_url) as other:
        await other.execute(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; CREATE TABLE mine (id int); INSERT INTO mine VALUES (1)"
        )
        await other.execute("SELECT count(*) FROM journal_events; SELECT pg_advisory_xact_lock_shared(1)")
        await store.append("a", happened(1))
        began = time.monotonic()
        assert await numbers(store.read_all()) == [1]
        assert time.monotonic() - began < PATIENCE
        await other.execute("COMMIT")


async def test_an_append_to_the_journal_of_another_schema_holds_no_reader_up(postgres_url: str) -> None:
    other = with_parameters(postgres_url, schema="other")
    await asyncio.to_thread(schema.upgrade, parse_store_url(other))
    async with EventStore.open(postgres_url) as store, unfinished_append(postgres_url, "held", schema="other"):
        await store.append("a", happened(1))
        async with asyncio.timeout(PATIENCE):
            assert await numbers(store.read_all()) == [1]


async def test_who_starts_with_new_events_alone_does_not_start_behind_one_that_is_still_to_come(
    postgres_url: str,
) -> None:
    async with EventStore.open(postgres_url) as store:
        async with unfinished_append(postgres_url, "held") as held:
            await store.append("later", happened(2))
            starting = asyncio.create_task(backend_of(store).start_of_last(0, EVERYTHING))
            await asyncio.wait([starting], timeout=0.2)
            assert not starting.done()
            await held.execute("COMMIT")
            async with asyncio.timeout(PATIENCE):
                start = await starting
        assert start == max(await positions(postgres_url))


async def test_the_position_of_an_append_to_a_waiting_stream_is_taken_when_its_turn_comes(postgres_url: str) -> None:
    # Taken earlier, it would stand below the event that the stream got first.
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(1))
        await other.append("a", happened(2))
        async with connected(postgres_url) as holder:
            await holder.execute("BEGIN; SELECT * FROM journal_streams WHERE stream_id = 'a' FOR UPDATE")
            waiting = asyncio.create_task(store.append("a", happened(4)))
            await asyncio.sleep(0.2)
            await other.append("b", happened(3))
            await holder.execute("COMMIT")
            async with asyncio.timeout(PATIENCE):
                await waiting
        assert await numbers(store.read_all()) == [1, 2, 3, 4]


async def test_a_page_that_is_final_already_is_read_without_a_look_at_the_locks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(*range(30)))
        await collect(store.read_all())
        statements: list[str] = []
        fetch_rows = PostgresSession.fetch

        async def noted(self: PostgresSession, statement: str, *parameters: object) -> Any:
            if "pg_notify" not in statement:
                statements.append(statement)
            return await fetch_rows(self, statement, *parameters)

        monkeypatch.setattr(PostgresSession, "fetch", noted)
        await store.read_page(limit=10)
        assert len(statements) == 1
        assert "pg_locks" not in statements[0]


async def test_what_another_read_finds_settled_meanwhile_is_not_passed_over(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        await store.read_page()
        reader = backend_of(store)._open.reader
        read = reader._page

        async def slow(*part: Any) -> Any:
            page = await read(*part)
            monkeypatch.undo()
            await store.append("a", happened(2))
            await store.moved(after=0)
            return page

        monkeypatch.setattr(reader, "_page", slow)
        page = await store.read_page()
        assert [recorded.version for recorded in page.events] == [1, 2]


async def test_the_end_that_a_first_page_names_is_that_of_the_log_now(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(*range(20)))
        assert len(await collect(store.read_all())) == 20
        await other.append("b", happened(20))
        # The first page is final, and lies far before the end.
        assert await numbers(store.read_all(page_size=5)) == list(range(21))


async def test_where_the_log_ends_is_told_to_who_reads_none_of_it(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1, 2, 3))
        for _ in range(2):
            # The second time it is known already how far the log is final.
            page = await store.read_page(limit=0)
            assert (len(page.events), page.position, page.is_end, page.end) == (0, 0, False, 3)
            await collect(store.read_all())


async def set_back(url: str, position: int) -> None:
    """As after a fail-over to a standby that lagged, or from a backup: the newest events are not there."""
    async with connected(url) as owner:
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("DELETE FROM journal_events WHERE position > $1", position)
        await owner.execute("UPDATE journal_streams SET version = $1 WHERE stream_id = 'a'", position)
        await owner.fetch("SELECT setval('journal_events_position_seq', $1)", position)


@pytest.mark.parametrize("is_writer", [False, True])
@pytest.mark.parametrize("others", [0, 1, 3, 5])
async def test_a_server_that_has_lost_what_was_seen_of_it_is_refused(
    postgres_url: str, others: int, is_writer: bool
) -> None:
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(1, 2, 3))
        if not is_writer:
            store = other
            assert len(await collect(store.read_all())) == 3
        await set_back(postgres_url, 1)
        async with EventStore.open(postgres_url) as another:
            if others:
                await another.append("others", happened(*range(others)))
            if is_writer and others > 1:
                # It has only stored, and reads for the first time: it knows positions, and not what was there.
                assert len(await collect(store.read_all())) == 1 + others
            else:
                for after in (0, 2, 3):
                    with pytest.raises(JournalLost, match="at position 3 now|ends at position"):
                        await collect(store.read_all(after=after))
            assert len(await collect(another.read_all())) == 1 + others


async def test_a_page_that_was_final_is_refused_too_where_the_log_has_ended_before(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(*range(9)))
        await collect(store.read_all())
        await set_back(postgres_url, 5)
        with pytest.raises(JournalLost, match="ends at position 5, and has had an event at 9"):
            await store.read_page(limit=2)


@pytest.mark.parametrize("others", [0, 1, 2, 5])
async def test_nothing_is_appended_through_a_new_connection_to_a_server_that_has_lost_what_was_seen(
    postgres_url: str, others: int
) -> None:
    """No fail-over leaves a connection open."""
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as another:
        await store.append("a", happened(1, 2, 3))
        assert len(await collect(store.read_all())) == 3
        await set_back(postgres_url, 1)
        if others:
            await another.append("others", happened(*range(others)))
        for connection in (backend_of(store)._open.append._session, None):
            if connection is not None:
                connection.cut()
            with pytest.raises(JournalLost, match="at position 3 now|ends at position"):
                await store.append("b", happened(1))
        with pytest.raises(JournalLost, match="at position 3 now|ends at position"):
            await store.begin_sql(seconds=20)
        assert len(await collect(another.read_all())) == 1 + others


@pytest.mark.parametrize("through", [None, 2])
@pytest.mark.parametrize("others", [0, 1, 2, 5])
async def test_an_audit_is_refused_by_a_server_that_has_lost_what_was_seen_of_it(
    postgres_url: str, others: int, through: int | None
) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1, 2, 3))
        assert len(await collect(store.read_all())) == 3
        await set_back(postgres_url, 1)
        async with EventStore.open(postgres_url) as another:
            if others:
                await another.append("others", happened(*range(others)))
            query = AuditQuery(through=through)
            # Nor does it take for known what it has seen there.
            for reading in (find(store, query), find(store, query), store.read_all()):
                with pytest.raises(JournalLost, match="at position 3 now|ends at position"):
                    await collect(reading)
            with pytest.raises(JournalLost, match="at position 3 now|ends at position"):
                await totals(store, query)
            assert len(await collect(find(another, AuditQuery()))) == 1 + others
            assert (await totals(another, AuditQuery())).events == 1 + others


async def test_positions_that_a_breakdown_takes_back_are_final_no_more(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(1))
        async with unfinished_append(postgres_url, "held") as held:
            await held.execute("ROLLBACK")
        assert (await store.read_page()).position == 2
        # No event was lost: the server had not yet written down that the second position was taken.
        await set_back(postgres_url, 1)
        async with unfinished_append(postgres_url, "held") as held:
            later = await other.append("later", happened(3))
            reading = asyncio.create_task(collect(store.read_all()))
            await asyncio.wait([reading], timeout=0.3)
            assert not reading.done()
            await held.execute("COMMIT")
            async with asyncio.timeout(PATIENCE):
                seen = [(recorded.stream_id, recorded.position) for recorded in await reading]
    assert seen == [("a", 1), ("held", 2), ("later", later.position)]


async def test_positions_that_a_breakdown_takes_back_are_not_waited_for(postgres_url: str) -> None:
    async with EventStore.open(postgres_url) as store:
        await store.append("a", happened(1))
        async with unfinished_append(postgres_url, "held") as held:
            reading = asyncio.create_task(store.read_page())
            await asyncio.wait([reading], timeout=0.3)
            assert not reading.done()
            await fetch(postgres_url, "SELECT setval('journal_events_position_seq', 1)")
            await held.execute("ROLLBACK")
            async with asyncio.timeout(PATIENCE):
                assert (await reading).position == 1


async def test_a_position_that_was_not_committed_is_none_that_was_stored(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the last resort an append locks its streams, and commits behind its statement.
    monkeypatch.setattr("backends.postgres_append._OPTIMISTIC_ROUNDS", 0)
    async with EventStore.open(postgres_url) as store, EventStore.open(postgres_url) as other:
        await store.append("a", happened(1))
        await other.append("a", happened(2))
        async with connected(postgres_url) as owner:
            await owner.execute(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "'BEGIN RAISE EXCEPTION ''not this one''; END'; "
                "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON journal_events DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
            with pytest.raises(EventStoreError):
                await store.append("a", happened(3))
            await owner.execute("DROP TRIGGER refuse ON journal_events")
            # The server breaks down before it has written down that the position was taken.
            assert (await fetch(postgres_url, "SELECT last_value FROM journal_events_position_seq"))[0][0] > 2
            await owner.fetch("SELECT setval('journal_events_position_seq', 2)")
        assert await numbers(store.read_all()) == [1, 2]
        assert (await store.append("a", happened(3))).position == 3
        assert await numbers(store.read_all()) == [1, 2, 3]


async def test_truncations_are_recorded_in_the_order_in_which_they_can_be_seen(postgres_url: str) -> None:
    # Who has sealed what is recorded up to a number never looks below it again.
    async with EventStore.open(postgres_url) as store, connected(postgres_url) as holder:
        await store.append("a", happened(1, 2))
        await store.append("b", happened(1, 2))
        await holder.execute("BEGIN")
        await holder.fetch("SELECT 1 FROM journal_events WHERE position = 1 FOR UPDATE")
        first = asyncio.create_task(store.truncate("a", 1, reason="test"))
        await waiting_for_locks(postgres_url, 1)
        second = asyncio.create_task(store.truncate("b", 1, reason="test"))
        await waiting_for_locks(postgres_url, 2)
        await holder.execute("COMMIT")
        assert [await first, await second] == [1, 1]
        assert [removal.stream_id async for removal in store.removals()] == ["a", "b"]
