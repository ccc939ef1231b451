"""The user's own SQL and events in one commit on Postgres: what fails, who waits for whom, and what is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from sqlalchemy import text

from backends import postgres_session
from backends.conformance.events import collect, happened, numbers, write
from backends.conformance.sql import commit, transaction
from eventstore import (
    Appended,
    BackendUnavailable,
    ConcurrencyError,
    ConnectionsBusy,
    EventStore,
    OutcomeUnknown,
    TransactionConflict,
    TransactionExpired,
    TransactionRefused,
)
from eventstore.backend import StoredCheckpoint
from eventstore.contract.sql_transaction import SqlTransaction
from eventstore.schema import upgrade
from eventstore.store import Append
from eventstore.url import parse_store_url
from tests.servers.postgres import Postgres
from tests.servers.proxy import FaultProxy

from .pooling_proxy import PoolingProxy
from .postgres_help import PATIENCE, connected, execute, fetch, proxy_to, unfinished_append, until, via, with_parameters
from .sql_kills import survives_kills

# At the commit, wait until somebody lets go.
HOLD_COMMITS = (
    "CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; "
    "END'; CREATE CONSTRAINT TRIGGER hold AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
    "EXECUTE FUNCTION hold(); SELECT pg_advisory_lock(7)"
)
LET_GO = "SELECT pg_advisory_unlock(7)"
OURS = "application_name = 'eventstore' AND datname = current_database()"


@pytest_asyncio.fixture(autouse=True)
async def ledger(postgres_url: str) -> None:
    await execute(postgres_url, "CREATE TABLE ledger (n int PRIMARY KEY, amount int)")


@pytest_asyncio.fixture
async def store(postgres_url: str) -> AsyncIterator[EventStore]:
    async with EventStore.open(postgres_url) as store:
        yield store


@pytest_asyncio.fixture
async def proxy(postgres_url: str) -> AsyncIterator[FaultProxy]:
    async with proxy_to(postgres_url) as proxy:
        yield proxy


async def enter(begun: SqlTransaction, number: int) -> None:
    await begun.connection.execute(text("INSERT INTO ledger VALUES (:n, 0)"), {"n": number})


async def entered(url: str) -> list[int]:
    return [row[0] for row in await fetch(url, "SELECT n FROM ledger ORDER BY n")]


async def waiting_for(url: str, event: str) -> None:
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {OURS} AND wait_event = $1"
    async with asyncio.timeout(PATIENCE):
        while not (await fetch(url, query, event))[0][0]:
            await asyncio.sleep(0.01)


async def nothing_is_open(url: str) -> None:
    """No session of a store is in a transaction, or waits for anything but the next statement."""
    query = f"SELECT state, query FROM pg_stat_activity WHERE {OURS} AND state <> 'idle'"
    async with asyncio.timeout(PATIENCE):
        while await fetch(url, query):
            await asyncio.sleep(0.01)


class TestAcrossTheNetwork:
    async def test_a_commit_whose_reply_is_lost_is_found_out(self, postgres_url: str, proxy: FaultProxy) -> None:
        async with EventStore.open(via(proxy, postgres_url)) as store:
            begun = await store.begin_sql(seconds=30)
            await enter(begun, 1)
            proxy.lose_reply(to=b"COMMIT")
            stored = await begun.commit([write("a", b"1", expected=0)])
            assert isinstance(stored, Appended)
            assert (stored.versions, stored.is_duplicate) == ((1,), False)
            assert (await collect(store.read("a")))[0].position == stored.position
            await begun.rollback()
        assert proxy.lost_replies == 1
        assert await entered(postgres_url) == [1]
        await nothing_is_open(postgres_url)

    @pytest.mark.parametrize("batch", [[], [write("a", expected=1)]], ids=["no batch", "an assertion"])
    async def test_so_is_one_without_any_id(self, postgres_url: str, proxy: FaultProxy, batch: Any) -> None:
        async with EventStore.open(via(proxy, postgres_url)) as store:
            await store.append("a", happened(1))
            async with transaction(store) as begun:
                await enter(begun, 1)
                proxy.lose_reply(to=b"COMMIT")
                assert isinstance(await begun.commit(batch), Appended)
        assert await entered(postgres_url) == [1]

    async def test_an_append_whose_reply_is_lost_is_certainly_not_stored(
        self, postgres_url: str, proxy: FaultProxy
    ) -> None:
        async with EventStore.open(via(proxy, postgres_url)) as store:
            async with transaction(store) as begun:
                await enter(begun, 1)
                proxy.lose_reply(to=b"lost-payload")
                with pytest.raises(BackendUnavailable, match="nothing of it was stored"):
                    await begun.commit([write("a", b'"lost-payload"', expected=0)])
            assert proxy.lost_replies == 1
            assert await store.version("a") == 0
        assert await entered(postgres_url) == []

    async def test_a_statement_whose_reply_is_lost_tells_that_nothing_was_stored(
        self, postgres_url: str, proxy: FaultProxy
    ) -> None:
        async with EventStore.open(via(proxy, postgres_url)) as store:
            async with transaction(store) as begun:
                await enter(begun, 1)
                proxy.lose_reply(to=b"INSERT INTO ledger")
                with pytest.raises(BackendUnavailable, match="nothing of it was stored"):
                    await begun.connection.execute(text("INSERT INTO ledger VALUES (2, 2)"))
                with pytest.raises(BackendUnavailable):
                    await enter(begun, 3)
                with pytest.raises(BackendUnavailable):
                    await begun.commit([write("a", b"1")])
            # The next one is on another connection.
            assert isinstance(await commit(store, [write("a", b"1", expected=0)]), Appended)
        assert await entered(postgres_url) == []

    @pytest.mark.parametrize("is_ended", [False, True], ids=["commits late", "is ended"])
    @pytest.mark.parametrize("stream_id", ["known", "new"])
    async def test_a_commit_that_comes_later_is_waited_for(
        self, postgres_url: str, proxy: FaultProxy, stream_id: str, is_ended: bool
    ) -> None:
        async with EventStore.open(via(proxy, postgres_url)) as store, connected(postgres_url) as holder:
            await store.append("known", happened(0))
            await holder.execute(HOLD_COMMITS)
            begun = await store.begin_sql(seconds=60)
            await enter(begun, 1)
            committing = asyncio.create_task(begun.commit([write(stream_id, b'{"number":1}')]))
            await waiting_for(postgres_url, "advisory")
            proxy.reset()
            # Whoever finds out waits for the one that commits.
            await waiting_for(postgres_url, "transactionid")
            await asyncio.sleep(0.3)
            assert not committing.done()
            assert await entered(postgres_url) == []
            if is_ended:
                terminate = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS} AND wait_event = "
                await fetch(postgres_url, terminate + "'advisory'")
                with pytest.raises(BackendUnavailable, match="nothing of it was stored"):
                    await committing
            else:
                await holder.execute(LET_GO)
                assert isinstance(await committing, Appended)
            assert await numbers(store.read(stream_id)) == ([0] if stream_id == "known" else []) + [1] * (not is_ended)
        assert await entered(postgres_url) == [1] * (not is_ended)

    async def test_what_is_not_found_out_in_time_is_unknown(self, postgres_url: str, proxy: FaultProxy) -> None:
        distant = via(proxy, postgres_url, connect_timeout=20)
        async with EventStore.open(distant, resolve_within=0.5) as store:
            begun = await store.begin_sql(seconds=30)
            await enter(begun, 1)
            proxy.lose_reply(to=b"COMMIT")
            proxy.refuse()
            with pytest.raises(OutcomeUnknown):
                await begun.commit([write("a", b"1")])
            await begun.rollback()
        assert await entered(postgres_url) == [1]

    async def test_a_server_that_was_started_anew_is_asked_for_the_ids(self, own_postgres: Postgres) -> None:
        url = own_postgres.url()
        upgrade(parse_store_url(url))
        await execute(url, "CREATE TABLE ledger (n int PRIMARY KEY, amount int)")
        async with proxy_to(url) as proxy, EventStore.open(via(proxy, url)) as store:
            begun = await store.begin_sql(seconds=30)
            await enter(begun, 1)
            proxy.lose_reply(to=b"COMMIT")
            proxy.refuse()
            committing = asyncio.create_task(begun.commit([write("a", b"1")]))
            await until(lambda: proxy.resets)
            own_postgres.restart()
            await proxy.accept()
            assert isinstance(await committing, Appended)

            # The next one is not committed when the server ends.
            async with connected(url) as holder:
                await holder.execute(HOLD_COMMITS)
                begun = await store.begin_sql(seconds=30)
                await enter(begun, 2)
                committing = asyncio.create_task(begun.commit([write("a", b"2")]))
                await waiting_for(url, "advisory")
                own_postgres.crash()
            own_postgres.start()
            with pytest.raises(BackendUnavailable, match="nothing of it was stored"):
                await committing
        assert await entered(url) == [1]


class TestOthers:
    async def test_of_two_that_wait_for_each_other_one_is_told_to_run_again(self, store: EventStore) -> None:
        await commit(store, [], "INSERT INTO ledger VALUES (1, 0), (2, 0)")

        async def run(first: int, second: int, met: asyncio.Barrier) -> object:
            async with transaction(store) as begun:
                update = text("UPDATE ledger SET amount = amount + 1 WHERE n = :n")
                await begun.connection.execute(update, {"n": first})
                await met.wait()
                try:
                    await begun.connection.execute(update, {"n": second})
                except TransactionConflict as conflict:
                    return conflict
                return await begun.commit([write(f"s-{first}", b"1")])

        met = asyncio.Barrier(2)
        outcomes = await asyncio.gather(run(1, 2, met), run(2, 1, met))
        assert sorted(type(each).__name__ for each in outcomes) == ["Appended", "TransactionConflict"]
        assert len(await collect(store.read_all())) == 1

    async def test_a_serialization_failure_is_a_conflict(self, postgres_url: str, store: EventStore) -> None:
        await commit(store, [], "INSERT INTO ledger VALUES (1, 0)")
        async with transaction(store) as begun:
            await begun.connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            await begun.connection.execute(text("SELECT * FROM ledger"))
            await execute(postgres_url, "UPDATE ledger SET amount = 5")
            with pytest.raises(TransactionConflict):
                await begun.connection.execute(text("UPDATE ledger SET amount = 6"))

    async def test_who_waits_for_a_row_is_served_when_the_time_of_its_holder_is_over(self, store: EventStore) -> None:
        await commit(store, [], "INSERT INTO ledger VALUES (1, 0)")
        update = text("UPDATE ledger SET amount = amount + 1")
        dawdling = await store.begin_sql(seconds=1.5)
        await dawdling.connection.execute(update)
        async with transaction(store) as begun, asyncio.timeout(PATIENCE):
            await begun.connection.execute(update)
            assert isinstance(await begun.commit([write("a", b"1")]), Appended)
        with pytest.raises(TransactionExpired):
            await dawdling.commit([write("a", b"1")])
        await dawdling.rollback()

    async def test_a_loop_that_is_kept_busy_holds_nobody_up_for_longer(
        self, postgres_url: str, store: EventStore
    ) -> None:
        begun = await store.begin_sql(seconds=1.5)
        await enter(begun, 1)
        program = "import asyncio, sys, time, asyncpg\n" + (
            "async def main():\n"
            "    connection = await asyncpg.connect(sys.argv[1])\n"
            "    started = time.monotonic()\n"
            "    await connection.execute('INSERT INTO ledger VALUES (1, 1)')\n"
            "    print(time.monotonic() - started)\n"
            "asyncio.run(main())\n"
        )
        import subprocess
        import sys

        plain = urlsplit(postgres_url)._replace(query="").geturl()
        # Nothing of this loop runs meanwhile, so the server alone can end it.
        done = subprocess.run(
            [sys.executable, "-c", program, plain], capture_output=True, text=True, timeout=120, check=True
        )
        assert 0 < float(done.stdout) < PATIENCE
        with pytest.raises(TransactionExpired):
            await enter(begun, 2)
        await begun.rollback()

    async def test_a_statement_that_takes_too_long_is_ended_on_the_server_too(
        self, postgres_url: str, store: EventStore
    ) -> None:
        async with transaction(store, seconds=1.5) as begun:
            with pytest.raises(TransactionExpired):
                await begun.connection.execute(text("SELECT pg_sleep(30)"))
        async with asyncio.timeout(PATIENCE):
            await nothing_is_open(postgres_url)

    async def test_a_commit_that_waits_for_a_stream_ends_in_time(self, postgres_url: str, store: EventStore) -> None:
        async with unfinished_append(postgres_url, "a") as other:
            async with transaction(store, seconds=1.5) as begun:
                await enter(begun, 1)
                with pytest.raises(TransactionExpired):
                    await begun.commit([write("a", b"1")])
            await other.execute("COMMIT")
        assert await entered(postgres_url) == []
        assert await store.version("a") == 1

    async def test_a_commit_waits_for_the_append_before_it(self, postgres_url: str, store: EventStore) -> None:
        async with unfinished_append(postgres_url, "a") as other, transaction(store, seconds=30) as begun:
            committing = asyncio.create_task(begun.commit([write("a", b"1", expected=1)]))
            await waiting_for(postgres_url, "transactionid")
            await other.execute("COMMIT")
            assert isinstance(await committing, Appended)

    @pytest.mark.parametrize("stream_id", ["known", "new"])
    async def test_no_append_comes_between_an_assertion_and_the_commit(
        self, postgres_url: str, store: EventStore, stream_id: str
    ) -> None:
        await store.append("known", happened(1))
        version = await store.version(stream_id)
        async with connected(postgres_url) as holder:
            await holder.execute(HOLD_COMMITS)
            async with transaction(store, seconds=60) as begun:
                await enter(begun, 1)
                committing = asyncio.create_task(begun.commit([write(stream_id, expected=version)]))
                await waiting_for(postgres_url, "advisory")
                # The version was found right, and the transaction is not committed yet.
                appending = asyncio.create_task(store.append(stream_id, happened(2)))
                await waiting_for(postgres_url, "transactionid")
                await asyncio.sleep(0.2)
                assert not appending.done()
                await holder.execute(LET_GO)
                assert isinstance(await committing, Appended)
                assert (await appending).versions == (version + 1,)

    async def test_it_waits_for_a_place_and_then_says_so(self, postgres_url: str) -> None:
        async with EventStore.open(with_parameters(postgres_url, pool_size=1, command_timeout=2)) as store:
            async with transaction(store):
                with pytest.raises(ConnectionsBusy):
                    await store.begin_sql(seconds=1)
            async with transaction(store):
                pass

    async def test_a_connection_that_ends_while_it_is_made_is_a_database_that_cannot_be_reached(
        self, postgres_url: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Else it would be taken for a server that starts, and be waited for.
        monkeypatch.setattr(postgres_session, "_COMES_BACK", ())
        monkeypatch.setattr(postgres_session, "_MOST_CUTS", 0)
        # Each time it ends a little later, until that is behind all that it begins with.
        sizes = range(0, 20_000, 100)
        for size in sizes:
            async with EventStore.open(via(proxy, postgres_url)) as store:
                await store.append("a", happened(1))
                proxy.cut_after = size
                try:
                    begun = await store.begin_sql(seconds=30)
                except BackendUnavailable:
                    continue
                finally:
                    proxy.cut_after = None
                await begun.rollback()
                break
        assert 1000 < size < sizes[-1]


class TestWhatTheUserDoes:
    async def test_a_constraint_that_is_checked_at_the_commit_refuses_it(
        self, postgres_url: str, store: EventStore
    ) -> None:
        await execute(postgres_url, "CREATE TABLE child (n int REFERENCES ledger DEFERRABLE INITIALLY DEFERRED)")
        async with transaction(store) as begun:
            await begun.connection.execute(text("INSERT INTO child VALUES (9)"))
            with pytest.raises(TransactionRefused, match="nothing was stored"):
                await begun.commit([write("a", b"1")])
        assert await store.version("a") == 0
        assert await fetch(postgres_url, "SELECT * FROM child") == []

    @pytest.mark.parametrize("batch", [[], [write("a", b"1")]], ids=["no batch", "an event"])
    async def test_a_statement_that_failed_and_was_passed_over_refuses_the_commit(
        self, postgres_url: str, store: EventStore, batch: Any
    ) -> None:
        async with transaction(store) as begun:
            await enter(begun, 1)
            with pytest.raises(Exception, match="no_such_table"):
                await begun.connection.execute(text("SELECT * FROM no_such_table"))
            with pytest.raises(TransactionRefused):
                await begun.commit(batch)
        assert await entered(postgres_url) == []
        assert await store.version("a") == 0

    async def test_the_users_tables_are_found_where_the_database_has_them(self, empty_postgres_url: str) -> None:
        url = with_parameters(empty_postgres_url, schema="journal")
        await execute(empty_postgres_url, "CREATE SCHEMA journal; CREATE TABLE ledger (n int, amount int)")
        upgrade(parse_store_url(url))
        async with EventStore.open(url) as store, transaction(store) as begun:
            await enter(begun, 1)
            assert isinstance(await begun.commit([write("a", b"1")]), Appended)
        assert await entered(empty_postgres_url) == [1]
        assert await fetch(empty_postgres_url, "SELECT count(*) FROM journal.journal_events") == [(1,)]

    async def test_nothing_that_is_set_in_one_transaction_is_seen_in_the_next(self, postgres_url: str) -> None:
        async with EventStore.open(with_parameters(postgres_url, pool_size=1)) as store:
            pids: list[int] = []
            for _ in range(3):
                async with transaction(store) as begun:
                    for statement in (
                        "CREATE TEMP TABLE mine (n int)",
                        "SET search_path = pg_catalog",
                        "SET statement_timeout = 7000",
                        "SELECT pg_advisory_lock(9)",
                    ):
                        await begun.connection.execute(text(statement))
                    assert isinstance(await begun.commit([write("a", b"1")]), Appended)
                async with transaction(store) as begun:
                    await enter(begun, len(pids))
                    found = text("SELECT pg_backend_pid(), current_setting('search_path')")
                    pid, path = (await begun.connection.execute(found)).one()
                    assert path != "pg_catalog"
                    pids.append(pid)
                    await begun.commit([])
            # It was one connection all the time.
            assert len(set(pids)) == 1
            free = await fetch(postgres_url, "SELECT pg_try_advisory_lock(9)")
            assert free == [(True,)]

    async def test_its_statements_are_planned_as_the_server_does_and_the_journals_are_not(
        self, store: EventStore
    ) -> None:
        async with transaction(store) as begun:
            for name, value in (("enable_seqscan", "on"), ("plan_cache_mode", "auto")):
                shown = await begun.connection.execute(text(f"SHOW {name}"))
                assert shown.scalar_one() == value

    async def test_a_commit_is_durable_whatever_the_user_has_set(self, postgres_url: str, store: EventStore) -> None:
        await execute(
            postgres_url,
            "CREATE TABLE seen (setting text); CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN "
            "INSERT INTO seen VALUES (current_setting(''synchronous_commit'')); RETURN NULL; END'; "
            "CREATE CONSTRAINT TRIGGER look AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
            "EXECUTE FUNCTION look()",
        )
        async with transaction(store) as begun:
            await begun.connection.execute(text("SET LOCAL synchronous_commit = off"))
            await enter(begun, 1)
            await begun.commit([])
        assert await fetch(postgres_url, "SELECT * FROM seen") == [("on",)]

    async def test_no_error_shows_the_password(self, postgres_url: str, proxy: FaultProxy) -> None:
        parts = urlsplit(via(proxy, postgres_url))
        user, host = (parts.username or "postgres"), parts.netloc.rpartition("@")[2]
        url = parts._replace(netloc=f"{user}:s3cret-word@{host}").geturl()
        shown: list[str] = []
        async with EventStore.open(url) as store:
            for fault in ("COMMIT", "journal_streams", "INSERT INTO ledger"):
                begun = await store.begin_sql(seconds=30)
                proxy.lose_reply(to=fault.encode())
                try:
                    await begun.connection.execute(text("INSERT INTO ledger VALUES (1, 1)"))
                    await begun.commit([write("a", b"1")])
                except Exception as error:
                    chained: BaseException | None = error
                    while chained is not None:
                        shown.append(f"{chained} {chained!r}")
                        chained = chained.__cause__
                proxy.keep_replies()
                await begun.rollback()
        assert shown
        assert "s3cret" not in "".join(shown)


@pytest.mark.parametrize("is_stored_first", [True, False])
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_one_that_was_ended_on_the_drivers_own_connection_stores_nothing_more_and_says_so(
    store: EventStore, postgres_url: str, end: str, is_stored_first: bool
):
    async with transaction(store) as begun:
        if is_stored_first:
            await begun.store([[write("a", b"1")]])
        await enter(begun, 1)
        driver: Any = (await begun.connection.get_raw_connection()).driver_connection
        await driver.execute(end)
        with pytest.raises(TransactionRefused, match="has ended the transaction"):
            await enter(begun, 2)
        with pytest.raises(TransactionRefused, match="has ended the transaction"):
            await begun.save_checkpoint(StoredCheckpoint("reader", 1, 0, 0, 0, bytes(16), b"{}"))
        with pytest.raises(TransactionRefused, match="has ended the transaction"):
            await begun.commit([] if is_stored_first else [write("a", b"1")])
    is_committed = end == "COMMIT"
    assert await entered(postgres_url) == [1] * is_committed
    assert await store.version("a") == is_committed * is_stored_first
    assert await store.stored_checkpoints() == []


async def test_a_kill_leaves_rows_and_events_together_or_neither(postgres_url: str) -> None:
    await execute(postgres_url, "DROP TABLE ledger")
    await survives_kills(postgres_url, 8)


@pytest_asyncio.fixture
async def pooling(postgres_url: str) -> AsyncIterator[PoolingProxy]:
    parts = urlsplit(postgres_url)
    async with PoolingProxy(parts.hostname or "", parts.port or 5432) as pooling:
        yield pooling


class TestBehindAProxyThatPools:
    @pytest.fixture
    def url(self, postgres_url: str, pooling: PoolingProxy) -> str:
        parts = urlsplit(postgres_url)
        user = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{user}@{pooling.host}:{pooling.port}").geturl()

    async def test_more_transactions_than_the_proxy_has_sessions_are_all_served(
        self, postgres_url: str, url: str, pooling: PoolingProxy
    ) -> None:
        async with EventStore.open(url) as one, EventStore.open(url) as two:

            async def run(number: int) -> None:
                store = (one, two)[number % 2]
                async with transaction(store) as begun:
                    for part in range(3):
                        await enter(begun, 10 * number + part)
                    assert isinstance(await begun.commit([write(f"s-{number % 3}", b"1")]), Appended)
                await store.append("a", happened(number))

            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(run(number) for number in range(12)))
            assert len(await collect(one.read_all())) == 24
        assert pooling.changes > 12
        assert pooling.refused == []
        assert len(await entered(postgres_url)) == 36

    async def test_one_whose_time_is_over_is_let_go(self, postgres_url: str, url: str) -> None:
        async with asyncio.timeout(PATIENCE), EventStore.open(url) as store:
            for number in range(4):
                with pytest.raises(TransactionExpired):
                    async with transaction(store, seconds=0.2) as begun:
                        await enter(begun, number)
                        await asyncio.sleep(0.4)
                        await enter(begun, 9)
            assert isinstance(await commit(store, [write("a", b"1")], "INSERT INTO ledger VALUES (5, 5)"), Appended)
        assert await entered(postgres_url) == [5]


async def test_a_session_that_was_lost_meanwhile_is_replaced(postgres_url: str, store: EventStore) -> None:
    await commit(store, [write("a", b"1")])
    await fetch(postgres_url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OURS}")
    assert isinstance(await commit(store, [write("a", b"1")], "INSERT INTO ledger VALUES (1, 1)"), Appended)


async def test_an_assertion_beside_events_holds_until_their_commit(postgres_url: str, store: EventStore) -> None:
    """Of an append without SQL: an append to the stream that was only read waits for it, and it for that one."""
    await store.append("read", happened(1))
    async with connected(postgres_url) as other:
        await other.execute("BEGIN; UPDATE journal_streams SET version = 2 WHERE stream_id = 'read'")
        appending = asyncio.create_task(store.append_batch([Append("a", happened(1), 0), Append("read", [], 1)]))
        await waiting_for(postgres_url, "transactionid")
        await asyncio.sleep(0.2)
        assert not appending.done()
        await other.execute("COMMIT")
        with pytest.raises(ConcurrencyError):
            await appending
    assert await store.version("a") == 0


async def test_an_asserted_absence_beside_events_holds_until_their_commit(postgres_url: str, store: EventStore) -> None:
    async with unfinished_append(postgres_url, "absent") as other:
        appending = asyncio.create_task(store.append_batch([Append("a", happened(1), 0), Append("absent", [], 0)]))
        await waiting_for(postgres_url, "transactionid")
        await asyncio.sleep(0.2)
        assert not appending.done()
        await other.execute("COMMIT")
        with pytest.raises(ConcurrencyError):
            await appending
    assert await store.version("a") == 0
