"""The user's own SQL and events in one commit on SQLite: the file's one writer, and what the user may not touch."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from backends import sqlite_append_sql, sqlite_checkpoints, sqlite_transaction
from backends.conformance.events import collect, happened, numbers, write
from backends.conformance.sql import commit, transaction
from backends.sqlite import SQLiteBackend
from backends.sqlite_user_connection import UserConnection
from eventstore import (
    Appended,
    BackendUnavailable,
    CapabilityError,
    EventStore,
    OutcomeUnknown,
    StoreBusy,
    StoreClosed,
    TransactionExpired,
    TransactionRefused,
)
from eventstore.backend import StoredCheckpoint
from eventstore.contract.sql_transaction import SqlTransaction

from .sql_kills import survives_kills

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest_asyncio.fixture
async def store(path: Path) -> AsyncIterator[EventStore]:
    async with EventStore.open(f"sqlite:///{path}") as store:
        await commit(store, [], "CREATE TABLE ledger (n INTEGER PRIMARY KEY, amount INTEGER)")
        yield store


async def enter(begun: SqlTransaction, number: int) -> None:
    await begun.connection.execute(text("INSERT INTO ledger VALUES (:n, 0)"), {"n": number})


def entered(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute("SELECT n FROM ledger ORDER BY n")]
    finally:
        connection.close()


class TestTheOneWriter:
    async def test_no_thread_is_left(self, store: EventStore) -> None:
        await collect(store.read_all())
        before = threading.active_count()
        for number in range(3):
            async with transaction(store) as begun:
                await enter(begun, number)
                await begun.commit([write("a", b"1")])
            async with transaction(store) as begun:
                await enter(begun, 9)
        with pytest.raises(TransactionExpired):
            async with transaction(store, seconds=0.1) as begun:
                await asyncio.sleep(0.3)
                await enter(begun, 9)
        async with asyncio.timeout(20):
            while threading.active_count() > before:
                await asyncio.sleep(0.01)

    async def test_it_has_less_time_than_others_wait(self, path: Path, store: EventStore) -> None:
        async with EventStore.open(f"sqlite:///{path}?busy_timeout=2.5") as hasty:
            with pytest.raises(TransactionExpired, match="2 s"):
                async with transaction(hasty, seconds=60) as begun:
                    started = time.monotonic()
                    # Those of the same process, and of another one.
                    await asyncio.gather(hasty.append("a", happened(1)), store.append("b", happened(1)))
                    assert 1.5 < time.monotonic() - started < 20
                    await enter(begun, 1)
        assert len(await collect(store.read_all())) == 2

    @pytest.mark.skipif(sqlite3.sqlite_version_info >= (3, 51, 3), reason="this SQLite keeps processes apart by itself")
    @pytest.mark.parametrize("end", ["commit", "rollback", "time"])
    async def test_it_holds_the_lock_that_keeps_processes_apart_to_its_end(
        self, path: Path, store: EventStore, end: str
    ) -> None:
        async with asyncio.timeout(30), transaction(store, seconds=1 if end == "time" else 30) as begun:
            await enter(begun, 1)
            with Path(f"{path}-lock").open("rb") as lock:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                match end:
                    case "commit":
                        await begun.commit([write("a", b"1")])
                    case "rollback":
                        await begun.rollback()
                    case _:
                        pass  # It is waited for.
                while True:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.01)

    async def test_where_nobody_waits_there_is_no_transaction(self, path: Path, store: EventStore) -> None:
        # It tells what it has done before it gives the file's lock back, for which nobody waits here.
        await store.close()
        async with EventStore.open(f"sqlite:///{path}?busy_timeout=0") as store:
            with pytest.raises(CapabilityError):
                await store.begin_sql(seconds=1)

    async def test_who_cannot_begin_in_time_is_told_so(self, path: Path, store: EventStore) -> None:
        async with EventStore.open(f"sqlite:///{path}?busy_timeout=0.3") as hasty:
            async with transaction(store, seconds=30) as begun:
                await enter(begun, 1)
                with pytest.raises(StoreBusy):
                    await hasty.begin_sql(seconds=0.2)
            assert isinstance(await commit(hasty, [write("a", b"1")]), Appended)

    async def test_a_loop_that_is_kept_busy_holds_nobody_up_for_longer(self, path: Path, store: EventStore) -> None:
        async with transaction(store, seconds=1) as begun:
            await enter(begun, 1)
            program = (
                "import asyncio, sys, time\n"
                "from eventstore import EventStore\n"
                "from backends.conformance.events import happened\n"
                "async def main():\n"
                "    async with EventStore.open(sys.argv[1]) as store:\n"
                "        await store.append('a', happened(1))\n"
                "asyncio.run(main())\n"
            )
            # Nothing of this loop runs meanwhile.
            subprocess.run([sys.executable, "-c", program, f"sqlite:///{path}"], cwd=ROOT, timeout=120, check=True)
            with pytest.raises(TransactionExpired):
                await enter(begun, 2)
        assert await numbers(store.read_all()) == [1]
        assert entered(path) == []

    async def test_a_statement_that_takes_too_long_is_ended(self, path: Path, store: EventStore) -> None:
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        async with transaction(store, seconds=1) as begun:
            await enter(begun, 1)
            with pytest.raises(TransactionExpired):
                await begun.connection.execute(text(endless))
        async with asyncio.timeout(20):
            await store.append("a", happened(1))
        assert entered(path) == []

    async def test_appends_and_transactions_take_turns(self, store: EventStore) -> None:
        ended = False

        async def transfers(offset: int) -> None:
            for number in range(30):
                async with transaction(store) as begun:
                    await enter(begun, offset + number)
                    await begun.commit([write("a", b"1")])

        async def appends() -> int:
            count = 0
            while not ended:
                await store.append("b", happened(count))
                count += 1
            return count

        appending = asyncio.create_task(appends())
        await asyncio.gather(*(transfers(1000 * number) for number in range(4)))
        ended = True
        # The writer's thread takes what comes first: between two transactions at the latest.
        assert await appending >= 30
        assert await store.version("a") == 120

    async def test_it_belongs_to_its_event_loop(self, store: EventStore) -> None:
        async with transaction(store) as begun:

            def elsewhere() -> None:
                asyncio.run(begun.commit([write("a", b"1")]))  # type: ignore[arg-type]

            with pytest.raises(Exception, match="loop"):
                await asyncio.to_thread(elsewhere)

    async def test_the_log_is_checkpointed_by_the_writer_alone(self, path: Path, store: EventStore) -> None:
        big = "INSERT INTO ledger SELECT value, zeroblob(4000) FROM json_each(:n)"
        await commit(store, [], "CREATE TABLE big (n INTEGER PRIMARY KEY, blob BLOB)")
        async with transaction(store) as begun:
            rows = "[" + ",".join(map(str, range(3000))) + "]"
            await begun.connection.execute(text(big.replace("ledger", "big")), {"n": rows})
            await begun.commit([])
        # 1,000 pages are what SQLite checkpoints at by itself.
        assert Path(f"{path}-wal").stat().st_size > 3000 * 4096
        size = path.stat().st_size
        await store.append("a", happened(1))
        assert path.stat().st_size > size

    async def test_abandoned_transactions_end_with_the_store(self, path: Path) -> None:
        async with EventStore.open(f"sqlite:///{path}") as store:
            begun = await store.begin_sql(seconds=30)
            await begun.connection.execute(text("CREATE TABLE ledger (n int)"))
            del begun
            gc.collect()
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT * FROM sqlite_master WHERE name = 'ledger'").fetchall() == []
        connection.close()


class TestWhatTheUserMayNotDo:
    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO journal_events (stream) VALUES (1)",
            "UPDATE journal_streams SET epoch = 9",
            "UPDATE JOURNAL_Streams SET epoch = 9",
            "DELETE FROM journal_commands",
            "DELETE FROM eventstore_version",
            "DROP TABLE journal_snapshots",
            "DROP TRIGGER journal_events_no_update",
            "CREATE TRIGGER mine AFTER INSERT ON journal_events BEGIN SELECT 1; END",
            "CREATE TEMP TRIGGER mine AFTER INSERT ON journal_events BEGIN SELECT 1; END",
            "CREATE TEMP TABLE journal_events (n)",
            "CREATE INDEX mine ON journal_events (type)",
            "ALTER TABLE journal_events ADD COLUMN mine",
            "CREATE TRIGGER mine AFTER INSERT ON ledger BEGIN DELETE FROM journal_commands; END",
            "COMMIT",
            "ROLLBACK",
            "PRAGMA writable_schema = ON",
            "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA journal_mode = DELETE",
            "ATTACH ':memory:' AS other",
        ],
    )
    async def test_it_is_refused_and_the_rest_goes_on(self, path: Path, store: EventStore, statement: str) -> None:
        await store.append("a", happened(1))
        async with transaction(store) as begun:
            await enter(begun, 1)
            with pytest.raises((CapabilityError, DBAPIError)):
                await begun.connection.execute(text(statement))
                # A trigger's own statements are looked at when it is used.
                await enter(begun, 2)
            if "CREATE TRIGGER mine AFTER INSERT ON ledger" in statement:
                await begun.connection.execute(text("DROP TRIGGER mine"))
            assert isinstance(await begun.commit([write("a", b'{"number":2}', expected=1)]), Appended)
        assert await numbers(store.read_all()) == [1, 2]
        assert entered(path) == [1]

    async def test_what_the_journal_says_itself_is_refused_to_the_user_in_the_same_words(
        self, store: EventStore
    ) -> None:
        """A connection keeps statements by their text, and does not look again at what these may do."""
        checkpoint = StoredCheckpoint("a", 1, 0, 0, 0, bytes(16), b"{}")
        async with transaction(store) as begun:
            await begun.save_checkpoint(checkpoint)
            await begun.store([[write("a", b"1")]])
            await begun.commit([], [checkpoint._replace(revision=1)])
        async with transaction(store) as begun:
            await begun.save_checkpoint(checkpoint._replace(revision=2))
            for sql in (
                "BEGIN IMMEDIATE",
                "COMMIT",
                sqlite_append_sql.EVENTS[1],
                sqlite_checkpoints._INSERT,
                sqlite_checkpoints._UPDATE,
            ):
                parameters = (1,) * sql.count("?")
                with pytest.raises(CapabilityError):
                    await begun.connection.exec_driver_sql(sql, parameters)
                with pytest.raises(CapabilityError):
                    await (await driver(begun)).execute(sql, parameters)
            await enter(begun, 1)
            await begun.commit([])
        assert len(await collect(store.read_all())) == 1

    async def test_the_authorizer_cannot_be_changed(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            with pytest.raises(CapabilityError):
                await (await driver(begun)).set_authorizer(None)
            with pytest.raises(CapabilityError):
                await begun.connection.exec_driver_sql("DELETE FROM journal_commands")

    async def test_a_temporary_table_cannot_take_the_place_of_one_of_the_journals(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await begun.connection.execute(text("CREATE TEMP TABLE mine (n)"))
            with pytest.raises(CapabilityError):
                await begun.connection.execute(text("ALTER TABLE mine RENAME TO journal_events"))

    async def test_it_may_read_the_journal_and_its_own_schema(self, store: EventStore) -> None:
        await store.append("a", happened(1))
        async with transaction(store) as begun:
            counted = await begun.connection.execute(text("SELECT count(*) FROM journal_events"))
            assert counted.scalar_one() == 1
            columns = await begun.connection.execute(text("PRAGMA table_info(ledger)"))
            assert [row.name for row in columns] == ["n", "amount"]

    @pytest.mark.parametrize("statement", ["INSERT OR ROLLBACK INTO ledger VALUES (1, 1)"])
    async def test_a_statement_that_rolls_everything_back_ends_it(
        self, path: Path, store: EventStore, statement: str
    ) -> None:
        async with transaction(store) as begun:
            await enter(begun, 1)
            with pytest.raises(IntegrityError):
                await begun.connection.execute(text(statement))
            # This one would be committed by itself.
            with pytest.raises(TransactionRefused):
                await enter(begun, 2)
            with pytest.raises(TransactionRefused):
                await begun.commit([write("a", b"1")])
        assert entered(path) == []
        assert await store.version("a") == 0

    async def test_a_foreign_key_that_is_checked_at_the_commit_refuses_it(self, path: Path, store: EventStore) -> None:
        references = "REFERENCES ledger DEFERRABLE INITIALLY DEFERRED"
        await commit(store, [], f"CREATE TABLE child (n INTEGER {references})")
        async with transaction(store) as begun:
            await begun.connection.execute(text("INSERT INTO child VALUES (9)"))
            with pytest.raises(TransactionRefused, match="nothing was stored"):
                await begun.commit([write("a", b"1")])
        assert await store.version("a") == 0
        assert isinstance(await commit(store, [write("a", b"1")]), Appended)


class TestTheConnection:
    """One transaction after another has the same, and finds nothing on it of the one before."""

    async def test_it_is_the_same(self, store: EventStore) -> None:
        numbers: list[int] = []
        for number in range(3):
            async with transaction(store) as begun:
                numbers.append(id((await driver(begun))._conn))
                await enter(begun, number)
                await begun.commit([])
        assert len(set(numbers)) == 1

    async def test_what_is_temporary_ends_with_the_transaction(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            await begun.connection.execute(text("CREATE TEMP TABLE scratch (n)"))
            await begun.commit([])
        async with transaction(store) as begun:
            with pytest.raises(DBAPIError, match="no such table: scratch"):
                await begun.connection.execute(text("SELECT * FROM scratch"))

    async def test_rows_come_as_before(self, store: EventStore) -> None:
        async with transaction(store) as begun:
            opened = await driver(begun)
            opened.row_factory = lambda *_: "a row"  # type: ignore[assignment,return-value]
            opened.text_factory = bytes
            await begun.commit([])
        async with transaction(store) as begun:
            assert (await begun.connection.execute(text("SELECT 'a', 1"))).all() == [("a", 1)]

    async def test_statements_are_prepared_once(self, store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """SQLite asks what a statement may do when it prepares it."""
        asked: list[int] = []
        authorize = UserConnection._authorize

        def counting(connection: UserConnection, *what: Any) -> int:
            asked[-1] += 1
            return authorize(connection, *what)

        await let_go_of_the_connection(store)
        monkeypatch.setattr(UserConnection, "_authorize", counting)
        for number in range(4):
            asked.append(0)
            async with transaction(store) as begun:
                await begun.store([[write("a", b"1")]])
                await begun.connection.exec_driver_sql("INSERT INTO ledger VALUES (?, 0)", (number,))
                await begun.commit([])
        # One virtual table prepares a statement of its own each time.
        assert asked[0] > 20
        assert max(asked[2:]) <= 1

    async def test_a_function_of_the_users_does_not_stand_for_the_usual_one(self, store: EventStore) -> None:
        asked = "SELECT 'abc' REGEXP 'b'"
        for is_replaced in (True, False, False):
            async with transaction(store) as begun:
                assert (await begun.connection.exec_driver_sql(asked)).scalar_one() == 1
                if is_replaced:
                    await (await driver(begun)).create_function("REGEXP", 2, lambda *_: 7)
                    assert (await begun.connection.exec_driver_sql(asked)).scalar_one() == 7
                await begun.commit([])

    async def test_rows_that_were_not_fetched_hold_nobody_up(self, path: Path, store: EventStore) -> None:
        await commit(store, [], "INSERT INTO ledger VALUES (1, 0), (2, 0), (3, 0)")
        async with transaction(store) as begun:
            rows = await begun.connection.stream(text("SELECT n FROM ledger ORDER BY n"))
            assert await rows.fetchone() == (1,)
            await begun.commit([])
        # Who still read what was there then could not write any more.
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("INSERT INTO ledger VALUES (4, 0)")
        other.close()
        async with transaction(store) as begun:
            await enter(begun, 5)
            await begun.commit([])
        assert entered(path) == [1, 2, 3, 4, 5]

    async def test_who_is_late_executes_nothing_in_the_transaction_of_another(
        self, path: Path, store: EventStore
    ) -> None:
        late = await store.begin_sql(seconds=1)
        raw = await driver(late)
        async with transaction(store) as begun:
            await enter(begun, 1)
            assert (await driver(begun))._conn is not None
            with pytest.raises(TransactionExpired):
                await enter(late, 2)
            with pytest.raises(TransactionExpired):
                await raw.execute("INSERT INTO ledger VALUES (3, 0)")
            with pytest.raises(TransactionExpired):
                await late.save_checkpoint(StoredCheckpoint("late", 1, 0, 0, 0, bytes(16), b"{}"))
            await begun.commit([])
        await late.rollback()
        assert entered(path) == [1]
        assert await store.checkpoints() == []


async def driver(begun: SqlTransaction) -> aiosqlite.Connection:
    found = (await begun.connection.get_raw_connection()).driver_connection
    assert isinstance(found, aiosqlite.Connection)
    return found


async def let_go_of_the_connection(store: EventStore) -> None:
    """The next transaction opens another."""
    backend = store._backend
    assert isinstance(backend, SQLiteBackend)
    transactions = backend._transactions
    assert transactions is not None
    await backend._open_writer.run(lambda _: transactions._connections.close())


class FailingConnection(UserConnection):
    """Its COMMIT fails as if the disk did: before it is done, or after it."""

    commits = False

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:  # type: ignore[override]
        if sql == "COMMIT":
            if self.commits:
                super().execute(sql)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_WRITE"
            raise error
        return super().execute(sql, *parameters)


class CommittingConnection(FailingConnection):
    commits = True


class TestADiskThatFailsAtTheCommit:
    @pytest.mark.parametrize("factory", [CommittingConnection, FailingConnection])
    async def test_it_is_found_out_what_was_stored(
        self, path: Path, store: EventStore, monkeypatch: pytest.MonkeyPatch, factory: type[FailingConnection]
    ) -> None:
        await let_go_of_the_connection(store)
        monkeypatch.setattr("backends.sqlite_user_connection.UserConnection", factory)
        async with transaction(store) as begun:
            await enter(begun, 1)
            if factory.commits:
                stored = await begun.commit([write("a", b"1", expected=0)])
                assert isinstance(stored, Appended)
                assert (stored.versions, stored.is_duplicate) == ((1,), False)
            else:
                with pytest.raises(BackendUnavailable, match="nothing of it was stored"):
                    await begun.commit([write("a", b"1", expected=0)])
        assert entered(path) == [1] * factory.commits
        assert await store.version("a") == int(factory.commits)

    async def test_without_any_id_it_stays_unknown(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with EventStore.open(f"sqlite:///{path}", resolve_within=0.3) as store:
            monkeypatch.setattr("backends.sqlite_user_connection.UserConnection", CommittingConnection)
            async with transaction(store) as begun:
                with pytest.raises(OutcomeUnknown):
                    await begun.commit([])


async def test_a_kill_leaves_rows_and_events_together_or_neither(path: Path) -> None:
    await survives_kills(f"sqlite:///{path}", 12)


async def test_a_transaction_that_was_begun_before_a_fork_is_not_the_childs(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with transaction(store) as begun:
        with monkeypatch.context() as patched:
            patched.setattr(sqlite_transaction.os, "getpid", lambda: -1)
            with pytest.raises(StoreClosed, match="fork"):
                await begun.commit([write("a", b"1")])
    assert isinstance(store._backend, SQLiteBackend)
